"""Frames that are made to cost (unfinished messages, floods of control frames, bombs): each is bounded."""

import asyncio
import contextlib
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.wire.harness import (
    BINARY,
    CLOSE,
    CONT,
    DEFLATE,
    PING,
    PONG,
    TEXT,
    Ours,
    close_frame,
    frame,
    ours,
    read_frame,
    read_rest,
    run,
    until,
    upgraded,
)  # fmt: skip
from wscluster.workers.fragments import MAX_FRAGMENTS, MIN_GROWTH_BYTES

TIMEOUT = 0.2
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(ws: Any) -> None:
    async for message in ws:
        await ws.send(message)


def closed_with(data: bytes) -> tuple[int, str]:
    """Return code and reason of the close frame that ``data`` is."""
    assert data[0] == 0x88, data
    return struct.unpack("!H", data[2:4])[0], data[4:].decode()


@contextlib.asynccontextmanager
async def attacked(head: bytes = b"", **config: Any) -> AsyncIterator[tuple[Ours, Stream]]:
    async with ours(echo, **config) as served, upgraded(served.port, head) as stream:
        yield served, stream


# A message that is never whole


def test_a_message_of_which_nothing_more_comes_ends_with_1008() -> None:
    async def main() -> None:
        async with attacked(ws_message_timeout=TIMEOUT) as (served, (reader, writer)):
            began = served.loop.time()
            writer.write(frame(TEXT, b"x" * 5000, fin=False))
            assert closed_with(await read_frame(reader)) == (1008, "message not finished in time")
            assert TIMEOUT - 0.01 <= served.loop.time() - began < TIMEOUT * 10
            connection = await served.only()
            assert connection._fragments is None, "what came of it is let go at once"

    run(main())


def test_a_message_that_comes_byte_by_byte_ends_with_1008_though_its_client_answers_pings() -> None:
    async def main() -> None:
        async with attacked(ws_message_timeout=TIMEOUT) as (_, (reader, writer)):
            writer.write(frame(TEXT, b"x", fin=False))
            ended = asyncio.create_task(read_frame(reader))
            count = 0
            while not ended.done():
                writer.write(frame(CONT, b"x", fin=False) + frame(PONG))
                count += 1
                await asyncio.sleep(TIMEOUT / 20)
            assert closed_with(await ended) == (1008, "message not finished in time")
            assert count < 100

    run(main())


def test_a_slow_message_that_grows_is_received_however_long_it_takes() -> None:
    async def main() -> None:
        async with attacked(ws_message_timeout=TIMEOUT) as (served, (reader, writer)):
            part = b"x" * MIN_GROWTH_BYTES
            began, count = served.loop.time(), 1
            writer.write(frame(BINARY, part, fin=False))
            while served.loop.time() - began < TIMEOUT * 4:
                writer.write(frame(CONT, part, fin=False))
                count += 1
                await asyncio.sleep(TIMEOUT / 8)
            writer.write(frame(CONT))
            assert len(await read_frame(reader)) - 4 == count * len(part)
            assert len(served.server.message_deadlines) == 0

    run(main())


def test_a_message_that_waits_for_our_handler_is_not_held_against_its_client() -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def busy(ws: Any) -> None:
            await go_on.wait()
            await echo(ws)

        served = ours(busy, ws_message_timeout=TIMEOUT, ws_max_queue=1)
        async with served as it, upgraded(it.port) as (reader, writer):
            writer.write(frame(TEXT, b"1") + frame(TEXT, b"2") + frame(TEXT, b"3", fin=False))
            connection = await it.only()
            await until(lambda: connection._paused_reading)
            writer.write(frame(CONT, b"3"))
            await asyncio.sleep(TIMEOUT * 3)
            go_on.set()
            assert [(await read_frame(reader))[2:] for _ in range(3)] == [b"1", b"2", b"33"]

    run(main())


def test_a_message_that_is_taken_by_its_fragments_may_be_as_slow_as_its_handler_lets_it() -> None:
    async def main() -> None:
        heard: list[str] = []

        async def stream(ws: Any) -> None:
            async for fragment in ws.recv_streaming():
                heard.append(fragment)
            await ws.send("whole")

        async with ours(stream, ws_message_timeout=TIMEOUT) as served, upgraded(served.port) as (reader, writer):
            writer.write(frame(TEXT, b"one", fin=False))
            await until(lambda: heard == ["one"])
            assert len(served.server.message_deadlines) == 0
            await asyncio.sleep(TIMEOUT * 2)
            writer.write(frame(CONT, b"two"))
            assert await read_frame(reader) == b"\x81\x05whole"
            assert heard == ["one", "two"]

    run(main())


def test_a_timeout_of_0_waits_for_ever_and_a_whole_message_has_none() -> None:
    async def main() -> None:
        for timeout in (0.0, 60.0):
            async with attacked(ws_message_timeout=timeout) as (served, (reader, writer)):
                connection = await served.only()
                writer.write(frame(TEXT, b"a", fin=False))
                await until(lambda: connection._fragments is not None)  # noqa: B023
                assert len(served.server.message_deadlines) == (1 if timeout else 0)
                writer.write(frame(CONT, b"b"))
                assert await read_frame(reader) == b"\x81\x02ab"
                assert len(served.server.message_deadlines) == 0

    run(main())


def test_a_client_that_leaves_with_an_unfinished_message_leaves_no_deadline() -> None:
    async def main() -> None:
        async with ours(echo) as served:
            async with upgraded(served.port) as (_, writer):
                writer.write(frame(TEXT, b"a", fin=False))
                await until(lambda: len(served.server.message_deadlines) == 1)
            await until(lambda: not served.server.connections)
            assert len(served.server.message_deadlines) == 0

    run(main())


@pytest.mark.parametrize(("count", "whole"), [(MAX_FRAGMENTS, True), (MAX_FRAGMENTS, False)])
def test_a_message_has_a_bounded_number_of_fragments(count: int, whole: bool) -> None:
    async def main() -> None:
        async with attacked() as (_, (reader, writer)):
            last = frame(CONT, b"x", fin=whole)
            writer.write(frame(BINARY, b"x", fin=False) + frame(CONT, b"x", fin=False) * (count - 2) + last)
            answer = await read_frame(reader)
            if whole:
                assert answer[4:] == b"x" * count
            else:
                assert closed_with(answer) == (1009, "too many fragments")

    run(main())


# Much at once


FLOOD = 20_000


@pytest.mark.parametrize(
    ("flood", "pieces"),
    [
        (frame(PING, b"1234") * FLOOD, FLOOD),
        ((frame(TEXT, b"x", fin=False) + frame(CONT, b"x") + frame(PING, b"1234")) * (FLOOD // 4), FLOOD // 4),
    ],
    ids=["pings", "fragments between pings"],
)
def test_a_client_is_served_while_another_floods(flood: bytes, pieces: int) -> None:
    async def main() -> None:
        async with attacked() as (served, (reader, writer)), upgraded(served.port) as (good_reader, good_writer):
            pongs = 0

            async def count_pongs() -> None:
                nonlocal pongs
                while pongs < pieces:
                    pongs += (await read_frame(reader))[0] == 0x8A

            counting = asyncio.create_task(count_pongs())
            writer.write(flood)
            await until(lambda: len(served.server.turns))
            trips = 0
            while not counting.done():
                good_writer.write(frame(TEXT, b"well"))
                assert await read_frame(good_reader) == b"\x81\x04well"
                trips += 1
            assert trips > 20
            assert pongs == pieces
            assert len(served.server.turns) == 0

    run(main())


def test_what_waits_for_its_turn_is_received_whole_and_in_order() -> None:
    async def main() -> None:
        deflate = zlib.compressobj(wbits=-12)

        def compressed(number: int) -> bytes:
            data = deflate.compress(b"%d" % number) + deflate.flush(zlib.Z_SYNC_FLUSH)
            return frame(TEXT, data.removesuffix(b"\x00\x00\xff\xff"), rsv=4)

        def fragmented(number: int) -> bytes:
            return frame(TEXT, b"", fin=False) + frame(PING) + frame(CONT, b"%d" % number)

        def plain(number: int) -> bytes:
            return frame(TEXT, b"%d" % number)

        kinds = (compressed, fragmented, plain)
        heard: list[str] = []

        async def keep(ws: Any) -> None:
            async for message in ws:
                heard.append(message)
                if len(heard) % 100 == 0:
                    await asyncio.sleep(0)

        async with ours(keep, ws_max_queue=4) as served, upgraded(served.port, DEFLATE) as (reader, writer):
            writer.write(b"".join(kinds[number % 3](number) for number in range(3000)) + close_frame(1000))
            writer.write_eof()
            end = await read_rest(reader)
            assert end.endswith(b"\x88\x02\x03\xe8")
            assert heard == [str(number) for number in range(3000)]

    run(main())


def test_a_client_that_resets_while_it_waits_for_its_turn_is_forgotten() -> None:
    async def main() -> None:
        async with ours(echo) as served:
            for _ in range(3):
                async with upgraded(served.port) as (_, writer):
                    writer.write(frame(PING) * FLOOD)
                    await until(lambda: len(served.server.turns))
                    writer.transport.abort()
                await until(lambda: not served.server.connections)
            await until(lambda: len(served.server.turns) == 0)

    run(main())


def test_a_drain_closes_a_client_that_waits_for_its_turn() -> None:
    async def main() -> None:
        async with ours(echo) as served, upgraded(served.port) as (reader, writer):
            writer.write(frame(PING, b"x" * 100) * FLOOD)
            await until(lambda: len(served.server.turns))
            drained = asyncio.create_task(served.server.drain(1001, "", 10))
            while (await read_frame(reader))[0] != 0x80 | CLOSE:
                pass
            writer.write(close_frame(1001))
            await read_rest(reader)
            await drained
            assert not served.server.connections

    run(main())


def test_a_bomb_is_refused_and_nothing_of_it_is_kept() -> None:
    async def main() -> None:
        deflate = zlib.compressobj(9, zlib.DEFLATED, -12)
        bomb = (deflate.compress(bytes(64 << 20)) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]
        async with attacked(DEFLATE) as (served, (reader, writer)):
            connection = await served.only()
            writer.write(frame(BINARY, bomb, rsv=4))
            assert closed_with(await read_frame(reader))[0] == 1009
            exc = connection.protocol.parser_exc
            assert exc is not None
            assert exc.__traceback__ is None, "its frames hold the megabyte that was inflated"

    run(main())
