"""The end of a WebSocket connection: who began it, how it goes on, and what a program is told.

`Closing` follows the state of the library's protocol after everything that may have changed it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from websockets.frames import CloseCode
from websockets.protocol import CLOSED, OPEN

from wscluster.workers.outbound import Outbound

if TYPE_CHECKING:
    from websockets.exceptions import ConnectionClosed
    from websockets.server import ServerProtocol

    from wscluster.workers.serve import HandlerServer


class Closing(Outbound):
    """Begins, follows and awaits the end of the connection."""

    __slots__ = ("_lost", "_lost_waiter", "_short_way", "connection_exc")

    def __init__(self, protocol: ServerProtocol, server: HandlerServer) -> None:
        super().__init__(protocol, server)
        self.connection_exc: BaseException | None = None
        # Whether a whole data frame needs no parser: the connection is open and no message is unfinished.
        self._short_way = False
        self._lost = False
        self._lost_waiter: asyncio.Future[None] | None = None

    def protocol_changed(self) -> None:
        """Write what the protocol wants to send and follow its state."""
        protocol = self.protocol
        # First of all, because ending the stream may read on, which asks for the state.
        self.is_open = is_open = protocol.state is OPEN
        self._short_way = is_open and protocol.current_size is None
        for data in protocol.data_to_send():
            if data:
                self.transport.write(data)
            else:
                self._end_writing()
        if is_open:
            return
        if protocol.parser_exc is not None:
            # Its frames hold what could not be parsed and what was inflated of it: a megabyte for each bomb.
            protocol.parser_exc.__traceback__ = None
        if protocol.close_expected() and self not in self.server.close_deadlines:
            self.server.close_deadlines.add(self)

    def _end_writing(self) -> None:
        """End the stream: at once after a whole closing handshake, else half, so that the peer still reads our last
        bytes while it is sending (closing with unread bytes would reset the connection)."""
        transport = self.transport
        protocol = self.protocol
        if (protocol.close_rcvd is not None and protocol.close_sent is not None) or not transport.can_write_eof():
            transport.close()
            return
        self.resume_reading()
        if not transport.is_closing():
            try:
                transport.write_eof()
            except (OSError, RuntimeError):
                transport.abort()

    def fail(self, code: int, reason: str) -> None:
        """Fail the connection (RFC 6455, 7.1.7): a close frame, then the end."""
        if self.protocol.state is not CLOSED and not self.protocol.eof_sent:
            self.protocol.fail(code, reason)
            self.protocol_changed()

    def start_close(self, code: int, reason: str = "") -> None:
        """Begin the closing handshake; nothing when it has begun."""
        protocol = self.protocol
        if self.is_open:
            if self._fragmenting is not None:
                protocol.fail(CloseCode.INTERNAL_ERROR, "close during fragmented message")
            else:
                protocol.send_close(code, reason)
            self.protocol_changed()

    def close_slow(self) -> None:
        """Close a client that does not read: 1013, and a reset where even that cannot be written in time."""
        if self.is_open:
            self.protocol.fail(CloseCode.TRY_AGAIN_LATER, "slow consumer")
            self.protocol_changed()
            self.server.slow_deadlines.add(self)

    def resume_reading(self) -> None:
        """Read on after a pause."""
        raise NotImplementedError

    def closed_exception(self) -> ConnectionClosed:
        """Return the exception that says how the connection closed; only once it has."""
        exc = self.protocol.close_exc
        if self.connection_exc is not None:
            exc.__cause__ = self.connection_exc
        return exc

    async def wait_lost(self) -> None:
        """Wait until the TCP connection has ended."""
        if self._lost:
            return
        if self._lost_waiter is None:
            self._lost_waiter = self.server.loop.create_future()
        await asyncio.shield(self._lost_waiter)

    async def wait_closed_exception(self) -> ConnectionClosed:
        """Wait for the end of the connection; return the exception that says how it closed."""
        await self.wait_lost()
        return self.closed_exception()

    def abort(self, exc: BaseException | None = None) -> None:
        """Reset the TCP connection; ``exc`` says why."""
        if self.connection_exc is None:
            self.connection_exc = exc
        self.transport.abort()
