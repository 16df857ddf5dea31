"""The functions that are asked in an opening handshake mean what they mean to the library, and fail without harm."""

import asyncio
import base64
import http
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
from websockets.asyncio.server import basic_auth as library_basic_auth
from websockets.exceptions import InvalidStatus, NegotiationError
from websockets.http11 import Request, Response

import wscluster
from tests.wire.harness import BINARY, close_frame, frame, ours, raw, read_rest, request, run, theirs, until
from wscluster.config import Handshake
from wscluster.workers.connection import Connection


async def drop(ws: Any) -> None:
    async for _ in ws:
        pass


async def say_subprotocol(ws: Any) -> None:
    await ws.send(str(ws.subprotocol))


async def say_user(ws: Any) -> None:
    await ws.send(str(ws.username))


async def never(ws: Any) -> None:
    raise AssertionError("the handler was called")


async def answer(port: int, head: bytes) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and, of a refusal, the body of the answer."""
    async with raw(port) as (reader, writer):
        writer.write(head)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        status, headers = int(lines[0].split()[1]), dict(line.split(": ", 1) for line in lines[1:])
        return status, headers, b"" if status == 101 else await read_rest(reader)


def credentials(text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    return "Authorization: Basic " + base64.b64encode(data).decode()


def asynchronous(function: Callable[..., Any]) -> Callable[..., Any]:
    async def later(*arguments: Any) -> Any:
        await asyncio.sleep(0)
        return function(*arguments)

    return later


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "wscluster.connection"]


# process_response


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("wanted", ["changed", "replaced", "refused"])
def test_process_response_means_what_it_means_to_the_library(wanted: str, later: bool) -> None:
    def look(ws: Any, request: Request, response: Response) -> Response | None:
        assert request.path == "/path"
        assert response.status_code == 101
        if wanted == "refused":
            return ws.respond(http.HTTPStatus.FORBIDDEN, "not today\n")  # type: ignore[no-any-return]
        response.headers["X-Seen"] = "yes"
        if wanted == "replaced":
            return Response(101, "Switching Protocols", response.headers)
        return None

    async def main() -> None:
        functions = {"process_response": asynchronous(look) if later else look}
        async with theirs(drop, functions=functions) as port:
            expected = await answer(port, request())
        async with ours(drop, functions=functions) as served:
            found = await answer(served.port, request())
            if wanted != "refused":
                async with served.connect() as client:
                    assert client.response is not None
                    assert client.response.headers["X-Seen"] == "yes"
        for one in (expected, found):
            del one[1]["Date"]
            one[1].pop("Server", None)
        assert found == expected

    run(main())


def test_process_response_sees_refusals_and_pages_too() -> None:
    seen: list[tuple[str, int]] = []

    def look(_ws: Connection, request: Request, response: Response) -> None:
        seen.append((request.path, response.status_code))
        response.headers["X-Seen"] = "yes"

    def page(ws: Connection, request: Request) -> Response | None:
        return ws.respond(200, "page\n") if "Upgrade" not in request.headers else None

    async def main() -> None:
        async with ours(never, page, functions={"process_response": look}) as served:
            status, headers, body = await answer(served.port, request(without="Upgrade"))
            assert (status, headers["X-Seen"], body) == (200, "yes", b"page\n")
            status, headers, _ = await answer(served.port, request(without="Sec-WebSocket-Key"))
            assert (status, headers["X-Seen"]) == (400, "yes")
        assert seen == [("/path", 200), ("/path", 400)]

    run(main())


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda _: 1 / 0, "process_response failed"),
        (lambda _: 5, "process_response returned 'int': a Response or None is wanted"),
        (
            lambda response: setattr(response, "reason_phrase", "a\r\nX: b"),
            r"process_response made a response that cannot be sent: its reason phrase is 'a\r\nX: b'",
        ),
        (
            lambda response: setattr(response, "body", "text"),
            "process_response made a response that cannot be sent: its body is 'str', not bytes",
        ),
        (
            lambda response: setattr(response, "status_code", 7),
            "process_response made a response that cannot be sent: its status is 7",
        ),
    ],
)
def test_a_process_response_that_fails_is_a_500_in_the_log(
    spoil: Callable[[Response], Any], line: str, later: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def look(_ws: Connection, _request: Request, response: Response) -> Any:
        return spoil(response)

    async def main() -> None:
        async with ours(never, functions={"process_response": asynchronous(look) if later else look}) as served:
            status, _, body = await answer(served.port, request())
            assert status == 500
            assert b"See server log" in body

    run(main())
    (error,) = errors(caplog)
    assert error.startswith(f"{line} (connection ")


# process_request


@pytest.mark.parametrize(
    ("response", "fault"),
    [
        (
            lambda ws: Response(200, "OK", ws.respond(200, "").headers, cast("Any", "text")),
            "its body is 'str', not bytes",
        ),
        (lambda ws: Response(99, "No", ws.respond(200, "").headers), "its status is 99"),
        (lambda ws: Response(200, "OK\r\nSet-Cookie: a", ws.respond(200, "").headers), "its reason phrase is "),
    ],
)
def test_a_response_that_cannot_be_sent_is_a_500_in_the_log(
    response: Callable[[Any], Response], fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with ours(never, lambda ws, _request: response(ws)) as served:
            status, headers, _ = await answer(served.port, request())
            assert status == 500
            assert "Set-Cookie" not in headers

    run(main())
    (error,) = errors(caplog)
    assert error.startswith(f"process_request returned a response that cannot be sent: {fault}")


def test_a_function_that_was_cancelled_by_something_of_its_own_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    async def give_up(_ws: Connection, _request: Request) -> None:
        raise asyncio.CancelledError

    async def main() -> None:
        async with ours(never, give_up) as served:
            assert (await answer(served.port, request()))[0] == 500

    run(main())
    (error,) = errors(caplog)
    assert error.startswith("process_request failed (connection ")


@pytest.mark.parametrize("role", ["process_request", "process_response", "basic_auth"])
def test_a_function_that_hangs_is_cancelled_when_the_handshakes_time_is_over(role: str) -> None:
    async def main() -> None:
        cancelled = asyncio.Event()

        async def hang(*_: Any) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        process_request = hang if role == "process_request" else None
        functions = {} if role == "process_request" else {role: hang}
        async with (
            ours(never, process_request, functions=functions, ws_open_timeout=0.05) as served,
            raw(served.port) as (reader, writer),
        ):
            writer.write(request(credentials("a:b")))
            assert await read_rest(reader) in (b"", b"<reset>")
            await cancelled.wait()
            await until(lambda: not served.server.connections)

    run(main())


@pytest.mark.parametrize("role", ["process_request", "process_response", "basic_auth"])
def test_a_client_that_is_gone_meanwhile_cancels_the_function(role: str) -> None:
    began = time.monotonic()

    async def main() -> None:
        asked, cancelled = asyncio.Event(), asyncio.Event()

        async def hang(*_: Any) -> None:
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        process_request = hang if role == "process_request" else None
        functions = {} if role == "process_request" else {role: hang}
        async with ours(never, process_request, functions=functions, ws_open_timeout=20) as served:
            async with raw(served.port) as (_, writer):
                writer.write(request(credentials("a:b")))
                await asked.wait()
                writer.transport.abort()
            await cancelled.wait()
            await until(lambda: not served.server.connections)

    run(main())
    assert time.monotonic() - began < 10


def test_frames_that_come_while_a_function_thinks_are_read_afterwards() -> None:
    async def main() -> None:
        thinking, go_on = asyncio.Event(), asyncio.Event()
        received: list[Any] = []

        async def think(_ws: Connection, _request: Request) -> None:
            thinking.set()
            await go_on.wait()

        async def take(ws: Connection) -> None:
            received.extend([message async for message in ws])

        async with ours(take, think) as served, raw(served.port) as (reader, writer):
            writer.write(request())
            await thinking.wait()
            connection = await served.only()
            messages = [bytes([number]) * 40_000 for number in range(5)]
            writer.write(b"".join(frame(BINARY, message) for message in messages) + close_frame(1000))
            await until(lambda: len(connection._partial) > 32768)
            go_on.set()
            await read_rest(reader)
            assert received == messages

    run(main())


# select_subprotocol, --subprotocols

OFFERS = [
    (), ("Sec-WebSocket-Protocol: chat",), ("Sec-WebSocket-Protocol: v2, chat",),
    ("Sec-WebSocket-Protocol: v2", "Sec-WebSocket-Protocol: v1"), ("Sec-WebSocket-Protocol: other",),
]  # fmt: skip


@pytest.mark.parametrize("offer", OFFERS)
def test_subprotocols_are_chosen_as_by_the_library(offer: tuple[str, ...]) -> None:
    async def main() -> None:
        async with theirs(say_subprotocol, functions={"subprotocols": ["chat", "v1"]}) as port:
            expected = await answer(port, request(*offer))
        async with ours(say_subprotocol, asked=Handshake(subprotocols=("chat", "v1"))) as served:
            found = await answer(served.port, request(*offer))
        assert (found[0], found[1].get("Sec-WebSocket-Protocol")) == (
            expected[0],
            expected[1].get("Sec-WebSocket-Protocol"),
        )

    run(main())


@pytest.mark.parametrize("offer", OFFERS)
def test_select_subprotocol_chooses_as_for_the_library(offer: tuple[str, ...]) -> None:
    def select(ws: Any, subprotocols: list[str]) -> str | None:
        assert ws.request.path == "/path"
        if "other" in subprotocols:
            raise NegotiationError("not that one")
        return "v1" if "v1" in subprotocols else None

    async def main() -> None:
        functions = {"select_subprotocol": select}
        async with theirs(say_subprotocol, functions=functions) as port:
            expected = await answer(port, request(*offer))
        async with ours(say_subprotocol, functions=functions) as served:
            found = await answer(served.port, request(*offer))
        name = "Sec-WebSocket-Protocol"
        assert (found[0], found[1].get(name)) == (expected[0], expected[1].get(name))
        if found[0] == 400:
            assert found[2] == expected[2]

    run(main())


@pytest.mark.parametrize(
    ("chosen", "line"),
    [
        (lambda: 1 / 0, "select_subprotocol failed"),
        (lambda: "v9", "select_subprotocol returned 'v9', which the client did not offer"),
        (lambda: 5, "select_subprotocol returned 5, which the client did not offer"),
    ],
)
def test_a_select_subprotocol_that_fails_is_a_500_in_the_log(
    chosen: Callable[[], Any], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with ours(never, functions={"select_subprotocol": lambda _ws, _offered: chosen()}) as served:
            status, headers, _ = await answer(served.port, request("Sec-WebSocket-Protocol: v1"))
            assert status == 500
            assert "Sec-WebSocket-Protocol" not in headers

    run(main())
    (error,) = errors(caplog)
    assert error.startswith(f"{line} (connection ")


# basic_auth


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    "lines",
    [
        (), (credentials("ann:secret"),), (credentials("ann:other"),), (credentials("bob:secret"),),
        ("Authorization: Bearer abc",), ("Authorization: Basic",), ("Authorization: Basic !!",),
        (credentials("no colon"),), (credentials("ann:secret").replace("Basic", "bAsIc"),),
        (credentials("ann:sec:ret"),), (credentials(b"ann:\xff\xfe"),), (credentials("j\u00f6rg:\u20ac"),),
        ("Authorization: Basic Zg",),
    ],
)  # fmt: skip
def test_basic_auth_lets_in_whom_the_library_lets_in(lines: tuple[str, ...], later: bool) -> None:
    good = {("ann", "secret"), ("ann", "sec:ret"), ("j\u00f6rg", "\u20ac")}

    def check(username: str, password: str) -> bool:
        return (username, password) in good

    async def main() -> None:
        asks = library_basic_auth(realm="the lobby", check_credentials=check)
        async with theirs(say_user, functions={"process_request": asks}) as port:
            expected = await answer(port, request(*lines))
        marked = wscluster.basic_auth(realm="the lobby")(asynchronous(check) if later else check)
        async with ours(say_user, functions={"basic_auth": marked}) as served:
            found = await answer(served.port, request(*lines))
        assert found[0] == expected[0]
        assert found[1].get("WWW-Authenticate") == expected[1].get("WWW-Authenticate")
        assert found[2] == expected[2]
        if not lines:
            assert found[1]["WWW-Authenticate"] == 'Basic realm="the lobby", charset="UTF-8"'

    run(main())


def test_basic_auth_sets_the_username_and_comes_before_process_request() -> None:
    seen: list[str | None] = []

    def look(ws: Connection, _request: Request) -> None:
        seen.append(ws.username)

    async def main() -> None:
        async with ours(say_user, look, functions={"basic_auth": lambda user, _: user == "ann"}) as served:
            async with served.connect(additional_headers={"Authorization": "Basic YW5uOng="}) as client:
                assert await client.recv() == "ann"
            assert (await answer(served.port, request()))[0] == 401
        assert seen == ["ann"]

    run(main())


def test_the_basic_auth_of_the_library_is_a_process_request() -> None:
    async def main() -> None:
        asks = wscluster.process_request(library_basic_auth(realm="r", credentials=("ann", "x")))
        async with ours(say_user, asks) as served:
            async with served.connect(additional_headers={"Authorization": "Basic YW5uOng="}) as client:
                assert await client.recv() == "ann"
            with pytest.raises(InvalidStatus) as caught:
                await served.connect()
            assert caught.value.response.status_code == 401

    run(main())


def test_two_authorization_headers_are_no_credentials() -> None:
    async def main() -> None:
        async with ours(never, functions={"basic_auth": lambda *_: True}) as served:
            status, headers, _ = await answer(served.port, request(credentials("a:b"), credentials("c:d")))
            assert status == 401
            assert "WWW-Authenticate" in headers

    run(main())


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("result", ["raises", None, 1, "yes"])
def test_a_basic_auth_that_fails_lets_nobody_in(result: Any, later: bool, caplog: pytest.LogCaptureFixture) -> None:
    def check(_username: str, _password: str) -> Any:
        if result == "raises":
            raise OSError("no database")
        return result

    async def main() -> None:
        marked = asynchronous(check) if later else check
        async with ours(never, functions={"basic_auth": marked}) as served:
            assert (await answer(served.port, request(credentials("ann:x"))))[0] == 500

    run(main())
    (error,) = errors(caplog)
    assert error.startswith("basic_auth failed (connection ")
    assert "no database" in caplog.text or "True or False is wanted" in caplog.text
    assert "ann:x" not in caplog.text


# Origins

ALLOWED = ("https://example.com", "http://localhost:3000")


@pytest.mark.parametrize(
    ("allowed", "lines", "status"),
    [
        ((), (), 101),
        ((), ("Origin: https://evil.example",), 101),
        (ALLOWED, ("Origin: https://example.com",), 101),
        (ALLOWED, ("Origin: http://localhost:3000",), 101),
        (ALLOWED, ("Origin: http://localhost",), 403),
        (ALLOWED, ("Origin: https://evil-example.com",), 403),
        (ALLOWED, ("Origin: https://example.com.evil.org",), 403),
        (ALLOWED, ("Origin: https://sub.example.com",), 403),
        (ALLOWED, ("Origin: https://evil.org/https://example.com",), 403),
        (ALLOWED, ("Origin: https://example.com@evil.org",), 403),
        (ALLOWED, ("Origin: http://example.com",), 403),
        (ALLOWED, ("Origin: HTTPS://EXAMPLE.COM",), 403),
        (ALLOWED, ("Origin: https://example.com:443",), 403),
        (ALLOWED, ("Origin: https://example.com/",), 403),
        (ALLOWED, ("Origin: https://example.com https://evil.org",), 403),
        (ALLOWED, ("Origin: https://example.com, https://evil.org",), 403),
        (ALLOWED, ("Origin: https://example.com", "Origin: https://evil.org"), 400),
        (ALLOWED, ("Origin: https://example.com", "Origin: https://example.com"), 400),
        (ALLOWED, ("Origin:",), 403),
        (ALLOWED, (), 403),
        (ALLOWED, ("Origin: null",), 403),
        (ALLOWED, ("Origin: none",), 403),
        ((*ALLOWED, "null"), ("Origin: null",), 101),
        ((*ALLOWED, "null"), (), 403),
        ((*ALLOWED, "none"), (), 101),
        ((*ALLOWED, "none"), ("Origin: none",), 403),
        ((*ALLOWED, "none"), ("Origin: null",), 403),
        ((*ALLOWED, "none"), ("Origin: https://evil.org",), 403),
    ],
)
def test_only_pages_of_allowed_origins_connect(allowed: tuple[str, ...], lines: tuple[str, ...], status: int) -> None:
    async def main() -> None:
        async with ours(drop, asked=Handshake(allowed_origins=allowed)) as served:
            assert (await answer(served.port, request(*lines)))[0] == status

    run(main())


# What a client may put into a refusal, and versions


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (request().replace(b"GET", b"G\x1b[2JT\x00"), 405),
        (request("Origin: \x80\x9b31m\xff"), 403),
        (request("Upgrade: \x9b31m", without="Upgrade"), 400),
        (request("Sec-WebSocket-Key: \x9b31m", without="Sec-WebSocket-Key"), 400),
    ],
)
def test_no_control_character_of_a_client_comes_back_raw(head: bytes, status: int) -> None:
    async def main() -> None:
        async with (
            ours(never, asked=Handshake(allowed_origins=ALLOWED)) as served,
            raw(served.port) as (reader, writer),
        ):
            writer.write(head)
            found = await read_rest(reader)
            head_of_it, _, body = found.partition(b"\r\n\r\n")
            assert head_of_it.startswith(f"HTTP/1.1 {status} ".encode())
            text = body.decode()
            assert "\\x" in text
            assert all(character.isprintable() for character in text.replace("\n", ""))
            assert f"Content-Length: {len(body)}\r\n".encode() in head_of_it + b"\r\n"

    run(main())


@pytest.mark.parametrize("version", ["8", "0", "14", "thirteen", "13, 8"])
def test_another_version_is_told_which_one_is_spoken(version: str) -> None:
    async def main() -> None:
        async with ours(never) as served:
            head = request(f"Sec-WebSocket-Version: {version}", without="Sec-WebSocket-Version")
            status, headers, _ = await answer(served.port, head)
            assert (status, headers["Sec-WebSocket-Version"], headers["Upgrade"]) == (426, "13", "websocket")

    run(main())


# The true client


@pytest.mark.parametrize(
    ("asked", "lines", "client"),
    [
        ({}, ("X-Forwarded-For: 203.0.113.7",), ("203.0.113.7", 0)),
        ({}, ("X-Forwarded-For: 6.6.6.6, 203.0.113.7, 127.0.0.1",), ("203.0.113.7", 0)),
        ({}, ("X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 203.0.113.7"), ("203.0.113.7", 0)),
        ({}, ("X-Forwarded-For: \x1b[2J",), None),
        ({}, (), None),
        ({"proxy_headers": False}, ("X-Forwarded-For: 203.0.113.7",), None),
        ({"forwarded_allow_ips": ("10.0.0.0/8",)}, ("X-Forwarded-For: 203.0.113.7",), None),
        ({"forwarded_allow_ips": ("*",)}, ("X-Forwarded-For: 6.6.6.6, 203.0.113.7",), ("6.6.6.6", 0)),
    ],
)
def test_the_client_is_whom_a_believed_proxy_names(
    asked: dict[str, Any], lines: tuple[str, ...], client: tuple[str, int] | None
) -> None:
    seen: list[Any] = []

    async def main() -> None:
        def look(ws: Connection, _request: Request) -> Response:
            seen.extend((ws.client, ws.remote_address))
            return ws.respond(200, "")

        async with ours(never, look, asked=Handshake(**asked)) as served, raw(served.port) as (reader, writer):
            mine = writer.get_extra_info("sockname")[:2]
            writer.write(request(*lines).replace(b"\x1b", b"\x9b"))
            await read_rest(reader)
            assert seen == [client or mine] * 2

    run(main())


# The access log


def access_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "wscluster.access"]


def test_the_access_log_has_a_line_for_the_answer_and_one_for_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "wscluster.access")

    async def talk(ws: Connection) -> None:
        await ws.send("one")
        await ws.send(["t", "wo"])
        async for message in ws:
            await ws.send(message)

    async def main() -> None:
        async with ours(talk, access_log=True) as served:
            async with served.connect(compression=None) as client:
                host, port = client.local_address[:2]
                connection = await served.only()
                assert [await client.recv(), await client.recv()] == ["one", "two"]
                for message in ("a", "b" * 70_000, "c"):
                    await client.send(message)
                    await client.recv()
                await client.send(["fragment", "s"])
                assert await client.recv() == "fragments"
                connection.deliver(b"\x81\x01x\x81\x01y", 2, False, 10)
                await client.close(4001, "bye")
            await until(lambda: not served.server.connections)
            first, last = access_lines(caplog)
            who = f"(connection {connection.id})"
            assert first == f'{host}:{port} "GET /path" 101 {who}'
            begin, _, end = last.partition(" after ")
            assert begin == f'{host}:{port} "/path" closed with 4001'
            seconds, _, counts = end.partition(" s, ")
            assert 0 < float(seconds) < 20
            assert counts == f"4 messages in, 8 out {who}"

    run(main())


def test_the_access_log_tells_refusals_and_clients_without_a_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "wscluster.access")

    async def main() -> None:
        async with ours(never, access_log=True, ws_open_timeout=0.05) as served:
            async with raw(served.port) as (reader, writer):
                writer.write(request(without="Upgrade"))
                await read_rest(reader)
            await until(lambda: not served.server.connections)
            async with raw(served.port) as (reader, writer):
                writer.write(b"GET / HT")
                await read_rest(reader)
            await until(lambda: not served.server.connections)
        refused, silent = access_lines(caplog)
        assert '"GET /path" 426 (connection ' in refused
        assert '"-" - no request (connection ' in silent

    run(main())


def test_without_an_access_log_nothing_is_logged_of_a_connection(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "wscluster")

    async def main() -> None:
        async with ours(drop) as served:
            async with served.connect():
                pass
            await until(lambda: not served.server.connections)

    run(main())
    assert access_lines(caplog) == []
