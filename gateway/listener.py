"""One listening socket: bound early, so that a taken port is an error before anything starts; accepted from late."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable

from wscluster.errors import StartError

BATCH = 64
"""Connections accepted in one turn of the loop; the others wait in the kernel's backlog for the next."""
PAUSE_SECONDS = 0.1
"""What accepting pauses for when this process or the machine has no file descriptor left."""
COMPLAIN_SECONDS = 10.0

_RESET = struct.pack("ii", 1, 0)

logger = logging.getLogger("wscluster.primary")

Accepted = tuple[socket.socket, str, int]


def bind(host: str, port: int) -> list[socket.socket]:
    """Return sockets bound to every address of ``host`` at ``port`` (0: the kernel chooses); none listens yet.

    ``localhost`` is bound for IPv4 and IPv6, ``::`` takes both on one socket, an empty host means every interface.

    Raises:
        StartError: The address is taken, not this machine's, or no address.
    """
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as exc:
        raise StartError(f"cannot listen on {shown}: {exc}; give an address of this machine as --host") from exc
    addresses = sorted({(info[0], info[4]) for info in found}, key=lambda item: (item[0] != socket.AF_INET, item[1]))
    bound: list[socket.socket] = []
    for family, address in addresses:
        # All of them on the port that the kernel chose for the first.
        chosen = (address[0], bound[0].getsockname()[1], *address[2:]) if bound else address
        try:
            bound.append(_bind(family, chosen, both=host == "::"))
        except OSError as exc:
            if bound and exc.errno == errno.EADDRNOTAVAIL:
                continue  # a name with an IPv6 address on a machine without IPv6
            for sock in bound:
                sock.close()
            hint = "; is another server running? choose another --port" if exc.errno == errno.EADDRINUSE else ""
            raise StartError(f"cannot listen on {shown}: {os.strerror(exc.errno or 0)}{hint}") from exc
    return bound


def _bind(family: int, address: tuple[object, ...], *, both: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Every accepted socket inherits it on Linux: a call less for each connection.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not both))
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def listener_name(sock: socket.socket) -> str:
    """Return ``host:port``, ``[v6]:port`` or ``unix:/path`` of a bound socket."""
    address = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{address}"
    host, port = address[:2]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"


class Listener:
    """Accepts from one socket in batches.

    At the limit of file descriptors it gives up a reserve descriptor to accept what waits, a batch at the most, and to
    reset it, says so, and pauses: the clients are told at once, and the loop does not spin.

    Args:
        sock: A bound socket; the listener owns it.
        on_batch: Called with what was accepted: socket, host and port of the client.
        on_shed: Called for each connection that was reset for want of a descriptor.
    """

    def __init__(
        self,
        sock: socket.socket,
        backlog: int,
        loop: asyncio.AbstractEventLoop,
        on_batch: Callable[[list[Accepted]], None],
        on_shed: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self.name = listener_name(sock)
        self._sock = sock
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
            StartError: Another socket has begun to listen on the same address.
        """
        try:
            self._sock.listen(self._backlog)
        except OSError as exc:
            raise StartError(f"cannot listen on {self.name}: {os.strerror(exc.errno or 0)}") from exc
        self._accepting = True
        self._loop.add_reader(self._sock, self._readable)

    def close(self) -> None:
        """Accept what the kernel has queued, then nothing more. Does nothing the second time."""
        if self._sock.fileno() < 0:
            return
        for _ in range(self._backlog // BATCH + 1 if self._accepting else 0):
            self._readable()
        if self._resume is not None:
            self._resume.cancel()
        if self._accepting:
            self._loop.remove_reader(self._sock)
        self._accepting = False
        self._sock.close()
        self._give_up_reserve()

    def _readable(self) -> None:
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
                batch.append((sock, address[0], address[1]))
            else:
                batch.append((sock, "", 0))
        if batch:
            self._on_batch(batch)

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
