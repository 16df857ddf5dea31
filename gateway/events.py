"""Lifecycle facts as JSON lines on the file descriptor that ``--ready-fd`` names."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from wscluster.errors import ExitCode, StartError
from wscluster.gateway.writable import MAX_WRITE_BYTES, Writable

MAX_WAITING = 1024

logger = logging.getLogger("wscluster.primary")


def claim_fd(fd: int) -> None:
    """Take ``fd`` for events; no child inherits it any more, unless it is a standard stream.

    Call it before this process opens anything of its own: a number that nobody has opened for it may by then be that of
    the event loop.

    Raises:
        StartError: It is not open, or not for writing.
    """
    try:
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except (OSError, OverflowError):
        raise StartError(f"--ready-fd {fd}: this file descriptor is not open", ExitCode.USAGE) from None
    if mode == os.O_RDONLY:
        raise StartError(f"--ready-fd {fd}: this file descriptor is not open for writing", ExitCode.USAGE)
    # A worker without standard streams would open something else of its own under their numbers.
    if fd > 2:
        os.set_inheritable(fd, False)


class EventLog:
    """Writes events without ever blocking the loop; while nobody reads, up to 1,024 lines wait and later ones are lost.

    The descriptor is not made non-blocking, because whoever else has it would feel that: it is asked before each write.

    Args:
        fd: A descriptor that `claim_fd` has taken, or None for no events.
        observe: Called with the name and the facts of each event.
    """

    def __init__(
        self,
        fd: int | None,
        loop: asyncio.AbstractEventLoop,
        observe: Callable[[str, dict[str, Any]], None] = lambda _event, _facts: None,
    ) -> None:
        self._fd = fd
        self._observe = observe
        self._loop = loop
        self._waiting: deque[bytes] = deque()
        self._writable = None if fd is None else Writable(fd)
        self._complained = False
        self._drained: asyncio.Future[None] | None = None

    def emit(self, event: str, **facts: Any) -> None:
        """Write one line: ``{"event": …}`` and ``facts``."""
        self._observe(event, facts)
        if self._fd is None:
            return
        line = json.dumps({"event": event, **facts}, separators=(",", ":")).encode() + b"\n"
        if len(line) > MAX_WRITE_BYTES or len(self._waiting) >= MAX_WAITING:
            self._complain("an event is lost: nobody reads --ready-fd, or it is too long")
            return
        self._waiting.append(line)
        if self._writable is not None and not self._writable.waiting:
            self._write()

    def carry(self) -> list[bytes]:
        """Return the lines that wait."""
        return list(self._waiting)

    def resume(self, waiting: list[bytes]) -> None:
        """Write what has waited in the process before, ahead of everything else."""
        self._waiting.extendleft(reversed(waiting))
        self._write()

    async def drain(self, timeout: float) -> None:
        """Wait until everything is written, or for ``timeout`` seconds."""
        if self._waiting and self._fd is not None:
            self._drained = self._loop.create_future()
            await asyncio.wait([self._drained], timeout=timeout)

    def close(self) -> None:
        """Write no more. The descriptor stays open: it is whose it was."""
        if self._writable is not None:
            self._writable.stop()
            self._writable = None
        self._fd = None

    def _write(self) -> None:
        if self._fd is None or self._writable is None:
            return
        while self._waiting:
            if not self._writable.wait(0):
                self._writable.call(self._loop, self._write)
                return
            try:
                os.write(self._fd, self._waiting[0])
            except OSError as exc:
                self._complain(f"--ready-fd {self._fd}: {exc.strerror}; no more events are written")
                self.close()
                return
            self._waiting.popleft()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._writable.stop()

    def _complain(self, text: str) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("%s", text)
