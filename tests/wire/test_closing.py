"""What a client may still send, and how much of it is kept, while its connection closes or nobody reads."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.server import broadcast
from websockets.http11 import Request

from tests.wire.harness import (
    BINARY,
    CONT,
    PING,
    TEXT,
    close_frame,
    frame,
    ours,
    raw,
    read_frame,
    read_rest,
    request,
    run,
    until,
    upgraded,
)
from wscluster.workers.connection import Connection

BYE = b"\x88\x02\x03\xe8"


async def never(ws: Connection) -> None:
    await ws.wait_closed()


@pytest.mark.parametrize("cut", [1, 3, 5, 7, 50, 105])
@pytest.mark.parametrize("who", ["handler returns", "handler closes", "drained"])
def test_a_client_in_the_middle_of_a_frame_ends_it_and_closes(cut: int, who: str) -> None:
    async def main() -> None:
        go = asyncio.Event()
        ends: list[tuple[object, ...]] = []

        async def handler(ws: Connection) -> None:
            await go.wait()
            if who == "handler closes":
                await ws.close()
            elif who == "drained":
                assert [message async for message in ws] == [b"\x88\x80" * 50, "more"]
            else:
                return
            ends.append((ws.close_code, ws.protocol.close_rcvd_then_sent))

        async with ours(handler) as served, upgraded(served.port) as (reader, writer):
            connection = await served.only()
            upload = frame(BINARY, b"\x88\x80" * 50)  # whose parts look like frames
            writer.write(upload[:cut])
            await until(lambda: len(connection._partial) == cut)
            go.set()
            if who == "drained":
                connection.start_close(1000)
            assert await read_frame(reader) == BYE
            writer.write(upload[cut:] + frame(TEXT, b"more") + close_frame(1000))
            assert await read_rest(reader) == b""
            if who != "handler returns":
                await until(lambda: ends)
                assert ends == [(1000, False)]

    run(main())


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("who", ["handler returns", "handler closes"])
def test_what_a_client_sends_behind_our_close_is_bounded(who: str, size: int) -> None:
    async def main() -> None:
        async def handler(ws: Connection) -> None:
            if who == "handler closes":
                await ws.close()

        async with ours(handler, ws_max_queue=4) as served, upgraded(served.port) as (reader, writer):
            connection = await served.only()
            assert await read_frame(reader) == BYE
            for _ in range(200):
                writer.write(frame(TEXT, b"x" * size) + frame(TEXT, b"a", fin=False) + frame(CONT, b"b"))
                await writer.drain()
            writer.write(frame(PING, b"still there?"))
            assert (await read_frame(reader))[2:] == b"still there?"
            assert len(connection._inbox) <= 5
            writer.write(close_frame(1000))
            assert await read_rest(reader) == b""

    run(main())


def test_a_handler_that_reads_on_while_it_is_drained_gets_every_message() -> None:
    async def main() -> None:
        got: list[str] = []
        go = asyncio.Event()

        async def handler(ws: Connection) -> None:
            await go.wait()
            async for message in ws:
                got.append(str(message))
                await asyncio.sleep(0)

        async with ours(handler, ws_max_queue=2) as served, upgraded(served.port) as (reader, writer):
            connection = await served.only()
            connection.start_close(1001)
            assert await read_frame(reader) == b"\x88\x02\x03\xe9"
            writer.write(b"".join(frame(TEXT, str(number).encode()) for number in range(500)) + close_frame(1001))
            go.set()
            assert await read_rest(reader) == b""
        assert got == [str(number) for number in range(500)]

    run(main())


def test_pings_of_a_client_that_reads_no_pongs_wait_in_the_kernel() -> None:
    async def main() -> None:
        async with ours(never) as served, upgraded(served.port) as (reader, writer):
            connection = await served.only()
            transport: Any = writer.transport
            transport.pause_reading()
            pings = frame(PING, b"x" * 125) * 1000
            while not connection._paused_reading:
                writer.write(pings)
                await asyncio.sleep(0)
            assert connection.unsent_bytes() < 2**20
            transport.resume_reading()
            writer.write(frame(PING, b"the last"))
            while (await read_frame(reader))[2:] != b"the last":
                pass

    run(main())


def test_two_streams_of_chunks_are_two_whole_messages() -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def chunks(letter: str) -> AsyncIterator[str]:
            await begun.wait()
            for _ in range(3):
                yield letter
                await asyncio.sleep(0)

        async def handler(ws: Connection) -> None:
            sends = [asyncio.ensure_future(ws.send(chunks(letter))) for letter in "abc"]
            await asyncio.sleep(0)
            begun.set()
            await asyncio.gather(*sends)

        async with ours(handler) as served, served.connect() as client:
            assert sorted([message async for message in client]) == ["aaa", "bbb", "ccc"]

    run(main())


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_the_librarys_broadcast_reaches_our_connections(compression: str | None) -> None:
    async def main() -> None:
        members: set[Any] = set()

        async def handler(ws: Connection) -> None:
            members.add(ws)
            await ws.send("welcome " * 40)
            await ws.wait_closed()

        async with (
            ours(handler) as served,
            served.connect(compression=compression) as one,
            served.connect(compression=compression) as two,
        ):
            for client in (one, two):
                assert await client.recv() == "welcome " * 40
            for message in ("hello " * 50, b"bytes", "hello " * 50):
                broadcast(members, message)
                assert [await client.recv() for client in (one, two)] == [message, message]

    run(main())


def test_garbage_that_is_held_open_ends_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        failed: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failed.append(context))
        async with (
            ours(never, ws_open_timeout=0.05, ws_close_timeout=0.2) as served,
            raw(served.port) as (reader, writer),
        ):
            writer.write(b"GARBAGE\r\n\r\nxyz")
            assert (await read_rest(reader)).startswith(b"HTTP/1.1 400 ")
            await until(lambda: not served.server.connections)
        assert not failed

    run(main())
    assert "Traceback" not in caplog.text


def test_a_process_request_that_hangs_ends_with_its_connection() -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def hang(_ws: Connection, _request: Request) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with ours(never, hang, ws_open_timeout=0.05) as served, raw(served.port) as (reader, writer):
            writer.write(request())
            assert await read_rest(reader) in (b"", b"<reset>")
            await ended.wait()
            assert not served.server._handshakes._answering

    run(main())


def test_a_compressor_begins_anew_after_a_rooms_compressed_message() -> None:
    async def main() -> None:
        async def handler(ws: Connection) -> None:
            await ws.send("own " * 100)
            assert ws._lazy is not None
            ws._lazy.forget()  # as after a frame that another compressor made
            await ws.send("own " * 100)
            await ws.wait_closed()

        async with ours(handler) as served, served.connect() as client:
            assert [await client.recv(), await client.recv()] == ["own " * 100] * 2

    run(main())
