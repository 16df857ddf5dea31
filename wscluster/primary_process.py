"""The primary of a test's cluster as a child process: its lines are handed to the loop, and it ends without one too."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

MAX_LINE_BYTES = 1 << 20
"""A longer line is handed on in pieces."""
QUIT_SECONDS = 5.0
"""What all processes get to end after SIGQUIT, and then what they get after SIGKILL."""

OnLine = Callable[[bytes], None]


class PrimaryProcess:
    """A process that tells its events on one pipe and prints on another; it has the methods of `asyncio`'s processes.

    Args:
        command: Program and arguments; the descriptor of the events stands behind ``--ready-fd``.
        cwd: Folder that it runs in; None is the current one.
        env: Its whole environment.
        pass_fds: Descriptors that it inherits beside the pipes.
        on_event: Called on the loop with each line of the events, without its line break.
        on_output: Called on the loop with each line of standard output and error.
        on_end: Called on the loop when one of the pipes has ended.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        *,
        cwd: str | None,
        env: Mapping[str, str],
        pass_fds: Sequence[int],
        on_event: OnLine,
        on_output: OnLine,
        on_end: Callable[[], None],
    ) -> None:
        events, tell_events = os.pipe()
        output, tell_output = os.pipe()
        try:
            self._popen = subprocess.Popen(
                command(tell_events), cwd=cwd, env=dict(env), pass_fds=[tell_events, *pass_fds],
                stdin=subprocess.DEVNULL, stdout=tell_output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except BaseException:
            os.close(events)
            os.close(output)
            raise
        finally:
            os.close(tell_events)
            os.close(tell_output)
        self._loop = asyncio.get_running_loop()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._pidfd: int | None = os.pidfd_open(self._popen.pid)
        self._loop.add_reader(self._pidfd, self._exited)
        self._readers = [
            _LineReader(events, self._loop, on_event, on_end),
            _LineReader(output, self._loop, on_output, on_end),
        ]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code; minus the number of the signal that ended it; None while it runs."""
        return self._popen.poll()

    @property
    def reading(self) -> bool:
        """True until it and all that have inherited its pipes have closed them."""
        return any(not reader.ended for reader in self._readers)

    async def wait(self) -> int:
        """Wait until it has ended; returns its exit code."""
        while (code := self.returncode) is None:
            await asyncio.wait([self._gone])
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal; nothing is done where it has ended."""
        self._popen.send_signal(number)

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self._popen.terminate()

    def kill(self) -> None:
        """Send it SIGKILL."""
        self._popen.kill()

    def close(self) -> None:
        """Watch it no more, and close the pipes after what is in them was handed on; its loop may be closed by now."""
        self._close_pidfd()
        for reader in self._readers:
            reader.close()

    def end(self) -> None:
        """End it and all its descendants, and wait for that: SIGQUIT, and SIGKILL after 5 s; then `close`.

        It blocks, and needs no event loop.
        """
        watched = _watch_family(self.pid) if self.returncode is None else []
        try:
            self._popen.send_signal(signal.SIGQUIT)
            self._popen.send_signal(signal.SIGCONT)
            for pidfd in _wait_ended(watched):
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            _wait_ended(watched)
        finally:
            for pidfd in watched:
                os.close(pidfd)
        self._popen.wait()
        self.close()

    def _exited(self) -> None:
        self._close_pidfd()
        self._popen.wait()
        if not self._gone.done():
            self._gone.set_result(None)

    def _close_pidfd(self) -> None:
        if self._pidfd is not None:
            _forget(self._loop, self._pidfd)
            self._pidfd = None


class _LineReader:
    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop, on_line: OnLine, on_end: Callable[[], None]) -> None:
        os.set_blocking(fd, False)
        self.ended = False
        self._fd = fd
        self._loop = loop
        self._on_line = on_line
        self._on_end = on_end
        self._rest = b""
        loop.add_reader(fd, self._read)

    def close(self) -> None:
        while not self.ended:
            if not self._read():
                self._end()

    def _read(self) -> bool:
        """Read once; returns whether there was anything, the end of the pipe included."""
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._on_line(line)
        if not data:
            self._end()
        return True

    def _end(self) -> None:
        self.ended = True
        _forget(self._loop, self._fd)
        if self._rest:
            self._on_line(self._rest)
        self._on_end()


def _forget(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    if not loop.is_closed():
        loop.remove_reader(fd)
    os.close(fd)


def _watch_family(pid: int) -> list[int]:
    """Return pidfds of the process and all its descendants."""
    watched = []
    for member in _family(pid):
        try:
            watched.append(os.pidfd_open(member))
        except ProcessLookupError:
            continue
    return watched


def _family(pid: int) -> list[int]:
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids = children.read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in pids:
            found += _family(int(child))
    return found


def _wait_ended(watched: Sequence[int]) -> list[int]:
    """Wait for the end of the processes behind these pidfds; returns those that run on after 5 s."""
    running = set(watched)
    poll = select.poll()
    for pidfd in running:
        poll.register(pidfd, select.POLLIN)
    deadline = time.monotonic() + QUIT_SECONDS
    while running and (left := deadline - time.monotonic()) > 0:
        for pidfd, _ in poll.poll(left * 1000):
            poll.unregister(pidfd)
            running.discard(pidfd)
    return list(running)
