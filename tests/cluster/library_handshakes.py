"""Opening handshakes in the shapes that the documentation of `websockets` shows: none of them knows wscluster."""

import asyncio
import http
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection, basic_auth
from websockets.http11 import Request, Response


async def echo(websocket: ServerConnection) -> None:
    async for message in websocket:
        await websocket.send(message)


def user_of(token: str | None) -> str | None:
    return {"good token": "alice"}.get(token or "")


def token_in_query(connection: ServerConnection, request: Request) -> Response | None:
    tokens = parse_qs(urlsplit(request.path).query).get("token", [])
    return _admit(connection, user_of(tokens[0] if len(tokens) == 1 else None), "token")


def token_in_cookie(connection: ServerConnection, request: Request) -> Response | None:
    if "Upgrade" not in request.headers:
        response = connection.respond(http.HTTPStatus.OK, "<p>a page that sets the cookie</p>")
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "text/html; charset=utf-8"
        response.headers["Set-Cookie"] = 'token="good token"; SameSite=Strict'
        return response
    cookie = SimpleCookie(request.headers.get("Cookie", "")).get("token")
    return _admit(connection, user_of(cookie.value if cookie else None), "cookie")


def _admit(connection: ServerConnection, user: str | None, what: str) -> Response | None:
    if user is None:
        return connection.respond(http.HTTPStatus.UNAUTHORIZED, f"invalid {what}\n")
    connection.username = user
    return None


ask_for_password = basic_auth(realm="the library's", credentials=("alice", "secret"))


async def greet_user(websocket: ServerConnection) -> None:
    await websocket.send(f"Hello {websocket.username}!")
    await echo(websocket)


def health(connection: ServerConnection, request: Request) -> Response | None:
    if request.path == "/healthz":
        return connection.respond(http.HTTPStatus.OK, "OK\n")
    return None


async def leave_a_note(connection: Any, request: Request) -> None:
    """Puts what later code needs on the connection."""
    await asyncio.sleep(0)
    connection.note = request.headers.get("X-Note", "none")


async def read_note(websocket: Any) -> None:
    websocket.read = "read"
    await websocket.send(f"{websocket.note} {websocket.read}")


def add_header(connection: ServerConnection, request: Request, response: Response) -> None:
    response.headers["X-Served-For"] = request.headers["Host"]


def choose_subprotocol(connection: ServerConnection, subprotocols: list[str]) -> str | None:
    return next((name for name in subprotocols if name.startswith("chat.")), None)
