"""A child process that is known by its pidfd alone, so that whoever takes this process's place can go on with it."""

from __future__ import annotations

import os
import signal
import subprocess

from wscluster.gateway.carried import Fd
from wscluster.gateway.state import ChildState


class Child:
    """One child process.

    Args:
        pid: Its process id.
        pidfd: Of that process; it is closed when it was reaped. Readable when the process has ended.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd

    @classmethod
    def of(cls, popen: subprocess.Popen[bytes]) -> Child:
        """Return the process of ``popen``, which is not to be used any more; where that fails it is killed.

        Raises:
            OSError: No descriptor is left for its pidfd.
        """
        try:
            child = cls(popen.pid, os.pidfd_open(popen.pid))
        except OSError:
            popen.kill()
            popen.wait()
            raise
        # Else `subprocess` would reap it, some time after this object is gone.
        popen.returncode = 0
        return child

    @classmethod
    def resume(cls, state: ChildState) -> Child:
        """Return the process that this one's predecessor has started."""
        return cls(state.pid, state.pidfd)

    def carry(self) -> ChildState:
        """Return what the next process needs."""
        return ChildState(self.pid, Fd(self.pidfd))

    def kill(self) -> None:
        """Send SIGKILL; nothing where the process has ended. To the pidfd: a pid could be a stranger's by now."""
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                return

    def reap(self) -> int:
        """Wait until it has ended; returns its exit status, or minus the number of the signal that ended it."""
        # Its pid is its own until now. By the pidfd it would not wait: a loop that polls one makes it non-blocking.
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.pidfd = -1
        return os.waitstatus_to_exitcode(status)
