"""What runs a handler: the connections of this worker, their opening handshakes, their deadlines and their end."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import socket
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.protocol import CONNECTING

from wscluster.workers.closing import Closing
from wscluster.workers.connection import Connection
from wscluster.workers.deadlines import Deadlines
from wscluster.workers.inbox import Inbox
from wscluster.workers.turns import Turns
from wscluster.workers.wire import Wire

if TYPE_CHECKING:
    from wscluster.config import WebSocket
    from wscluster.workers.bus import Bus
    from wscluster.workers.target import Target

SERVER_HEADER = "wscluster"
SLOW_CLOSE_SECONDS = 1.0
"""What a slow consumer gets to take its close frame before it is reset."""

logger = logging.getLogger("wscluster.worker")


class HandlerServer:
    """Runs one handler for every connection that the worker adopts.

    Args:
        target: The handler and the marked functions of its module.
        config: Limits and timeouts of the protocol.
        bus: Rooms of this worker.
        slot: The worker's slot.
    """

    def __init__(self, target: Target, config: WebSocket, bus: Bus, slot: int, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.bus = bus
        self.slot = slot
        self.max_size = config.ws_max_size
        self.max_queue = config.ws_max_queue
        # The parameters of `websockets`: windows of 4 KiB, a fifth of the default's memory.
        deflate = ServerPerMessageDeflateFactory(
            server_max_window_bits=12, client_max_window_bits=12, compress_settings={"memLevel": 5}
        )
        self.extensions = [deflate] if config.ws_per_message_deflate else []
        # The library logs two lines at INFO for each connection; they are of use only to somebody who debugs.
        self.protocol_logger = logging.getLogger("wscluster.protocol")
        self.protocol_logger.setLevel(logging.DEBUG if logger.isEnabledFor(logging.DEBUG) else logging.WARNING)
        self.adopted = 0
        self.messages_in = 0
        self.messages_out = 0
        self.connections: set[Wire] = set()
        self.draining = False
        self._target = target
        self._tasks: set[asyncio.Task[object]] = set()
        # An asynchronous process_request that is under way ends with its connection.
        self._answering: dict[Wire, asyncio.Task[object]] = {}
        self._idle: asyncio.Future[None] | None = None
        self.open_deadlines = Deadlines(loop, config.ws_open_timeout, Wire.handshake_timed_out)
        self.ping_deadlines: Deadlines[Wire] = Deadlines(loop, config.ws_ping_interval, self._ping)
        self.pong_deadlines: Deadlines[Wire] = Deadlines(loop, config.ws_ping_timeout, self._pong_missing)
        self.close_deadlines: Deadlines[Closing] = Deadlines(loop, config.ws_close_timeout, self._close_timed_out)
        self.slow_deadlines: Deadlines[Closing] = Deadlines(loop, SLOW_CLOSE_SECONDS, self._reset_slow)
        self.message_deadlines = Deadlines(loop, config.ws_message_timeout, Inbox.message_timed_out)
        self._all_deadlines: tuple[Deadlines[Any], ...] = (
            self.open_deadlines, self.ping_deadlines, self.pong_deadlines, self.close_deadlines, self.slow_deadlines,
            self.message_deadlines,
        )  # fmt: skip
        self.turns = Turns(loop, Wire.go_on)

    # A connection's life

    def adopt(self, fd: int, host: str, port: int) -> None:
        """Make a connection of the socket ``fd`` of the client ``host`` (empty: on a Unix socket)."""
        family = socket.AF_UNIX if not host else socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM, 0 if not host else socket.IPPROTO_TCP, fileno=fd)
        sock.setblocking(False)
        self.adopted += 1
        factory = functools.partial(Connection, self, (host, port) if host else None)
        self._spawn(self.loop.connect_accepted_socket(factory, sock), self._transport_made)

    def _transport_made(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.info("a client was gone before its connection began: %s", exc)
        self._check_idle()

    def connected(self, connection: Wire) -> None:
        """The transport is there: the opening handshake's time runs."""
        self.connections.add(connection)
        self.open_deadlines.add(connection)

    def disconnected(self, connection: Wire) -> None:
        """The transport has ended."""
        self.connections.discard(connection)
        for deadlines in self._all_deadlines:
            deadlines.discard(connection)
        self.turns.discard(connection)
        if isinstance(connection, Connection):
            self.bus.forget(connection)
        if (answering := self._answering.pop(connection, None)) is not None:
            answering.cancel()
        self._check_idle()

    # Opening handshake

    def answer(self, connection: Connection, request: Request) -> None:
        """Answer the request that begins a connection: process_request first, then the upgrade."""
        process_request = self._target.process_request
        if process_request is None:
            self._respond(connection, request, None)
            return
        try:
            result = process_request(connection, request)
        except Exception:
            self._respond(connection, request, _failed(connection))
            return
        if inspect.isawaitable(result):
            connection.transport.pause_reading()
            answering = self._spawn(self._answer_later(connection, request, result), self._task_done)
            self._answering[connection] = answering
        else:
            self._respond(connection, request, result)

    async def _answer_later(self, connection: Connection, request: Request, result: Awaitable[Response | None]) -> None:
        try:
            response = await result
        except Exception:
            response = _failed(connection)
        del self._answering[connection]
        if not connection.transport.is_closing():
            connection.transport.resume_reading()
        self._respond(connection, request, response)

    def _respond(self, connection: Connection, request: Request, response: Response | None) -> None:
        protocol = connection.protocol
        if protocol.state is not CONNECTING or protocol.eof_sent or connection.transport.is_closing():
            return
        if response is not None and not isinstance(response, Response):
            connection.logger.error(
                "process_request returned %r: a Response or None is wanted", type(response).__name__
            )
            response = protocol.reject(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal Server Error\n")
        if self.draining:
            response = protocol.reject(HTTPStatus.SERVICE_UNAVAILABLE, "Server is shutting down.\n")
        if response is None:
            response = protocol.accept(request)
        response.headers["Server"] = SERVER_HEADER
        self.open_deadlines.discard(connection)
        connection.send_response(response)
        if connection.is_open:
            self.ping_deadlines.add(connection)
            self._spawn(self._target.handler(connection), functools.partial(self._handled, connection))
            connection.read_after_handshake()

    def _handled(self, connection: Connection, task: asyncio.Task[object]) -> None:
        """The handler has ended: close its connection, with 1011 where it raised."""
        self._tasks.discard(task)
        code = CloseCode.NORMAL_CLOSURE
        if task.cancelled():
            code = CloseCode.GOING_AWAY
        elif (exc := task.exception()) is not None and not isinstance(exc, ConnectionClosed):
            connection.logger.error("handler failed", exc_info=exc)
            code = CloseCode.INTERNAL_ERROR
        connection.finish_reading()
        connection.start_close(code)
        self._check_idle()

    def _spawn(
        self, coroutine: Awaitable[object], done: Callable[[asyncio.Task[object]], None]
    ) -> asyncio.Task[object]:
        task: asyncio.Task[object] = self.loop.create_task(coroutine)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(done)
        return task

    def _task_done(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error("opening handshake failed", exc_info=exc)
        self._check_idle()

    # Deadlines

    def _ping(self, connection: Wire) -> None:
        if connection.is_open:
            connection.send_keepalive()
            self.ping_deadlines.add(connection)

    def _pong_missing(self, connection: Wire) -> None:
        connection.fail(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")

    def _close_timed_out(self, connection: Closing) -> None:
        connection.abort(TimeoutError("timed out while closing connection"))

    def _reset_slow(self, connection: Closing) -> None:
        if connection.unsent_bytes():
            connection.abort(TimeoutError("slow consumer"))

    # The end

    async def drain(self, code: int, reason: str, timeout: float) -> None:
        """Close every connection with ``code``; those that are still there after ``timeout`` seconds are reset."""
        self.draining = True
        for connection in list(self.connections):
            if connection.request is None:
                connection.transport.close()
            else:
                connection.start_close(code, reason)
        if await self._wait_idle(timeout):
            return
        logger.warning(
            "%d connections and %d handlers did not end within %g s: cancelled",
            len(self.connections),
            len(self._tasks),
            timeout,
        )
        await self.abort()

    async def abort(self) -> None:
        """Reset every connection and cancel every handler; waits half a second for them."""
        self.draining = True
        for task in list(self._tasks):
            task.cancel()
        for connection in list(self.connections):
            connection.abort()
        await self._wait_idle(0.5)

    def stop_deadlines(self) -> None:
        """Forget every deadline."""
        for deadlines in self._all_deadlines:
            deadlines.stop()

    async def _wait_idle(self, timeout: float) -> bool:
        if not self.connections and not self._tasks:
            return True
        self._idle = self.loop.create_future()
        await asyncio.wait([self._idle], timeout=timeout)
        return self._idle.done()

    def _check_idle(self) -> None:
        if self._idle is not None and not self.connections and not self._tasks and not self._idle.done():
            self._idle.set_result(None)


def _failed(connection: Connection) -> Response:
    connection.logger.error("process_request failed", exc_info=True)
    return connection.protocol.reject(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "Failed to open a WebSocket connection.\nSee server log for more information.\n",
    )
