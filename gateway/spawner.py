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

from wscluster.gateway.child import Child
from wscluster.link import link_pair


class Process:
    """One worker process, watched through a pidfd.

    Args:
        on_exit: Called once with the exit status: the code, or minus the number of the signal that ended it.
        own_group: It leads a process group, in which are the processes that it has started.
    """

    def __init__(
        self, child: Child, loop: asyncio.AbstractEventLoop, on_exit: Callable[[int], None], *, own_group: bool
    ) -> None:
        self.child = child
        self._loop = loop
        self._on_exit = on_exit
        self._own_group = own_group
        loop.add_reader(child.pidfd, self._exited)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.child.pid

    def kill(self) -> None:
        """Send SIGKILL, to its group where it has one of its own; nothing where the process has ended."""
        if not self._own_group:
            self.child.kill()
        elif self.child.pidfd >= 0:
            # Its pid, and so the number of the group, is its own until it was waited for.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def _exited(self) -> None:
        if self._own_group:  # what it leaves behind: until it was waited for, the number is its own
            self.kill()
        self._loop.remove_reader(self.child.pidfd)
        self._on_exit(self.child.reap())


def spawn_worker(streams: tuple[int, int], *, own_group: bool = False) -> tuple[Child, socket.socket]:
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
        return Child.of(popen), ours
    except OSError:
        ours.close()
        raise
