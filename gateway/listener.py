"""One listening socket, accepted from once the workers are ready."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable

from wscluster.gateway.binding import Bound, CannotBind
from wscluster.gateway.state import ListenerState

BATCH = 64
"""Connections accepted in one turn of the loop; the others wait in the kernel's backlog for the next."""
PAUSE_SECONDS = 0.1
"""What accepting pauses for when this process or the machine has no file descriptor left."""
COMPLAIN_SECONDS = 10.0

_RESET = struct.pack("ii", 1, 0)

logger = logging.getLogger("wscluster.primary")

Accepted = tuple[socket.socket, str, int, int]
"""A connection: its socket, host and port of the client, number of the listener."""


class Listener:
    """Accepts from one socket in batches.

    At the limit of file descriptors it gives up a reserve descriptor to accept what waits, a batch at the most, and to
    reset it, says so, and pauses: the clients are told at once, and the loop does not spin.

    Args:
        bound: A bound socket; the listener owns it.
        on_batch: Called with what was accepted.
        on_shed: Called for each connection that was reset for want of a descriptor.
        number: The listener's own number, counted from 0.
    """

    def __init__(
        self,
        bound: Bound,
        backlog: int,
        loop: asyncio.AbstractEventLoop,
        on_batch: Callable[[list[Accepted]], None],
        on_shed: Callable[[], None],
        number: int = 0,
    ) -> None:
        self.name = bound.name
        self._number = number
        self._bound = bound
        self._sock = bound.sock
        self._sock.setblocking(False)
        self._backlog = backlog
        self._loop = loop
        self._on_batch = on_batch
        self._on_shed = on_shed
        self._reserve: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._resume: asyncio.TimerHandle | None = None
        self._accepting = False
        self._complained_at = float("-inf")

    def start(self) -> None:
        """Begin to accept.

        Raises:
            CannotBind: Another socket has begun to listen on the same address.
        """
        if not self._bound.is_reachable():
            raise CannotBind(f"cannot listen on {self.name}: another server has taken its place", errno.EADDRINUSE)
        try:
            self._sock.listen(self._backlog)
        except OSError as exc:
            number = exc.errno or errno.EINVAL
            raise CannotBind(f"cannot listen on {self.name}: {os.strerror(number)}", number) from exc
        self._accepting = True
        self._loop.add_reader(self._sock, self._readable)

    def carry(self) -> ListenerState:
        """Return what the next process needs to accept from the socket."""
        return self._bound.carry(self._backlog)

    def close(self) -> None:
        """Accept what the kernel has queued, then nothing more. Does nothing the second time."""
        if self._sock.fileno() < 0:
            return
        for _ in range(self._backlog // BATCH + 1):
            if not self._accepting or not self._readable():
                break
        if self._resume is not None:
            self._resume.cancel()
        if self._accepting:
            self._loop.remove_reader(self._sock)
        self._accepting = False
        self._bound.close()
        self._give_up_reserve()

    def _readable(self) -> bool:
        """Accept a batch; False where nobody waited."""
        batch: list[Accepted] = []
        for _ in range(BATCH):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                break
            except ConnectionAbortedError:
                continue
            except OSError as exc:
                self._exhausted(exc)
                break
            if isinstance(address, tuple):
                batch.append((sock, address[0], address[1], self._number))
            else:
                batch.append((sock, "", 0, self._number))
        if batch:
            self._on_batch(batch)
        return bool(batch)

    def _exhausted(self, exc: OSError) -> None:
        if exc.errno in (errno.EMFILE, errno.ENFILE):
            self._shed()
        now = self._loop.time()
        if now - self._complained_at >= COMPLAIN_SECONDS:
            self._complained_at = now
            logger.error("cannot accept: %s; connections are reset until there is room", os.strerror(exc.errno or 0))
        self._loop.remove_reader(self._sock)
        self._accepting = False
        self._resume = self._loop.call_later(PAUSE_SECONDS, self._go_on)

    def _shed(self) -> None:
        """Reset the connections that wait with the help of the reserve descriptor."""
        self._give_up_reserve()
        for _ in range(BATCH):
            try:
                sock, _ = self._sock.accept()
            except OSError:
                break  # no more, or somebody else took the descriptor
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.close()
            self._on_shed()
        try:
            self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._reserve = None  # the machine has none left; once it has, so has the next pause

    def _give_up_reserve(self) -> None:
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None

    def _go_on(self) -> None:
        self._resume = None
        self._accepting = True
        self._loop.add_reader(self._sock, self._readable)
