"""Where lines of the log go: a descriptor that is never waited for."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections import deque
from collections.abc import Callable

from wscluster.gateway.writable import MAX_WRITE_BYTES, Writable

MAX_WAITING_BYTES = 1024 * 1024


class Sink:
    """Writes lines to ``fd``; while nobody reads there, 1 MiB of them waits and later ones are lost.

    Before `attach` a line that cannot be written at once waits for the next one.

    Args:
        on_lost: Called with how many lines were lost, as soon as something can be written again.
    """

    def __init__(self, fd: int, on_lost: Callable[[int], None]) -> None:
        self.fd = fd
        self._on_lost = on_lost
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._lost = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writable = Writable(fd)
        # A file takes everything at once, whatever poll(2) says of it.
        self._most = MAX_WAITING_BYTES if stat.S_ISREG(os.fstat(fd).st_mode) else MAX_WRITE_BYTES

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have ``loop`` write what waits."""
        self._loop = loop
        self._write()

    def write(self, *lines: str) -> None:
        """Write ``lines``, or let them wait."""
        for line in lines:
            data = line.encode("utf-8", "backslashreplace") + b"\n"
            if self._size + len(data) > MAX_WAITING_BYTES and not self._writable.waiting:
                self._write()  # many lines at once are more than may wait, and need not
            if self._size + len(data) > MAX_WAITING_BYTES:
                self._lost += 1
            else:
                self._put(data)
        if not self._writable.waiting:
            self._write()

    def carry(self) -> list[bytes]:
        """Return what waits."""
        return list(self._waiting)

    def resume(self, waiting: list[bytes]) -> None:
        """Write what has waited in the process before, ahead of everything else."""
        self._waiting.extendleft(reversed(waiting))
        self._size += sum(map(len, waiting))
        self._write()

    def flush(self, seconds: float) -> None:
        """Write what waits; what nobody reads within ``seconds`` stays unwritten."""
        until = time.monotonic() + seconds
        self._write()
        while self._waiting and self._writable.wait(max(0.0, until - time.monotonic())):
            self._write()

    def close(self) -> None:
        """Write no more. The descriptor stays open."""
        self._writable.stop()
        self._loop = None
        self._waiting.clear()
        self._size = 0

    def _put(self, data: bytes) -> None:
        self._waiting.append(data)
        self._size += len(data)

    def _write(self) -> None:
        while self._waiting:
            if not self._writable.wait(0):
                if self._loop is not None:
                    self._writable.call(self._loop, self._write)
                return
            data = self._join()
            try:
                done = os.write(self.fd, data)
            except OSError:  # a full disk, a reader that is gone; it may be better by the next line
                self._lost += data.count(b"\n")
                done = len(data)
            else:
                if done < len(data):
                    self._waiting.appendleft(data[done:])
                self._tell_lost()
            self._size -= done
        self._writable.stop()

    def _join(self) -> bytes:
        """Take whole lines from what waits, as many as one write takes; of a longer one, as much as it takes."""
        taken = [self._waiting.popleft()]
        size = len(taken[0])
        while self._waiting and size + len(self._waiting[0]) <= self._most:
            taken.append(self._waiting.popleft())
            size += len(taken[-1])
        data = b"".join(taken)
        if size > self._most:
            self._waiting.appendleft(data[self._most :])
        return data[: self._most]

    def _tell_lost(self) -> None:
        if self._lost and self._size < MAX_WAITING_BYTES // 2:
            lost, self._lost = self._lost, 0
            self._on_lost(lost)
