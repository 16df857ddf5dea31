"""A handler that answers what it hears while its connection is drained: nothing of what the client says is lost."""

import asyncio
import contextlib

import pytest
from websockets.exceptions import ConnectionClosed

from tests.wire.harness import TEXT, close_frame, frame, ours, read_frame, read_rest, run, until, upgraded
from wscluster.workers import inbox
from wscluster.workers.connection import Connection

CLOSE_1012 = b"\x88\x02\x03\xf4"
SAID = [str(number) for number in range(500)]


async def drained(heard: asyncio.Future[list[str]], ws: Connection, wait: float = 0.0) -> None:
    """An echo; ``heard`` is what it has heard."""
    got: list[str] = []
    with contextlib.suppress(ConnectionClosed):  # 1012 is an error at the end, 1001 is none
        async for message in ws:
            got.append(str(message))
            await asyncio.sleep(wait)
            await ws.send(message)
            await ws.send(["a message ", "in two"])
    heard.set_result(got)


@pytest.mark.parametrize("pieces", [1, 25])
@pytest.mark.parametrize("code", [1001, 1012])
def test_one_that_echoes_hears_every_message_and_writes_nothing_behind_the_close(pieces: int, code: int) -> None:
    async def main() -> None:
        heard: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        async with ours(lambda ws: drained(heard, ws)) as served, upgraded(served.port) as (reader, writer):
            await served.only()
            draining = asyncio.create_task(served.server.drain(code, "", 5))
            assert await read_frame(reader) == b"\x88\x02" + code.to_bytes(2, "big")
            for piece in range(pieces):
                part = SAID[piece * 500 // pieces : (piece + 1) * 500 // pieces]
                writer.write(b"".join(frame(TEXT, text.encode()) for text in part))
                await asyncio.sleep(0)
            writer.write(close_frame(code))
            assert await read_rest(reader) == b""
            assert await heard == SAID
            await draining

    run(main())


def test_one_that_is_slow_hears_what_waits_after_its_client_has_gone() -> None:
    async def main() -> None:
        heard: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        async with ours(lambda ws: drained(heard, ws, 0.02)) as served, upgraded(served.port) as (reader, writer):
            await served.only()
            draining = asyncio.create_task(served.server.drain(1012, "", 5))
            assert await read_frame(reader) == CLOSE_1012
            writer.write(b"".join(frame(TEXT, text.encode()) for text in SAID[:10]) + close_frame(1012))
            assert await read_rest(reader) == b""
            assert await heard == SAID[:10]
            await draining

    run(main())


@pytest.mark.parametrize("says", [b"", b"what nobody hears"])
def test_one_that_does_nothing_but_send_learns_that_its_client_has_gone(says: bytes) -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def ticks(ws: Connection) -> None:
            try:
                while True:
                    await ws.send("tick")
                    await asyncio.sleep(0.01)
            except ConnectionClosed:
                ended.set()

        async with ours(ticks) as served, upgraded(served.port) as (reader, writer):
            await served.only()
            if says:
                writer.write(frame(TEXT, says))
            draining = asyncio.create_task(served.server.drain(1012, "", 30))
            while await read_frame(reader) != CLOSE_1012:
                pass
            await asyncio.sleep(0.05)
            assert not ended.is_set(), "the client has not answered yet"
            writer.write(close_frame(1012))
            async with asyncio.timeout(2):
                await ended.wait()
                await draining

    run(main())


def test_one_that_sends_without_end_waits_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "MAX_UNSENDABLE", 10)

    async def main() -> None:
        sent, ended = 0, asyncio.Event()

        async def floods(ws: Connection) -> None:
            nonlocal sent
            assert await ws.recv() == "go"
            try:
                while True:
                    await ws.send("more")
                    sent += 1
            except ConnectionClosed:
                ended.set()

        async with ours(floods) as served, upgraded(served.port) as (reader, writer):
            connection = await served.only()
            connection.start_drain(1012, "")
            assert await read_frame(reader) == CLOSE_1012
            writer.write(frame(TEXT, b"go"))
            await until(lambda: sent == 10)
            for _ in range(20):
                await asyncio.sleep(0)
            assert (sent, ended.is_set()) == (10, False)
            writer.write(close_frame(1012))
            async with asyncio.timeout(2):
                await ended.wait()
            assert sent == 10

    run(main())


def test_a_connection_that_is_kicked_or_that_the_handler_closed_is_an_error_to_send_on() -> None:
    async def main() -> None:
        outcome: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

        async def handler(ws: Connection) -> None:
            ws.start_close(1008, "kicked")
            try:
                await ws.send("too late")
            except ConnectionClosed as exc:
                outcome.set_result(exc)

        async with ours(handler) as served, upgraded(served.port) as (reader, writer):
            assert (await read_frame(reader))[:1] == b"\x88"
            writer.write(close_frame(1008))
            assert isinstance(await outcome, ConnectionClosed)

    run(main())
