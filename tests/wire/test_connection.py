"""A handler's connection, against `websockets` itself and by what a program sees of it."""

import asyncio
import contextlib
import logging
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConcurrencyError, ConnectionClosed, ConnectionClosedError, ConnectionClosedOK
from websockets.frames import Close

from tests.wire.harness import (
    BINARY,
    CLOSE,
    CONT,
    DEFLATE,
    PING,
    PONG,
    TEXT,
    close_frame,
    frame,
    ours,
    raw,
    read_frame,
    read_rest,
    request,
    run,
    theirs,
    until,
    upgraded,
)
from wscluster.packets import Offered
from wscluster.workers.connection import Connection
from wscluster.workers.frames import build_frame


def without_date_and_server(head: bytes) -> list[bytes]:
    return [line for line in head.split(b"\r\n") if not line.startswith((b"Date:", b"Server:"))]


# The same bytes to both servers: a script is a list of what to send and how many frames to await before the next.
Script = list[tuple[bytes, int]]


async def play(port: int, head: bytes, script: Script, how: str, half_close: bool) -> object:
    """Return all that the server sent."""
    async with raw(port) as (reader, writer):

        async def send(data: bytes) -> None:
            if how != "byte by byte":
                writer.write(data)
                return
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in data:
                if writer.is_closing():  # the server has heard enough
                    return
                writer.write(bytes((byte,)))
                await asyncio.sleep(0)

        if how == "with the handshake":
            (first, wait), *script = script
            script = [(b"", wait), *script]
            head += first
        await send(head)
        answer = without_date_and_server(await reader.readuntil(b"\r\n\r\n"))
        frames = []
        for data, wait in script:
            await send(data)
            for _ in range(wait):
                frames.append(await read_frame(reader))
        if half_close:
            writer.write_eof()
        return answer, frames, await read_rest(reader)


def how_it_closed(ws: Any, exc: ConnectionClosed) -> tuple[object, ...]:
    return type(exc), exc.rcvd, exc.sent, exc.rcvd_then_sent, ws.close_code, ws.close_reason


async def compare(
    head: bytes, script: Script, how: str = "at once", half_close: bool = False, **config: Any
) -> tuple[Any, Any]:
    """Play ``script`` to both servers' echo; returns what both did, which must be the same."""
    ends: asyncio.Queue[object] = asyncio.Queue()

    async def echo(ws: Any) -> None:
        try:
            while True:
                await ws.send(await ws.recv())
        except ConnectionClosed as exc:
            ends.put_nowait(how_it_closed(ws, exc))

    async with theirs(echo, **config) as port:
        # The library answers frames that come with the handshake before the handshake.
        their_way = "at once" if how == "with the handshake" else how
        expected = await play(port, head, script, their_way, half_close), await ends.get()
    async with ours(echo, **config) as served:
        found = await play(served.port, head, script, how, half_close), await ends.get()
    assert found == expected
    return found


BYE = (close_frame(1000), 0)


def echoed(*messages: bytes) -> Script:
    return [*((message, 1) for message in messages), BYE]


def deflated(payload: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-12)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")


SCRIPTS: dict[str, Script] = {
    "text": echoed(frame(TEXT, "größer".encode())),
    "binary": echoed(frame(BINARY, bytes(range(256))[:100])),
    "empty": echoed(frame(TEXT), frame(BINARY)),
    "125 bytes": echoed(frame(TEXT, b"x" * 125)),
    "126 bytes": echoed(frame(TEXT, b"x" * 126)),
    "three messages in one segment": [(frame(TEXT, b"a") + frame(BINARY, b"b") + frame(TEXT, b"c"), 3), BYE],
    "two messages with close behind": [(frame(TEXT, b"a") + frame(TEXT, b"b") + close_frame(1000), 0)],
    "fragmented": echoed(frame(TEXT, b"a", fin=False) + frame(CONT, b"b", fin=False) + frame(CONT, b"c")),
    "fragmented within a character": echoed(frame(TEXT, b"\xe2\x82", fin=False) + frame(CONT, b"\xac")),
    "fragmented of nothing": echoed(frame(BINARY, fin=False) + frame(CONT, fin=False) + frame(CONT)),
    "fragmented, then whole": echoed(frame(TEXT, b"a", fin=False) + frame(CONT, b"b"), frame(TEXT, b"c")),
    "ping": [(frame(PING, b"hello"), 1), BYE],
    "empty ping": [(frame(PING), 1), BYE],
    "ping between fragments": [(frame(TEXT, b"a", fin=False) + frame(PING, b"p") + frame(CONT, b"b"), 2), BYE],
    "unsolicited pong": [(frame(PONG, b"?") + frame(TEXT, b"a"), 1), BYE],
    "unmasked": [(frame(TEXT, b"abc", mask=None), 0)],
    "unmasked ping": [(frame(PING, b"abc", mask=None), 0)],
    "the first two bytes of an unmasked frame": [(frame(TEXT, b"abc", mask=None)[:2], 0)],
    "message, then unmasked": [(frame(TEXT, b"abc"), 1), (frame(TEXT, b"abc", mask=None), 0)],
    "reserved opcode 3": [(frame(3, b"abc"), 0)],
    "reserved opcode 11": [(frame(11, b"abc"), 0)],
    "reserved bit 1": [(frame(TEXT, b"abc", rsv=4), 0)],
    "reserved bit 2": [(frame(TEXT, b"abc", rsv=2), 0)],
    "reserved bit 3": [(frame(TEXT, b"abc", rsv=1), 0)],
    "continuation of nothing": [(frame(CONT, b"abc"), 0)],
    "text within a fragmented message": [(frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 0)],
    "fragmented ping": [(frame(PING, b"a", fin=False), 0)],
    "long ping": [(frame(PING, b"a" * 126), 0)],
    "invalid UTF-8": [(frame(TEXT, b"ab\xff"), 0)],
    "invalid UTF-8 behind a message": [(frame(TEXT, b"ab"), 1), (frame(TEXT, b"\xed\xa0\x80"), 0)],
    "UTF-8 that ends early": [(frame(TEXT, b"ab\xe2\x82"), 0)],
    "invalid UTF-8 in fragments": [(frame(TEXT, b"ab", fin=False) + frame(CONT, b"\xff"), 0)],
    "close 1000": [(close_frame(1000, "bye"), 0)],
    "close 1001": [(close_frame(1001), 0)],
    "close 3000": [(close_frame(3000, "größer"), 0)],
    "close 4999": [(close_frame(4999), 0)],
    "close without a code": [(frame(CLOSE), 0)],
    "close 1005": [(close_frame(1005), 0)],
    "close 999": [(close_frame(999), 0)],
    "close 1004": [(close_frame(1004), 0)],
    "close of one byte": [(frame(CLOSE, b"\x03"), 0)],
    "close with invalid UTF-8": [(frame(CLOSE, b"\x03\xe8\xff"), 0)],
    "close within a fragmented message": [(frame(TEXT, b"a", fin=False) + close_frame(1000), 0)],
}
LONG_SCRIPTS: dict[str, Script] = {
    "65535 bytes": echoed(frame(BINARY, b"x" * 65535)),
    "65536 bytes": echoed(frame(TEXT, b"x" * 65536)),
    "1 MiB": echoed(frame(BINARY, b"x" * 2**20)),
    "1 MiB and a byte": [(frame(BINARY, b"x" * (2**20 + 1)), 0)],
    "1 MiB and a byte in fragments": [(frame(TEXT, b"x" * 2**20, fin=False) + frame(CONT, b"y"), 0)],
    "a length that cannot be": [(b"\x82\xff" + b"\xff" * 8 + b"mask", 0)],
    "the header of a message that is too big": [(frame(BINARY, b"x" * (2**20 + 1))[:14], 0)],
}
COMPRESSED_SCRIPTS: dict[str, Script] = {
    "compressed": echoed(frame(TEXT, deflated(b"hello " * 100), rsv=4)),
    "compressed and not": echoed(
        frame(TEXT, deflated(b"hello " * 100), rsv=4),
        frame(TEXT, b"plain"),
        frame(BINARY, deflated(b"hello " * 100), rsv=4),
    ),
    "compressed in fragments": echoed(
        frame(TEXT, deflated(b"hello " * 100)[:5], rsv=4, fin=False) + frame(CONT, deflated(b"hello " * 100)[5:])
    ),
    "compressed empty message": echoed(frame(TEXT, b"\x00", rsv=4)),
    "compressed bomb": [(frame(TEXT, deflated(b"x" * 2**21), rsv=4), 0)],
    "compressed garbage": [(frame(TEXT, b"\xff\xff\xff", rsv=4), 0)],
    "compressed invalid UTF-8": [(frame(TEXT, deflated(b"\xff"), rsv=4), 0)],
    "compressed ping": [(frame(PING, b"x", rsv=4), 0)],
}


@pytest.mark.parametrize("how", ["at once", "byte by byte", "with the handshake"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_bytes_and_the_close_are_those_of_websockets(name: str, how: str) -> None:
    run(_compared(compare(request(), SCRIPTS[name], how)))


@pytest.mark.parametrize("name", LONG_SCRIPTS)
def test_the_bytes_and_the_close_of_long_messages_are_those_of_websockets(name: str) -> None:
    run(_compared(compare(request(), LONG_SCRIPTS[name])))


@pytest.mark.parametrize("how", ["at once", "byte by byte", "with the handshake"])
@pytest.mark.parametrize("name", COMPRESSED_SCRIPTS)
def test_the_bytes_and_the_close_with_compression_are_those_of_websockets(name: str, how: str) -> None:
    run(_compared(compare(DEFLATE, COMPRESSED_SCRIPTS[name], how)))


@pytest.mark.parametrize("name", ["text", "fragmented", "ping between fragments", "reserved bit 1"])
def test_without_compression_on_the_server_none_is_negotiated(name: str) -> None:
    run(_compared(compare(DEFLATE, SCRIPTS[name], ws_per_message_deflate=False)))


@pytest.mark.parametrize(
    "script",
    [[], [(frame(TEXT, b"a"), 1)], [(frame(TEXT, b"a")[:4], 0)], [(frame(TEXT, b"a", fin=False), 0)]],
    ids=["silent", "after a message", "within a frame", "within a message"],
)
def test_a_half_close_ends_as_with_websockets(script: Script) -> None:
    run(_compared(compare(request(), script, half_close=True)))


async def _compared(comparison: Coroutine[Any, Any, tuple[Any, Any]]) -> None:
    (head, _, _), _ = await comparison
    assert head[0] == b"HTTP/1.1 101 Switching Protocols"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("unmasked", 1002),
        ("reserved opcode 3", 1002),
        ("reserved bit 1", 1002),
        ("invalid UTF-8", 1007),
        ("1 MiB and a byte", 1009),
        ("close 1005", 1002),
        ("close 3000", 3000),
    ],
)
def test_the_close_frame_says_what_was_wrong(name: str, code: int) -> None:
    async def main() -> None:
        (_, _, rest), (kind, _, sent, *_) = await compare(request(), {**SCRIPTS, **LONG_SCRIPTS}[name])
        assert rest[:1] == b"\x88"
        assert int.from_bytes(rest[2:4], "big") == code == sent.code
        assert kind is ConnectionClosedError

    run(main())


REJECTED = {
    "plain GET": (b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", b"426"),
    "POST": (request().replace(b"GET", b"POST"), b"405"),
    "HTTP/1.0": (request().replace(b"HTTP/1.1", b"HTTP/1.0"), b"505"),
    "no key": (request(without="Sec-WebSocket-Key"), b"400"),
    "bad key": (request("Sec-WebSocket-Key: AAAA", without="Sec-WebSocket-Key"), b"400"),
    "another protocol": (request("Upgrade: h2c", without="Upgrade"), b"426"),
    "no version": (request(without="Sec-WebSocket-Version"), b"400"),
}


async def never(ws: Any) -> None:
    raise AssertionError("the handler was called")


@pytest.mark.parametrize("name", REJECTED)
def test_a_request_that_is_no_websocket_is_answered_as_by_websockets(name: str) -> None:
    head, status = REJECTED[name]

    async def answer(port: int) -> list[bytes]:
        async with raw(port) as (reader, writer):
            writer.write(head)
            return without_date_and_server(await read_rest(reader))

    async def main() -> None:
        async with theirs(never) as port:
            expected = await answer(port)
        async with ours(never) as served:
            found = await answer(served.port)
        assert found == expected
        assert found[0].split()[1] == status

    run(main())


@pytest.mark.parametrize(
    ("garbage", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400 Bad Request"),
        (b"nonsense\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\n" + b"x" * 10_000, b"431 Request Header Fields Too Large"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200, b"431 Request Header Fields Too Large"),
    ],
    ids=["TLS", "no request", "no header", "long line", "many headers"],
)
def test_garbage_is_answered_with_an_error(garbage: bytes, status: bytes) -> None:
    async def main() -> None:
        async with ours(never) as served, raw(served.port) as (reader, writer):
            writer.write(garbage)
            answer = await read_rest(reader)
            assert answer.startswith(b"HTTP/1.1 " + status + b"\r\n")
            assert b"\r\nConnection: close\r\n" in answer

    run(main())


def test_the_answer_names_the_server() -> None:
    async def main() -> None:
        async with ours(drop) as served, served.connect() as client:
            assert client.response is not None
            assert client.response.headers["Server"] == "wscluster"

    run(main())


async def drop(ws: Connection) -> None:
    async for _ in ws:
        pass


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("wanted", ["response", "none", "raises", "nonsense"])
def test_process_request_decides(wanted: str, asynchronous: bool, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    def look(ws: Connection, request: Any) -> Any:
        seen.append(request.path)
        if wanted == "raises":
            raise ValueError("of the program")
        return {"response": ws.respond(403, "keep out\n"), "none": None, "nonsense": 5}[wanted]

    async def look_later(ws: Connection, request: Any) -> Any:
        await asyncio.sleep(0)
        return look(ws, request)

    async def main() -> None:
        process_request = look_later if asynchronous else look
        async with ours(greet, process_request) as served, raw(served.port) as (reader, writer):
            writer.write(request() + close_frame(1000))
            answer = await read_rest(reader)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert seen == ["/path"]
        if wanted == "none":
            assert head.startswith(b"HTTP/1.1 101 ")
            assert body == build_frame(True, b"hello") + b"\x88\x02\x03\xe8" or body == b"\x88\x02\x03\xe8"
        elif wanted == "response":
            assert head.startswith(b"HTTP/1.1 403 Forbidden")
            assert body == b"keep out\n"
        else:
            assert head.startswith(b"HTTP/1.1 500 Internal Server Error")
        return

    run(main())
    errors = [record.getMessage() for record in caplog.records if record.name == "wscluster.connection"]
    assert [error.partition(" (connection ")[0] for error in errors] == {
        "raises": ["process_request failed"],
        "nonsense": ["process_request returned 'int': a Response or None is wanted"],
    }.get(wanted, [])


async def greet(ws: Connection) -> None:
    await ws.send("hello")
    await drop(ws)


def test_a_client_may_leave_while_process_request_thinks() -> None:
    async def main() -> None:
        thinking, go_on = asyncio.Event(), asyncio.Event()

        async def think(ws: Connection, request: Any) -> None:
            thinking.set()
            await go_on.wait()

        async with ours(never, think) as served:
            async with raw(served.port) as (_, writer):
                writer.write(request())
                await thinking.wait()
                writer.transport.abort()
            go_on.set()
            await until(lambda: not served.server.connections)

    run(main())


def test_half_a_request_is_answered_with_408_when_its_time_is_over() -> None:
    async def main() -> None:
        async with ours(never, ws_open_timeout=0.05) as served, raw(served.port) as (reader, writer):
            writer.write(request()[:-10])
            assert (await read_rest(reader)).startswith(b"HTTP/1.1 408 Request Timeout\r\n")

    run(main())


def test_a_silent_client_is_closed_without_a_word() -> None:
    async def main() -> None:
        async with ours(never, ws_open_timeout=0.05) as served, raw(served.port) as (reader, _):
            assert await reader.read() == b""
            await until(lambda: not served.server.connections)
            assert len(served.bus.forgotten) == 1

    run(main())


def test_a_cancelled_recv_loses_no_message() -> None:
    async def main() -> None:
        got: list[object] = []
        cancelled = 0

        async def impatient(ws: Connection) -> None:
            nonlocal cancelled
            while len(got) < 300:
                task = asyncio.ensure_future(ws.recv())
                for _ in range((cancelled + len(got)) % 4):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    got.append(await task)
                except asyncio.CancelledError:
                    cancelled += 1
                    await asyncio.sleep(0)

        async with ours(impatient) as served, served.connect() as client:
            for number in range(300):
                await client.send(str(number))
                await asyncio.sleep(0)
            await client.wait_closed()
        assert got == [str(number) for number in range(300)]
        assert cancelled

    run(main())


def test_a_second_recv_at_once_is_refused() -> None:
    async def main() -> None:
        async def handler(ws: Connection) -> None:
            first = asyncio.ensure_future(ws.recv())
            await asyncio.sleep(0)
            with pytest.raises(ConcurrencyError):
                await ws.recv()
            await ws.send("refused")
            await ws.send(await first)

        async with ours(handler) as served, served.connect() as client:
            assert await client.recv() == "refused"
            await client.send("still received")
            assert await client.recv() == "still received"

    run(main())


def test_recv_decodes_as_it_is_told() -> None:
    async def main() -> None:
        got: list[object] = []

        async def handler(ws: Connection) -> None:
            got.extend([await ws.recv(decode=False), await ws.recv(decode=True), await ws.recv(), await ws.recv()])

        async with ours(handler) as served, served.connect() as client:
            for message in ("é", b"\xc3\xa9", "text", b"bytes"):
                await client.send(message)
            await client.wait_closed()
        assert got == [b"\xc3\xa9", "é", "text", b"bytes"]

    run(main())


@pytest.mark.parametrize(
    ("code", "kind"), [(1000, ConnectionClosedOK), (1001, ConnectionClosedOK), (3000, ConnectionClosedError)]
)
def test_after_the_close_every_message_is_received_and_then_the_exception_tells_both_close_frames(
    code: int, kind: type[ConnectionClosed]
) -> None:
    async def main() -> None:
        got: list[object] = []
        done = asyncio.get_running_loop().create_future()

        async def handler(ws: Connection) -> None:
            await ws.wait_closed()
            got.append(await ws.recv())
            errors = []
            for call in (ws.recv, lambda: ws.send("late"), ws.ping, ws.pong, lambda: ws.join("room")):
                with pytest.raises(ConnectionClosed) as caught:
                    await call()
                errors.append(caught.value)
            done.set_result(errors)

        async with ours(handler) as served, served.connect() as client:
            await client.send("before the close")
            await client.close(code, "why")
            for exc in await done:
                assert type(exc) is kind
                assert (exc.rcvd, exc.sent, exc.rcvd_then_sent) == (Close(code, "why"), Close(code, "why"), True)
        assert got == ["before the close"]

    run(main())


def test_a_reset_is_a_closed_error_without_close_frames() -> None:
    async def main() -> None:
        done = asyncio.get_running_loop().create_future()

        async def handler(ws: Connection) -> None:
            with pytest.raises(ConnectionClosedError) as caught:
                await ws.recv()
            done.set_result((caught.value.rcvd, caught.value.sent, ws.close_code))

        async with ours(handler) as served, upgraded(served.port) as (_, writer):
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            assert await done == (None, None, 1006)

    run(main())


def test_the_loop_over_messages_ends_with_a_good_close_and_raises_after_a_bad_one() -> None:
    async def main() -> None:
        ends: asyncio.Queue[object] = asyncio.Queue()

        async def handler(ws: Connection) -> None:
            try:
                ends.put_nowait([message async for message in ws])
            except ConnectionClosedError as exc:
                ends.put_nowait(exc.rcvd)

        async with ours(handler) as served:
            async with served.connect() as client:
                await client.send("a")
                await client.send(b"b")
            assert await ends.get() == ["a", b"b"]
            async with served.connect() as client:
                await client.close(4000, "bad")
            assert await ends.get() == Close(4000, "bad")

    run(main())


def test_send_waits_for_a_client_that_does_not_read_and_goes_on_when_it_does() -> None:
    async def main() -> None:
        sent = 0
        chunk = b"x" * 65536

        async def handler(ws: Connection) -> None:
            nonlocal sent
            while sent < 500:
                await ws.send(chunk)
                sent += 1

        async with ours(handler) as served:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await served.loop.sock_connect(sock, ("127.0.0.1", served.port))
            with sock:
                await served.loop.sock_sendall(sock, request())
                ws = await served.only()
                await until(lambda: ws.is_open and ws.unsent_bytes() > 32768)
                before = sent
                for _ in range(100):
                    await asyncio.sleep(0)
                assert sent == before < 500
                assert ws.unsent_bytes() <= 32768 + 2 * len(chunk)
                received = 0
                while received < 500 * len(chunk):
                    received += len(await served.loop.sock_recv(sock, 2**20))
                await until(lambda: sent == 500)

    run(main())


def test_a_send_that_waits_ends_with_its_connection() -> None:
    async def main() -> None:
        done = asyncio.get_running_loop().create_future()

        async def handler(ws: Connection) -> None:
            with contextlib.suppress(ConnectionClosedError):
                while True:
                    await ws.send(b"x" * 65536)
            done.set_result(True)

        async with ours(handler) as served, upgraded(served.port) as (reader, writer):
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            ws = await served.only()
            await until(lambda: ws.unsent_bytes() > 32768)
            writer.transport.abort()
            assert await done

    run(main())


def test_many_messages_wait_in_the_client_and_arrive_in_order() -> None:
    async def main() -> None:
        go_on = asyncio.Event()
        got: list[object] = []

        async def handler(ws: Connection) -> None:
            await go_on.wait()
            got.extend([message async for message in ws])

        async with ours(handler, ws_max_queue=4) as served, upgraded(served.port) as (reader, writer):
            ws = await served.only()
            messages = [str(number) * 1000 for number in range(500)]
            for message in messages:
                writer.write(frame(TEXT, message.encode()))
            writer.write(close_frame(1000))
            await until(lambda: served.server.messages_in == 5)
            for _ in range(20):
                await asyncio.sleep(0)
            assert served.server.messages_in == 5
            assert ws.is_open
            go_on.set()
            assert await reader.read() == b"\x88\x02\x03\xe8"
            await until(lambda: not served.server.connections)
        assert got == messages

    run(main())


def test_a_handler_that_raises_closes_with_1011_and_says_whose_it_was(caplog: pytest.LogCaptureFixture) -> None:
    ids: list[str] = []

    async def handler(ws: Connection) -> None:
        ids.append(str(ws.id))
        raise ValueError("of the program")

    async def main() -> None:
        async with ours(handler) as served, served.connect() as client:
            with pytest.raises(ConnectionClosedError) as caught:
                await client.recv()
            assert caught.value.rcvd == Close(1011, "")

    run(main())
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage() == f"handler failed (connection {ids[0]})"
    assert record.exc_info
    assert isinstance(record.exc_info[1], ValueError)


def test_a_handler_that_ends_closes_with_1000_though_messages_wait_for_it() -> None:
    async def main() -> None:
        async def handler(ws: Connection) -> None:
            await ws.recv()

        async with ours(handler, ws_max_queue=2) as served, upgraded(served.port) as (reader, writer):
            writer.write(b"".join(frame(TEXT, b"x" * 1000) for _ in range(1000)))
            assert await read_frame(reader) == b"\x88\x02\x03\xe8"
            writer.write(close_frame(1000))
            assert await read_rest(reader) == b""

    run(main())


def test_a_closed_connection_that_ends_its_handler_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(ws: Connection) -> None:
        while True:
            await ws.recv()

    async def main() -> None:
        async with ours(handler) as served, served.connect() as client:
            await client.close(4000)

    run(main())
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_client_that_answers_no_ping_is_closed_with_1011() -> None:
    async def main() -> None:
        config: dict[str, Any] = {"ws_ping_interval": 0.02, "ws_ping_timeout": 0.05}
        async with ours(drop, **config) as served, upgraded(served.port) as (reader, _):
            ping = await read_frame(reader)
            assert (ping[0], len(ping)) == (0x89, 6)
            assert await read_rest(reader) == build_frame(False, b"\x03\xf3keepalive ping timeout").replace(
                b"\x82", b"\x88", 1
            )

    run(main())


def test_a_client_that_answers_its_pings_stays() -> None:
    async def main() -> None:
        config: dict[str, Any] = {"ws_ping_interval": 0.01, "ws_ping_timeout": 0.1}
        async with ours(drop, **config) as served, upgraded(served.port) as (reader, writer):
            ws = await served.only()
            for _ in range(20):
                ping = await read_frame(reader)
                assert ping[0] == 0x89
                writer.write(frame(PONG, ping[2:]))
            await until(lambda: ws.latency > 0)
            assert ws.is_open

    run(main())


def test_a_client_that_does_not_answer_the_close_is_reset() -> None:
    async def main() -> None:
        async def handler(ws: Connection) -> None:
            pass

        async with ours(handler, ws_close_timeout=0.05) as served, upgraded(served.port) as (reader, _):
            assert await read_frame(reader) == b"\x88\x02\x03\xe8"
            await until(lambda: not served.server.connections)
            assert await read_rest(reader) in (b"", b"<reset>")

    run(main())


def test_a_ping_is_awaited_for_its_latency() -> None:
    async def main() -> None:
        async def handler(ws: Connection) -> None:
            first, second = await ws.ping(), await ws.ping("again")
            with pytest.raises(ConcurrencyError):
                await ws.ping(b"again")
            latency = await second
            assert 0 < latency < 5
            assert await first > 0
            await ws.pong(b"unasked")
            await ws.send("done")

        async with ours(handler) as served, served.connect() as client:
            assert await client.recv() == "done"

    run(main())


def test_a_ping_that_is_never_answered_ends_with_the_connection() -> None:
    async def main() -> None:
        done = asyncio.get_running_loop().create_future()

        async def handler(ws: Connection) -> None:
            pong = await ws.ping()
            with pytest.raises(ConnectionClosed):
                await pong
            done.set_result(True)

        async with ours(handler) as served, upgraded(served.port) as (_, writer):
            writer.write(close_frame(1000))
            assert await done

    run(main())


def test_drain_closes_every_connection_with_its_code() -> None:
    async def main() -> None:
        async with ours(drop) as served:
            clients: list[ClientConnection] = [await served.connect() for _ in range(3)]
            async with raw(served.port) as (reader, _):
                await until(lambda: len(served.server.connections) == 4)
                await served.server.drain(1001, "restart", 5)
                assert not served.server.connections
                assert await reader.read() == b""
            for client in clients:
                await client.wait_closed()
                assert (client.close_code, client.close_reason) == (1001, "restart")
            async with raw(served.port) as (reader, writer):
                writer.write(request())
                assert (await read_rest(reader)).startswith(b"HTTP/1.1 503 ")

    run(main())


def test_a_drain_for_a_successor_lets_who_is_connecting_in_and_closes_with_1012() -> None:
    async def main() -> None:
        async with ours(drop) as served:
            client = await served.connect()
            async with raw(served.port) as (reader, writer):
                await until(lambda: len(served.server.connections) == 2)
                draining = asyncio.create_task(served.server.drain(1012, "", 5))
                await client.wait_closed()
                assert client.close_code == 1012
                assert not draining.done(), "one is still about to connect"
                writer.write(request())
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 101 ")
                assert await reader.readexactly(4) == b"\x88\x02" + (1012).to_bytes(2, "big")
            await draining
            assert not served.server.connections

    run(main())


def test_a_handler_that_does_not_end_is_cancelled_by_the_drain(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        cancelled = asyncio.Event()

        async def handler(ws: Connection) -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                cancelled.set()

        async with ours(handler) as served, served.connect() as client:
            await served.server.drain(1001, "", 0.05)
            assert cancelled.is_set()
            await client.wait_closed()
            assert client.close_code == 1001

    run(main())
    assert "0 connections and 1 handlers did not end within 0.05 s: cancelled" in caplog.text


async def _each(*chunks: Any) -> AsyncIterator[Any]:
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk


FRAGMENTED: dict[str, Callable[[], Iterable[Any] | AsyncIterator[Any]]] = {
    "text": lambda: ["a", "b", "c"],
    "one chunk": lambda: ["a"],
    "bytes": lambda: iter([b"a", bytearray(b"b"), memoryview(b"c")]),
    "empty chunks": lambda: ["", ""],
    "nothing": list,
    "text, asynchronous": lambda: _each("a", "b"),
    "bytes, asynchronous": lambda: _each(b"a", b"b"),
    "mixed": lambda: ["a", b"b"],
    "no messages": lambda: ["a", 5],
    "mixed, asynchronous": lambda: _each(b"a", "b"),
}


@pytest.mark.parametrize("name", FRAGMENTED)
@pytest.mark.parametrize("head", [request(), DEFLATE], ids=["plain", "compressed"])
def test_chunks_are_sent_as_fragments_as_by_websockets(name: str, head: bytes) -> None:
    async def main() -> None:
        errors: asyncio.Queue[str] = asyncio.Queue()

        async def handler(ws: Any) -> None:
            try:
                await ws.send(FRAGMENTED[name]())
                errors.put_nowait("none")
            except Exception as exc:
                errors.put_nowait(type(exc).__name__)
            with contextlib.suppress(ConnectionClosed):
                await ws.send("behind it")

        async def answer(port: int) -> bytes:
            async with upgraded(port, head) as (reader, writer):
                data = b""
                while not data.startswith(b"\x88"):
                    frames.append(data := await read_frame(reader))
                writer.write(close_frame(1000))
                return await read_rest(reader)

        frames: list[bytes] = []
        async with theirs(handler) as port:
            expected = [await answer(port), frames[:], await errors.get()]
        frames.clear()
        async with ours(handler) as served:
            assert [await answer(served.port), frames, await errors.get()] == expected

    run(main())


@pytest.mark.parametrize("message", [5, None, {"a": "b"}, [5]])
def test_what_is_no_message_is_a_type_error(message: Any) -> None:
    async def main() -> None:
        async def handler(ws: Connection) -> None:
            with pytest.raises(TypeError):
                await ws.send(message)
            if not isinstance(message, list):
                await ws.send("still open")
            await drop(ws)

        async with ours(handler) as served, served.connect() as client:
            if isinstance(message, list):
                with pytest.raises(ConnectionClosedError):
                    await client.recv()
            else:
                assert await client.recv() == "still open"

    run(main())


def test_text_says_what_kind_of_message_is_sent() -> None:
    async def main() -> None:
        async def handler(ws: Connection) -> None:
            await ws.send("text", text=False)
            await ws.send(b"bytes", text=True)
            await ws.send(["te", "xt"], text=False)
            await ws.send([b"by", b"tes"], text=True)

        async with ours(handler) as served, served.connect() as client:
            assert [message async for message in client] == [b"text", "bytes", b"text", "bytes"]

    run(main())


def test_other_messages_wait_until_a_fragmented_one_is_whole() -> None:
    async def main() -> None:
        async def handler(ws: Connection) -> None:
            begun, go_on = asyncio.Event(), asyncio.Event()

            async def chunks() -> AsyncIterator[str]:
                yield "first "
                begun.set()
                await go_on.wait()
                yield "second"

            whole = asyncio.ensure_future(ws.send(chunks()))
            await begun.wait()
            other = asyncio.ensure_future(ws.send("own"))
            assert ws.deliver(build_frame(True, b"of a room"), 1, False, 2**20)
            await (await ws.ping())
            assert not other.done()
            go_on.set()
            await asyncio.gather(whole, other)

        async with ours(handler) as served, served.connect() as client:
            assert [message async for message in client] == ["first second", "of a room", "own"]
            await until(lambda: not served.server.connections)
            assert served.server.messages_out == 3

    run(main())


def test_a_frame_of_another_compressor_does_not_spoil_those_of_the_connection() -> None:
    async def main() -> None:
        async def handler(ws: Connection) -> None:
            assert ws.deflate_bits == 12
            for number in range(5):
                await ws.send("own message of the connection " * 20)
                compressed = deflated(f"{number} message of a room ".encode() * 20)
                assert ws.deliver(build_frame(True, compressed, rsv1=True), 1, True, 2**20)

        async with ours(handler) as served, served.connect() as client:
            messages = [message async for message in client]
        own = "own message of the connection " * 20
        assert messages == [text for number in range(5) for text in (own, f"{number} message of a room " * 20)]

    run(main())


def test_a_slow_consumer_is_closed_with_1013_or_reset() -> None:
    async def main() -> None:
        async with ours(drop) as served, upgraded(served.port) as (reader, _):
            ws = await served.only()
            ws.close_slow()
            assert await reader.read() == b"\x88\x0f\x03\xf5slow consumer"

    run(main())


def test_a_connection_knows_who_and_where_it_is() -> None:
    async def main() -> None:
        seen: dict[str, Any] = {}

        async def handler(ws: Connection) -> None:
            assert ws.request is not None
            assert ws.response is not None
            seen.update(
                path=ws.request.path, status=ws.response.status_code, server=ws.response.headers["Server"],
                peer=ws.remote_address, local=ws.local_address[1], slot=ws.slot, close=ws.close_code,
                rooms=ws.rooms, positions=ws.positions, session=dict(ws.session), state=ws.state.name,
            )  # fmt: skip
            ws.session["user"] = 5
            assert ws.session == {"user": 5}
            assert await ws.publish("lobby", "hi", exclude_self=True) == "2-0"
            await ws.join("lobby")
            await ws.leave("lobby")
            assert served.bus.calls == [
                ("publish", "lobby", "hi", ws.id), ("join", ws, "lobby"), ("leave", ws, "lobby"),
            ]  # fmt: skip
            await ws.send("checked")

        async with ours(handler) as served, served.connect() as client:
            assert await client.recv() == "checked"
            assert seen == {
                "path": "/path", "status": 101, "server": "wscluster", "peer": client.local_address,
                "local": served.port, "slot": 3, "close": None, "rooms": frozenset({"lobby"}),
                "positions": {"lobby": "1-0"}, "session": {}, "state": "OPEN",
            }  # fmt: skip

    run(main())


def test_a_unix_client_has_no_address() -> None:
    async def main() -> None:
        peers: list[object] = []

        async def handler(ws: Connection) -> None:
            peers.append(ws.remote_address)

        async with ours(handler) as served:
            one, other = socket.socketpair()
            served.server.adopt(other.detach(), Offered(0, "", 0))
            async with connect("ws://localhost/", sock=one, proxy=None) as client:
                await client.wait_closed()
        assert peers == [None]

    run(main())
