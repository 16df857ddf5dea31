"""As process 1 of a container the primary is the parent of every orphan, and reaps those too."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Collection

LOOK_AGAIN_SECONDS = 0.1


class OrphanReaper:
    """Reaps children that are nobody's own; those of ``own`` are left to whoever watches their pidfd.

    Args:
        own: Returns the pids of the children that this process has started.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, own: Callable[[], Collection[int]]) -> None:
        self._loop = loop
        self._own = own
        # Not the loop's own way: uvloop keeps SIGCHLD for subprocesses of its own, of which there are none here.
        signal.signal(signal.SIGCHLD, lambda _number, _frame: loop.call_soon_threadsafe(self.reap))
        loop.call_soon(self.reap)  # those that have ended before, such as while this process executed itself anew

    def reap(self) -> None:
        """Reap every orphan that has ended."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            if ended.si_pid in self._own():
                # It hides those behind it until its own watcher has reaped it.
                self._loop.call_later(LOOK_AGAIN_SECONDS, self.reap)
                return
            os.waitpid(ended.si_pid, 0)
