"""HTTP Basic authentication (RFC 7617) of an opening handshake."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from websockets.exceptions import InvalidHeader
from websockets.headers import build_www_authenticate_basic, parse_authorization_basic

from wscluster.marks import realm_of

if TYPE_CHECKING:
    from websockets.http11 import Request, Response

    from wscluster.workers.connection import Connection


class Credentials:
    """A ``process_request`` that lets in whom ``check`` knows, and sets ``ws.username``.

    It does not compare passwords: how long that takes is the check's own concern.

    Args:
        check: Plain or async function of user name and password that returns True or False; it may be marked with the
            realm, the name of what is protected.
    """

    def __init__(self, check: Callable[[str, str], Any]) -> None:
        self._check = check
        self._challenge = build_www_authenticate_basic(realm_of(check))

    def __call__(self, connection: Connection, request: Request) -> Response | Awaitable[Response | None] | None:
        """Return None for good credentials, and the 401 for bad ones or none.

        Raises:
            TypeError: The check returned neither True nor False.
        """
        values = request.headers.get_all("Authorization")
        if not values:
            return self._refuse(connection, "Missing credentials\n")
        try:
            username, password = parse_authorization_basic(values[0])
        except InvalidHeader:
            return self._refuse(connection, "Unsupported credentials\n")
        if len(values) > 1:
            return self._refuse(connection, "Unsupported credentials\n")
        verdict = self._check(username, password)
        if inspect.isawaitable(verdict):
            return self._judge_later(connection, username, verdict)
        return self._judge(connection, username, verdict)

    async def _judge_later(self, connection: Connection, username: str, verdict: Awaitable[object]) -> Response | None:
        return self._judge(connection, username, await verdict)

    def _judge(self, connection: Connection, username: str, verdict: object) -> Response | None:
        if not isinstance(verdict, bool):
            raise TypeError(f"it returned {type(verdict).__name__!r}: True or False is wanted")
        if not verdict:
            return self._refuse(connection, "Invalid credentials\n")
        connection.username = username
        return None

    def _refuse(self, connection: Connection, text: str) -> Response:
        response = connection.respond(HTTPStatus.UNAUTHORIZED, text)
        response.headers["WWW-Authenticate"] = self._challenge
        return response
