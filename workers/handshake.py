"""The opening handshake (RFC 6455, 4.2): what the functions of the target say to a request, and the answer.

The functions are asked in this order, each plain or async, as `websockets.asyncio.server.serve` asks them: basic_auth
and process_request before the upgrade, select_subprotocol in it, process_response after it.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from websockets.exceptions import InvalidHandshake, InvalidHeaderValue, NegotiationError
from websockets.http11 import Request, Response
from websockets.protocol import CONNECTING

from wscluster.handshake_options import NO_ORIGIN
from wscluster.workers.credentials import Credentials
from wscluster.workers.forwarded import HEADER, Forwarded
from wscluster.workers.request_faults import fault_of
from wscluster.workers.responses import escape_body, fault_of_response

if TYPE_CHECKING:
    from wscluster.config import Handshake
    from wscluster.workers.access import Access
    from wscluster.workers.connection import Connection
    from wscluster.workers.serve import HandlerServer
    from wscluster.workers.target import Target
    from wscluster.workers.wire import Wire

SERVER_HEADER = "wscluster"
FAILED = "Failed to open a WebSocket connection.\nSee server log for more information.\n"

Question = Callable[[Any, Any], Any]

logger = logging.getLogger("wscluster.worker")


class Handshakes:
    """Answers the request of each connection of ``server``, and tells the server of those that are open then.

    Args:
        target: Its functions are asked.
        config: What else is asked of a client.
        access: Gets a line for each answer.
    """

    def __init__(self, server: HandlerServer, target: Target, config: Handshake, access: Access | None) -> None:
        self._server = server
        self._access = access
        self._forwarded = Forwarded(config.forwarded_allow_ips) if config.proxy_headers else None
        self._origins = [None if text == NO_ORIGIN else text for text in config.allowed_origins]
        self._subprotocols = config.subprotocols
        questions: list[tuple[str, Question]] = []
        if target.basic_auth is not None:
            questions.append(("basic_auth", Credentials(target.basic_auth)))
        if target.process_request is not None:
            questions.append(("process_request", target.process_request))
        self._questions = tuple(questions)
        self._select_subprotocol = target.select_subprotocol
        self._process_response = target.process_response
        # An asynchronous function that is under way ends with its connection.
        self._answering: dict[Wire, asyncio.Task[object]] = {}

    def answer(self, connection: Connection, request: Request) -> None:
        """Answer the request that begins a connection."""
        if self._forwarded is not None and HEADER in request.headers:
            connection.peer = self._forwarded.client(connection.peer, request.headers.get_all(HEADER))
        if (fault := fault_of(request)) is not None:
            self._upgrade(connection, request, connection.respond(HTTPStatus.BAD_REQUEST, f"{fault}\n"))
        elif self._questions:
            self._ask(connection, request, self._questions)
        else:
            self._upgrade(connection, request, None)

    def forget(self, connection: Wire) -> None:
        """The connection has ended: so does what is under way for it."""
        if (answering := self._answering.pop(connection, None)) is not None:
            answering.cancel()

    # Before the upgrade

    def _ask(self, connection: Connection, request: Request, questions: Sequence[tuple[str, Question]]) -> None:
        """Ask until one of the functions has a response; without one the connection is upgraded."""
        role, question = questions[0]

        def go_on(response: Response | None) -> None:
            if response is None and len(questions) > 1:
                self._ask(connection, request, questions[1:])
            else:
                self._upgrade(connection, request, response)

        self._call(connection, role, functools.partial(question, connection, request), go_on)

    def _call(
        self, connection: Connection, role: str, function: Callable[[], Any], go_on: Callable[[Response | None], None]
    ) -> None:
        """Call ``function`` and go on with what it returns, now or when it has waited; with 500 where it fails."""
        try:
            result = function()
        except Exception:
            go_on(_failed(connection, role))
            return
        if inspect.isawaitable(result):
            task = self._server.spawn(self._call_later(connection, role, result, go_on), self._called)
            self._answering[connection] = task
        else:
            go_on(_checked(connection, role, result))

    async def _call_later(
        self, connection: Connection, role: str, result: Awaitable[Any], go_on: Callable[[Response | None], None]
    ) -> None:
        try:
            response = _checked(connection, role, await result)
        except asyncio.CancelledError:
            # Not by us, unless its connection has ended or will in a moment: the function gave up.
            if connection not in self._answering or self._server.aborting:
                raise
            response = _failed(connection, role)
        except Exception:
            response = _failed(connection, role)
        if self._answering.pop(connection, None) is None:
            return
        if not connection.transport.is_closing():
            connection.transport.resume_reading()
        go_on(response)

    def _called(self, task: asyncio.Task[object]) -> None:
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error("opening handshake failed", exc_info=exc)
        self._server.finished(task)

    # The upgrade

    def _upgrade(self, connection: Connection, request: Request, response: Response | None) -> None:
        if _is_over(connection):
            return
        if response is None:
            response = self._accept(connection, request)
        response.headers["Server"] = SERVER_HEADER
        if self._process_response is None:
            self._send(connection, request, response)
            return
        prepared = response
        self._call(
            connection,
            "process_response",
            functools.partial(self._process_response, connection, request, prepared),
            lambda another: self._send(connection, request, _sound(connection, another or prepared)),
        )

    def _accept(self, connection: Connection, request: Request) -> Response:
        protocol = connection.protocol
        failed: list[Response] = []
        if self._origins:
            protocol.origins = self._origins  # type: ignore[assignment]
        if self._subprotocols:
            protocol.available_subprotocols = self._subprotocols  # type: ignore[assignment]
        if self._select_subprotocol is not None:
            select = functools.partial(_select, connection, self._select_subprotocol, failed)
            protocol.select_subprotocol = select  # type: ignore[method-assign]
        response = protocol.accept(request)
        if self._select_subprotocol is not None:
            del protocol.select_subprotocol  # it holds the connection, which holds the protocol
        if failed:
            return failed[0]
        if response.status_code != 101:
            exc = protocol.handshake_exc
            if isinstance(exc, InvalidHeaderValue) and exc.name == "Sec-WebSocket-Version":
                # RFC 6455, 4.4: say which version is spoken.
                response.status_code, response.reason_phrase = 426, HTTPStatus.UPGRADE_REQUIRED.phrase
                response.headers["Upgrade"] = "websocket"
                response.headers["Sec-WebSocket-Version"] = "13"
            escape_body(response)
        return response

    def _send(self, connection: Connection, request: Request, response: Response) -> None:
        if _is_over(connection):
            return
        if self._server.refusing and response.status_code == 101:
            response = connection.protocol.reject(HTTPStatus.SERVICE_UNAVAILABLE, "Server is shutting down.\n")
        self._server.open_deadlines.discard(connection)
        connection.send_response(response)
        if self._access is not None:
            self._access.answered(connection, request, response)
        if connection.is_open:
            self._server.opened(connection)
            connection.read_after_handshake()


def _is_over(connection: Connection) -> bool:
    protocol = connection.protocol
    return protocol.state is not CONNECTING or protocol.eof_sent or connection.transport.is_closing()


def _select(
    connection: Connection, function: Callable[[Any, Any], Any], failed: list[Response], offered: Sequence[str]
) -> Any:
    """Ask ``function`` for a subprotocol; where it fails, the response goes into ``failed``."""
    try:
        chosen = function(connection, offered)
        if chosen is not None and chosen not in offered:
            # RFC 6455, 4.2.2: the client must fail a connection whose subprotocol it did not offer.
            connection.logger.error("select_subprotocol returned %r, which the client did not offer", chosen)
            failed.append(_refusal(connection))
    except InvalidHandshake:
        raise
    except Exception:
        failed.append(_failed(connection, "select_subprotocol"))
    if failed:
        raise NegotiationError("select_subprotocol failed")
    return chosen


def _checked(connection: Connection, role: str, result: Any) -> Response | None:
    """Return what the function of ``role`` returned, or 500 where that is nothing that can be sent."""
    if result is None:
        return None
    if not isinstance(result, Response):
        connection.logger.error("%s returned %r: a Response or None is wanted", role, type(result).__name__)
        return _refusal(connection)
    if (fault := fault_of_response(result)) is not None:
        connection.logger.error("%s returned a response that cannot be sent: %s", role, fault)
        return _refusal(connection)
    return result


def _sound(connection: Connection, response: Response) -> Response:
    """Return ``response`` as process_response left it, or 500 where it cannot be sent."""
    if (fault := fault_of_response(response)) is None:
        return response
    connection.logger.error("process_response made a response that cannot be sent: %s", fault)
    return _refusal(connection)


def _failed(connection: Connection, role: str) -> Response:
    connection.logger.error("%s failed", role, exc_info=True)
    return _refusal(connection)


def _refusal(connection: Connection) -> Response:
    return connection.protocol.reject(HTTPStatus.INTERNAL_SERVER_ERROR, FAILED)
