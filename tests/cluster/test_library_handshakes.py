"""What `websockets.asyncio.server.serve` is given for the opening handshake does the same under ``wscluster serve``."""

import base64
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.cluster.library_support import Server, on_both


async def refused(connecting: connect) -> int:
    with pytest.raises(InvalidStatus) as caught:
        await connecting
    return caught.value.response.status_code


def test_a_token_in_the_query() -> None:
    async def play(server: Server) -> None:
        async with server.connect("/?token=good%20token") as ws:
            assert await ws.recv() == "Hello alice!"
        assert await refused(server.connect("/?token=bad")) == 401
        assert await refused(server.connect("/?token=good%20token&token=bad")) == 401
        assert await refused(server.connect("/")) == 401

    on_both("library_handshakes:greet_user", play, process_request="token_in_query")


def test_a_token_in_a_cookie() -> None:
    async def play(server: Server) -> None:
        status, page, headers = await server.get("/")
        assert (status, page) == (200, "<p>a page that sets the cookie</p>")
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        cookie = headers["Set-Cookie"].partition(";")[0]
        async with server.connect(additional_headers={"Cookie": cookie}) as ws:
            assert await ws.recv() == "Hello alice!"
        assert await refused(server.connect(additional_headers={"Cookie": "token=bad"})) == 401

    on_both("library_handshakes:greet_user", play, process_request="token_in_cookie")


def test_a_password_that_the_librarys_basic_auth_asks_for() -> None:
    def credentials(text: str) -> dict[str, Any]:
        return {"additional_headers": {"Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}}

    async def play(server: Server) -> None:
        async with server.connect(**credentials("alice:secret")) as ws:
            assert await ws.recv() == "Hello alice!"
        assert await refused(server.connect(**credentials("alice:wrong"))) == 401
        status, _, headers = await server.get("/")
        assert status == 401
        assert headers["WWW-Authenticate"] == 'Basic realm="the library\'s", charset="UTF-8"'

    on_both("library_handshakes:greet_user", play, process_request="ask_for_password")


def test_a_health_check_on_the_same_port() -> None:
    async def play(server: Server) -> None:
        assert (await server.get("/healthz"))[:2] == (200, "OK\n")
        async with server.connect() as ws:
            await ws.send("served")
            assert await ws.recv() == "served"

    on_both("library_handshakes:echo", play, process_request="health")


def test_what_a_program_puts_on_its_connection_stays_there() -> None:
    async def play(server: Server) -> None:
        async with server.connect(additional_headers={"X-Note": "a note"}) as ws:
            assert await ws.recv() == "a note read"

    on_both("library_handshakes:read_note", play, process_request="leave_a_note")


def test_a_header_in_the_response() -> None:
    async def play(server: Server) -> None:
        async with server.connect() as ws:
            assert ws.response is not None
            assert server.url == f"ws://{ws.response.headers['X-Served-For']}"

    on_both("library_handshakes:echo", play, process_response="add_header")


def test_a_subprotocol_that_the_program_chooses() -> None:
    async def play(server: Server) -> None:
        async with server.connect(subprotocols=["other", "chat.v2", "chat.v1"]) as ws:
            assert ws.subprotocol == "chat.v2"
        async with server.connect(subprotocols=["other"]) as ws:
            assert ws.subprotocol is None

    on_both("library_handshakes:echo", play, select_subprotocol="choose_subprotocol")
