"""Starts worker processes and sees them end.

A worker is started from the main thread only: its PR_SET_PDEATHSIG fires when the *thread* that started it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

from wscluster.link import link_pair


class Process:
    """One worker process, watched through a pidfd.

    Args:
        on_exit: Called once with the exit status: the code, or minus the number of the signal that ended it.
        own_group: It leads a process group, in which are the processes that it has started.
    """

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        loop: asyncio.AbstractEventLoop,
        on_exit: Callable[[int], None],
        *,
        own_group: bool,
    ) -> None:
        self.pid = popen.pid
        self._popen = popen
        self._loop = loop
        self._on_exit = on_exit
        self._own_group = own_group
        self._pidfd = os.pidfd_open(popen.pid)
        loop.add_reader(self._pidfd, self._exited)

    def kill(self) -> None:
        """Send SIGKILL, to its group where it has one of its own; nothing where the process has ended."""
        if self._pidfd >= 0 and self._own_group:
            # Its pid, and so the number of the group, is its own until it was waited for.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        elif self._pidfd >= 0:
            # To the pidfd: a pid could be a stranger's by now.
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                return

    def _exited(self) -> None:
        if self._own_group:  # what it leaves behind: until it was waited for, the number is its own
            self.kill()
        status = self._popen.wait()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._on_exit(status)


def spawn_worker(
    loop: asyncio.AbstractEventLoop,
    on_exit: Callable[[int], None],
    streams: tuple[int, int],
    *,
    own_group: bool = False,
) -> tuple[Process, socket.socket]:
    """Start a worker; returns its process and the primary's end of the link.

    Args:
        streams: What becomes its standard output and its standard error; they stay the caller's.
        own_group: In a process group of its own: a Ctrl-C in the terminal, which a program would take for its own, then
            reaches the primary alone. What the worker has started is killed with it.

    Raises:
        OSError: The system has no process or no descriptor left.
    """
    ours, theirs = link_pair()
    # The worker takes them when it can ignore them: a Ctrl-C in the terminal must not end one that is just starting.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        popen = subprocess.Popen(
            # -P: a file of the working directory must not stand in for a module that the worker imports.
            [sys.executable, "-P", "-m", "wscluster.workers", "--link-fd", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=streams[0],
            stderr=streams[1],
            pass_fds=[theirs.fileno()],
            process_group=0 if own_group else None,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    try:
        return Process(popen, loop, on_exit, own_group=own_group), ours
    except OSError:  # no descriptor left for its pidfd: nobody would see it end
        popen.kill()
        popen.wait()
        ours.close()
        raise
