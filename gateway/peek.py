"""The PROXY header of new connections: looked at with MSG_PEEK under a deadline, then taken off the stream exactly.

Not a byte that follows the header is read: the worker finds the stream as if the client had connected to it.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from wscluster.config import Listen
from wscluster.gateway.carried import Fd
from wscluster.gateway.listener import Accepted
from wscluster.gateway.proxyproto import LOOK_BYTES, Header, Invalid, NeedMore, parse
from wscluster.gateway.state import PeekState
from wscluster.networks import Networks

MAX_PEEKING = 512
"""Connections whose header is not whole; one more, and the oldest is reset: a balancer sends its header at once."""
HEADER_SECONDS = 5.0
"""What a header may take, and never more than the opening handshake may: a lost segment comes again within a second."""
AGAIN_SECONDS = 0.02
"""When the next look is where the kernel cannot wait for more than was seen: a Unix socket has no SO_RCVLOWAT."""
TAKE_BYTES = 16 * 1024
COMPLAIN_SECONDS = 10.0

_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
_RESET = struct.pack("ii", 1, 0)

logger = logging.getLogger("wscluster.primary")


@dataclass(eq=False, slots=True)
class _Connection:
    sock: socket.socket
    host: str
    port: int
    listener: int
    due: float
    seen: int = 0
    """Bytes of the stream that the last look saw."""
    header: Header | None = None
    left: int = 0
    """Bytes of ``header`` that were not taken yet."""
    again: asyncio.TimerHandle | None = None


class Peeker:
    """Finds out who the clients behind a balancer are.

    A peer outside ``allow_from`` is reset where a header is demanded; with ``auto`` it is a plain client, and what
    looks like a header is left in its stream, where it is no request. Peers on a Unix socket are allowed.

    Args:
        mode: ``v1`` or ``v2`` demand a header, ``auto`` takes either or none.
        allow_from: Networks of the balancers.
        seconds: What the opening handshake may take.
        on_batch: Called with connections whose header was taken, with host and port of the true client.
        on_refused: Called for each connection that was reset instead.
    """

    def __init__(
        self,
        mode: str,
        allow_from: Iterable[str],
        seconds: float,
        loop: asyncio.AbstractEventLoop,
        on_batch: Callable[[list[Accepted]], None],
        on_refused: Callable[[], None],
    ) -> None:
        self._mode = mode
        self._allowed = Networks(allow_from)
        self._seconds = min(seconds, HEADER_SECONDS)
        self._loop = loop
        self._on_batch = on_batch
        self._on_refused = on_refused
        # In the order of their deadlines: all get the same time.
        self._waiting: dict[_Connection, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._complained_at = float("-inf")
        self._refused_since = 0

    def accept(self, batch: list[Accepted]) -> None:
        """Take the headers of new connections: of most at once, of the others when they come."""
        due = self._loop.time() + self._seconds
        passed = []
        for sock, host, port, listener in batch:
            connection = _Connection(sock, host, port, listener, due)
            if host and host not in self._allowed:
                if self._mode == "auto":
                    passed.append((sock, host, port, listener))
                else:
                    self._refuse(connection, "it is not in --proxy-allow-from")
            elif self._advance(connection):
                passed.append(_true_client(connection))
        if passed:
            self._on_batch(passed)

    def carry(self) -> list[PeekState]:
        """Return the connections whose header is not whole, the oldest first, for the next process."""
        return [
            PeekState(Fd(one.sock.fileno()), one.host, one.port, one.listener, one.due, one.seen, one.header, one.left)
            for one in self._waiting
        ]

    def resume(self, states: Iterable[PeekState]) -> None:
        """Go on with the connections of the process before."""
        for state in states:
            connection = _Connection(
                socket.socket(fileno=state.fd), state.host, state.port, state.listener, state.due, state.seen,
                state.header, state.left,
            )  # fmt: skip
            self._wait(connection)

    def close(self) -> None:
        """Reset every connection whose header has not come."""
        for connection in list(self._waiting):
            self._refuse(connection, "the server stops")

    def _advance(self, connection: _Connection) -> bool:
        """Look at the stream and take what is header; True when all of it was taken, else it waits or was refused."""
        sock = connection.sock
        try:
            if connection.header is None and not self._look(connection):
                return False
            while connection.left:
                taken = len(sock.recv(min(connection.left, TAKE_BYTES), socket.MSG_DONTWAIT))
                if not taken:
                    self._refuse(connection, "it ended within its PROXY header")
                    return False
                connection.left -= taken
        except (BlockingIOError, InterruptedError):
            self._wait(connection)
            return False
        except OSError:
            self._refuse(connection, "it was reset before its PROXY header")
            return False
        return True

    def _look(self, connection: _Connection) -> bool:
        """Say whether the header is known now.

        Raises:
            OSError: There is nothing to look at, or the connection was reset.
        """
        data = connection.sock.recv(LOOK_BYTES, _PEEK)
        outcome = parse(data, self._mode) if data else Invalid("it ended before its PROXY header")
        match outcome:
            case Header(length):
                connection.header, connection.left = outcome, length
                if connection.seen:
                    # The rest of the header may be less than the next look was to wait for, and so may the request.
                    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
                return True
            case Invalid(reason):
                self._refuse(connection, reason)
            case NeedMore():
                if len(data) > connection.seen:
                    connection.seen = len(data)
                    # Else what was seen would wake this process until more comes.
                    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, connection.seen + 1)
                    self._wait(connection)
                elif _has_ended(connection.sock):
                    self._refuse(connection, "it ended within its PROXY header")
                else:
                    self._wait_a_moment(connection)
        return False

    # Waiting

    def _wait(self, connection: _Connection) -> None:
        if connection not in self._waiting:
            if len(self._waiting) >= MAX_PEEKING:
                self._refuse(next(iter(self._waiting)), f"{MAX_PEEKING} others without a PROXY header came after it")
            self._waiting[connection] = None
            if self._timer is None:
                self._timer = self._loop.call_at(connection.due, self._expire)
        self._loop.add_reader(connection.sock, self._go_on, connection)

    def _wait_a_moment(self, connection: _Connection) -> None:
        """Woken by what was seen before: look again in a moment, and not at once and for ever."""
        self._loop.remove_reader(connection.sock)
        connection.again = self._loop.call_later(AGAIN_SECONDS, self._go_on, connection)

    def _go_on(self, connection: _Connection) -> None:
        connection.again = None
        if self._advance(connection):
            self._forget(connection)
            self._on_batch([_true_client(connection)])

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        for connection in list(self._waiting):
            if connection.due > now:
                # A timer that was set for one that has gone is early: it costs one look.
                self._timer = self._loop.call_at(connection.due, self._expire)
                return
            self._refuse(connection, f"its PROXY header took more than {self._seconds:g} s")

    def _forget(self, connection: _Connection) -> None:
        if connection in self._waiting:
            del self._waiting[connection]
            self._loop.remove_reader(connection.sock)
            if connection.again is not None:
                connection.again.cancel()

    def _refuse(self, connection: _Connection, reason: str) -> None:
        self._forget(connection)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.sock.close()
        self._on_refused()
        self._complain(connection.host or "a Unix socket", reason)

    def _complain(self, peer: str, reason: str) -> None:
        """Say why a connection was refused, and how many since the last such line, but not for each of a crowd."""
        self._refused_since += 1
        now = self._loop.time()
        if now - self._complained_at >= COMPLAIN_SECONDS:
            logger.warning("connections refused by --proxy-protocol %s: %d; the last from %s: %s",
                           self._mode, self._refused_since, peer, reason)  # fmt: skip
            self._complained_at, self._refused_since = now, 0


def _true_client(connection: _Connection) -> Accepted:
    header = connection.header
    if header is None or header.source is None:
        return connection.sock, connection.host, connection.port, connection.listener
    return connection.sock, *header.source, connection.listener


def _has_ended(sock: socket.socket) -> bool:
    """Say whether the peer has shut down its side: a look cannot, while unread bytes stand before the end."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def make_peeker(
    listen: Listen,
    seconds: float,
    loop: asyncio.AbstractEventLoop,
    on_batch: Callable[[list[Accepted]], None],
    on_refused: Callable[[], None],
) -> Peeker | None:
    """Return what takes the PROXY headers; None where none is spoken: then nobody looks at a connection."""
    if listen.proxy_protocol == "off":
        return None
    return Peeker(listen.proxy_protocol, listen.proxy_allow_from, seconds, loop, on_batch, on_refused)
