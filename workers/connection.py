"""A handler's `Connection`: what `websockets.asyncio.server.ServerConnection` gives a handler, and rooms.

The protocol itself (handshake, frames, close codes, compression) is the library's documented Sans-I/O
`websockets.server.ServerProtocol`; this file is the only one that makes one.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

from websockets.datastructures import Headers
from websockets.exceptions import ConcurrencyError
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from wscluster.workers.outbound import LazyCompressor
from wscluster.workers.payloads import BYTES_LIKE, chunk_payload, control_payload, each_chunk
from wscluster.workers.wire import Wire

if TYPE_CHECKING:
    import uuid
    from types import TracebackType

    from websockets.protocol import State

    from wscluster.api import DataLike, Gap, Joined
    from wscluster.workers.serve import HandlerServer


class Connection(Wire):
    """One WebSocket, from its adoption by the worker to its end (`wscluster.api.Connection` is the contract)."""

    # __dict__, because programs put attributes of their own on a connection; it takes no memory before the first.
    __slots__ = ("__dict__", "_logger", "_response", "_session", "username")

    def __init__(self, server: HandlerServer, peer: tuple[str, int] | None) -> None:
        protocol = ServerProtocol(extensions=server.extensions, max_size=server.max_size, logger=server.protocol_logger)
        super().__init__(protocol, server, peer)
        self._response: Response | bytes | None = None
        self.username: str | None = None
        self._session: dict[str, Any] | None = None
        self._logger: logging.LoggerAdapter[logging.Logger] | None = None

    # Who and what

    @property
    def id(self) -> uuid.UUID:
        """Names the connection in the log; made when it was adopted, never used again."""
        return self.protocol.id

    @property
    def client(self) -> tuple[str, int] | None:
        """Host and port of the true client; None on a Unix socket."""
        return self.peer

    remote_address = client

    @property
    def local_address(self) -> Any:
        """Address that the client connected to, as `socket.socket.getsockname` gives it."""
        return self.transport.get_extra_info("sockname")

    @property
    def slot(self) -> int:
        """Number of the slot that this worker sits in."""
        return self.server.slot

    @property
    def session(self) -> dict[str, Any]:
        """JSON-able values that are the application's own and stay with the connection."""
        if self._session is None:
            self._session = {}
        return self._session

    @session.setter
    def session(self, values: dict[str, Any]) -> None:
        self._session = values

    @property
    def subprotocol(self) -> str | None:
        """The negotiated subprotocol."""
        return self.protocol.subprotocol

    @property
    def state(self) -> State:
        """State of the connection (RFC 6455, 4 and 7.1)."""
        return self.protocol.state

    @property
    def close_code(self) -> int | None:
        """Close code that the client sent; None while open, 1006 where there was none."""
        return self.protocol.close_code

    @property
    def close_reason(self) -> str | None:
        """Close reason that the client sent; None while open."""
        return self.protocol.close_reason

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Event loop of the worker."""
        return self.server.loop

    @property
    def debug(self) -> bool:
        """Whether the frames of the connection are logged (``--log-level debug``)."""
        return self.protocol.debug

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """Logger whose lines carry the connection's id, and whose records have the connection as ``websocket``."""
        if self._logger is None:
            self._logger = _ConnectionLogger(
                logging.getLogger("wscluster.connection"), {"websocket": weakref.proxy(self)}
            )
        return self._logger

    # Opening handshake

    @property
    def response(self) -> Response | None:
        """Response to the opening handshake; None before it was sent."""
        if isinstance(self._response, bytes):
            self._response = _parse_response(self._response)
        return self._response

    def respond(self, status: int, text: str) -> Response:
        """Make a plain text HTTP response, for a ``process_request`` to return."""
        return self.protocol.reject(status, text)

    def request_received(self, request: Request) -> None:
        self.server.answer(self, request)

    def send_response(self, response: Response) -> None:
        """Send the answer to the opening handshake; 101 opens the connection, anything else ends it."""
        # As bytes it takes a tenth of the memory, and hardly any program asks for it.
        self._response = response.serialize() if response.status_code == 101 else response
        self.protocol.send_response(response)
        self.protocol_changed()
        for extension in self.protocol.extensions:
            if isinstance(extension, PerMessageDeflate):
                self._deflate = extension
                self.deflate_bits = extension.local_max_window_bits
                if not extension.local_no_context_takeover:
                    # 32 KiB that most connections, those that only hear rooms, never need.
                    extension.encoder = self._lazy = LazyCompressor(extension)  # type: ignore[assignment]

    # Sending

    async def send(
        self, message: DataLike | Iterable[DataLike] | AsyncIterable[DataLike], *, text: bool | None = None
    ) -> None:
        """Send a message; an iterable of chunks is sent as one fragmented message.

        Waits while more than 32 KiB wait for the client to read. Behind the Close of a drain it goes nowhere, and is no
        error as long as the handler has something to hear.

        Raises:
            ConnectionClosed: The connection is closed.
            TypeError: The message is neither text nor binary nor an iterable of one of them.
        """
        while self._fragmenting is not None:
            await asyncio.shield(self._fragmenting)
        if isinstance(message, str):
            payload, is_text = message.encode(), text is not False
        elif isinstance(message, BYTES_LIKE):
            payload, is_text = bytes(message), text is True
        else:
            await self._send_fragments(message, text)
            return
        if not self.is_open:
            if await self.goes_nowhere():
                return
            raise await self.wait_closed_exception()
        self.write_message(is_text, payload)
        if self._paused_writing:
            await self._drain()

    async def _send_fragments(self, message: Iterable[DataLike] | AsyncIterable[DataLike], text: bool | None) -> None:
        if isinstance(message, Mapping):
            raise TypeError("data is a dict-like object")
        chunks = each_chunk(message)
        try:
            first = await anext(chunks)
        except StopAsyncIteration:
            return
        while self._fragmenting is not None:  # another one may have begun while the first chunk was waited for
            await asyncio.shield(self._fragmenting)
        if not self.is_open:
            if await self.goes_nowhere():
                return
            raise await self.wait_closed_exception()
        self.server.bus.hold_positions(self)
        self._fragmenting = self.server.loop.create_future()
        kind: type[str] | tuple[type[Any], ...] = str if isinstance(first, str) else BYTES_LIKE
        is_text = (kind is str) if text is None else text
        try:
            self.write_fragment(is_text, chunk_payload(first, kind), fin=False)
            async for chunk in chunks:
                payload = chunk_payload(chunk, kind)
                if not self.is_open:
                    raise await self.wait_closed_exception()
                self.write_fragment(None, payload, fin=False)
                if self._paused_writing:
                    await self._drain()
            if not self.is_open:
                raise await self.wait_closed_exception()
            self.write_fragment(None, b"", fin=True)
            self.server.messages_out += 1
        except BaseException as exc:
            # Half a message is out and cannot be taken back (RFC 6455, 5.4): nothing more can be sent.
            self.fail(CloseCode.INTERNAL_ERROR, "error in fragmented message")
            if isinstance(exc, Exception):
                await self.wait_lost()
            raise
        finally:
            self._fragmenting.set_result(None)
            self._fragmenting = None
            self.server.bus.release_positions(self)
            self.write_held()
        if self._paused_writing:
            await self._drain()

    async def _drain(self) -> None:
        await self.wait_writable()
        if self._lost:
            raise self.closed_exception()

    # Control

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close(CloseCode.NORMAL_CLOSURE if exc_type is None else CloseCode.INTERNAL_ERROR)

    async def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Perform the closing handshake (RFC 6455, 7) and wait for its end; nothing when it is closed already.

        Raises:
            ProtocolError: The code may not be sent, or the reason is longer than 123 bytes.
        """
        self.start_close(code, reason)
        self.stop_taking()
        await self.wait_lost()

    async def wait_closed(self) -> None:
        """Wait until the connection is closed."""
        await self.wait_lost()

    async def ping(self, data: DataLike | None = None) -> Awaitable[float]:
        """Send a ping, with at most 125 bytes; await what is returned for the pong: the latency in seconds.

        Raises:
            ConnectionClosed: The connection is closed.
            ConcurrencyError: A ping with the same data still waits for its pong.
        """
        payload = None if data is None else control_payload(data)
        if not self.is_open:
            raise await self.wait_closed_exception()
        if payload is not None and self._pings and payload in self._pings:
            raise ConcurrencyError("already waiting for a pong with the same data")
        waiter: asyncio.Future[float] = self.server.loop.create_future()
        self.send_ping(payload, waiter)
        if self._paused_writing:
            await self._drain()
        return waiter

    async def pong(self, data: DataLike = b"") -> None:
        """Send an unsolicited pong, with at most 125 bytes.

        Raises:
            ConnectionClosed: The connection is closed.
        """
        payload = control_payload(data)
        if not self.is_open:
            raise await self.wait_closed_exception()
        self.protocol.send_pong(payload)
        self.protocol_changed()
        if self._paused_writing:
            await self._drain()

    # Rooms

    @property
    def rooms(self) -> frozenset[str]:
        """Rooms that this connection is in."""
        return self.server.bus.rooms_of(self)

    @property
    def positions(self) -> Mapping[str, str]:
        """For each of its rooms, the position of the last message delivered to this connection."""
        return self.server.bus.positions_of(self)

    async def join(self, room: str, *, since: str | None = None, on_gap: Callable[[Gap], Any] | None = None) -> Joined:
        """Become a member of ``room``, after what came ``since``: see `wscluster.api.Connection.join`.

        Raises:
            TypeError: An argument is of a wrong type.
            ValueError: The name is empty, longer than 255 bytes, or no UTF-8; or ``since`` is no position.
            BusUnavailable: The bus did not answer within ``--bus-timeout``.
            ConnectionClosed: The connection is closed.
        """
        if not self.is_open:
            raise await self.wait_closed_exception()
        return await self.server.bus.join(self, room, since, on_gap)

    async def leave(self, room: str) -> None:
        """Stop being a member of ``room``; no error where it is none."""
        await self.server.bus.leave(self, room)

    async def publish(self, room: str, message: DataLike, *, exclude_self: bool = False) -> str:
        """Send ``message`` to every member of ``room`` on every worker, in one order for all; returns its position.

        Raises:
            TypeError: The message is neither `str` nor bytes-like.
            ValueError: The room's name is empty, longer than 255 bytes, or no UTF-8.
            BusUnavailable: No answer within ``--bus-timeout``; whether the message arrived is unknown.
        """
        return await self.server.bus.publish(room, message, self.id if exclude_self else None)


class _ConnectionLogger(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        extra = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return f"{msg} (connection {extra['websocket'].id})", {**kwargs, "extra": extra}


def _parse_response(head: bytes) -> Response:
    """Return the response that `Response.serialize` made ``head`` of."""
    status, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    _, code, phrase = status.split(" ", 2)
    headers = Headers()
    for line in lines:
        name, _, value = line.partition(": ")
        headers[name] = value
    return Response(int(code), phrase, headers)
