"""The opening handshake (RFC 6455, 4.2): what the functions of the target say to a request, and the answer."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable
from http import HTTPStatus
from typing import TYPE_CHECKING

from websockets.http11 import Request, Response
from websockets.protocol import CONNECTING

from wscluster.workers.request_faults import fault_of

if TYPE_CHECKING:
    from wscluster.workers.connection import Connection
    from wscluster.workers.serve import HandlerServer
    from wscluster.workers.target import Target
    from wscluster.workers.wire import Wire

SERVER_HEADER = "wscluster"

logger = logging.getLogger("wscluster.worker")


class Handshakes:
    """Answers the request of each connection of ``server``, and tells the server of those that are open then.

    Args:
        target: Its marked functions are asked.
    """

    def __init__(self, server: HandlerServer, target: Target) -> None:
        self._server = server
        self._process_request = target.process_request
        # An asynchronous function that is under way ends with its connection.
        self._answering: dict[Wire, asyncio.Task[object]] = {}

    def answer(self, connection: Connection, request: Request) -> None:
        """Answer the request that begins a connection: process_request first, then the upgrade."""
        if (fault := fault_of(request)) is not None:
            self._respond(connection, request, connection.respond(HTTPStatus.BAD_REQUEST, f"{fault}\n"))
            return
        if self._process_request is None:
            self._respond(connection, request, None)
            return
        try:
            result = self._process_request(connection, request)
        except Exception:
            self._respond(connection, request, _failed(connection))
            return
        if inspect.isawaitable(result):
            connection.transport.pause_reading()
            answering = self._server.spawn(self._answer_later(connection, request, result), self._answered)
            self._answering[connection] = answering
        else:
            self._respond(connection, request, result)

    def forget(self, connection: Wire) -> None:
        """The connection has ended: so does what is under way for it."""
        if (answering := self._answering.pop(connection, None)) is not None:
            answering.cancel()

    async def _answer_later(self, connection: Connection, request: Request, result: Awaitable[Response | None]) -> None:
        try:
            response = await result
        except Exception:
            response = _failed(connection)
        del self._answering[connection]
        if not connection.transport.is_closing():
            connection.transport.resume_reading()
        self._respond(connection, request, response)

    def _answered(self, task: asyncio.Task[object]) -> None:
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error("opening handshake failed", exc_info=exc)
        self._server.finished(task)

    def _respond(self, connection: Connection, request: Request, response: Response | None) -> None:
        protocol = connection.protocol
        if protocol.state is not CONNECTING or protocol.eof_sent or connection.transport.is_closing():
            return
        if response is not None and not isinstance(response, Response):
            connection.logger.error(
                "process_request returned %r: a Response or None is wanted", type(response).__name__
            )
            response = protocol.reject(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal Server Error\n")
        if self._server.draining:
            response = protocol.reject(HTTPStatus.SERVICE_UNAVAILABLE, "Server is shutting down.\n")
        if response is None:
            response = protocol.accept(request)
        response.headers["Server"] = SERVER_HEADER
        self._server.open_deadlines.discard(connection)
        connection.send_response(response)
        if connection.is_open:
            self._server.opened(connection)
            connection.read_after_handshake()


def _failed(connection: Connection) -> Response:
    connection.logger.error("process_request failed", exc_info=True)
    return connection.protocol.reject(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "Failed to open a WebSocket connection.\nSee server log for more information.\n",
    )
