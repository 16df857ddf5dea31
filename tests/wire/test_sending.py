"""`send`, `broadcast`, `ping` and `pong`, side by side with those of `websockets`."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from websockets.asyncio.server import broadcast
from websockets.exceptions import ConnectionClosedError

from tests.wire.harness import DEFLATE, PING, PONG, frame, ours, run, upgraded
from tests.wire.side_by_side import Peer, outcome, play, turns
from wscluster.workers.connection import Connection


async def later(*chunks: Any) -> AsyncIterator[Any]:
    for chunk in chunks:
        await asyncio.sleep(0)
        if isinstance(chunk, Exception):
            raise chunk
        yield chunk


def at_once(*chunks: Any) -> Iterator[Any]:
    for chunk in chunks:
        if isinstance(chunk, Exception):
            raise chunk
        yield chunk


@pytest.mark.parametrize("head", [b"", DEFLATE], ids=["plain", "compressed"])
@pytest.mark.parametrize("text", [None, True, False])
def test_every_kind_of_message_is_sent_as_by_the_library(text: bool | None, head: bytes) -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        notes: list[object] = []
        for message in ("é", b"bytes", bytearray(b"array"), memoryview(b"view"), "", b""):
            await ws.send(message, text=text)
            notes.append(await peer.frame())
        for chunks in (["a", "é"], [b"a", b""], (bytearray(b"a"), memoryview(b"b")), {"key": 1}.keys()):
            for kind in (at_once, later):
                await ws.send(kind(*chunks), text=text)
                notes.append([await peer.frame() for _ in range(len(chunks) + 1)])
        await ws.send([], text=text)
        await ws.send(later(), text=text)
        await ws.send("after nothing", text=text)
        notes.append(await peer.frame())
        return notes

    play(scene, head)


@pytest.mark.parametrize("chunks", [("a", b"b"), (b"a", "b"), ("a", 5), ("a", OSError("the disk"))])
@pytest.mark.parametrize("kind", [at_once, later])
def test_chunks_that_cannot_be_sent_close_with_1011(kind: Any, chunks: tuple[Any, ...]) -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        sending = asyncio.ensure_future(outcome(ws.send(kind(*chunks))))
        sent = await peer.answer_close()
        failed = str(await sending).replace("async iterable", "iterable")
        return [sent, failed, ws.state, await outcome(ws.send("late"))]

    found = play(scene)
    assert b"\x03\xf3error in fragmented message" in found[0]  # type: ignore[operator]
    assert "ConnectionClosedError" in str(found[-1])


@pytest.mark.parametrize("message", [5, None, {"a": "b"}, object()])
def test_what_is_no_message_harms_nothing(message: object) -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        refused = await outcome(ws.send(message))
        await ws.send("next")
        return [refused, await peer.frame()]

    assert "TypeError" in str(play(scene))


def test_a_close_during_a_fragmented_message_is_1011() -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        go_on = asyncio.Event()

        async def slowly() -> AsyncIterator[str]:
            yield "one"
            await go_on.wait()
            yield "two"

        sending = asyncio.ensure_future(outcome(ws.send(slowly())))
        notes: list[object] = [await peer.frame()]
        closing = asyncio.ensure_future(ws.close())
        notes.append(await peer.answer_close())
        await closing
        go_on.set()
        return [*notes, await sending, await outcome(ws.send("late"))]

    assert b"close during fragmented message" in play(scene)[1]  # type: ignore[operator]


def test_a_failure_during_a_fragmented_message_ends_the_send_and_every_one_that_waits_for_it() -> None:
    async def main() -> None:
        done = asyncio.get_running_loop().create_future()
        go_on = asyncio.Event()

        async def slowly() -> AsyncIterator[str]:
            yield "one"
            await go_on.wait()
            yield "two"

        async def handler(ws: Connection) -> None:
            sends = [asyncio.ensure_future(outcome(ws.send(slowly())))]
            await turns()
            sends += [asyncio.ensure_future(outcome(ws.send(text))) for text in ("three", "four")]
            await turns()
            assert ws.deliver(b"\x81\x04room", 1, False, 1000)
            ws.fail(1011, "keepalive ping timeout")
            go_on.set()
            done.set_result([await sending for sending in sends])

        async with ours(handler) as served, upgraded(served.port) as (reader, writer):
            assert await reader.readexactly(5) == b"\x01\x03one"
            assert (await reader.readexactly(2 + 24))[2:4] == b"\x03\xf3"
            writer.write(frame(8, b"\x03\xf3"))
            assert await reader.read() == b"", "nothing may follow a close frame"
            for kind, *_ in await done:
                assert kind == "ConnectionClosedError"

    run(main())


def test_a_fragmented_message_that_is_cancelled_closes_at_once() -> None:
    """The library goes on as if nothing was, and the next message fails, because half a message is out."""

    async def main() -> None:
        async def never_ends() -> AsyncIterator[str]:
            yield "one"
            await asyncio.Event().wait()

        async def handler(ws: Connection) -> None:
            sending = asyncio.ensure_future(ws.send(never_ends()))
            await turns()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            with pytest.raises(ConnectionClosedError):
                await ws.send("two")

        async with ours(handler) as served, upgraded(served.port) as (reader, writer):
            await reader.readexactly(5)
            assert await reader.readexactly(31) == b"\x88\x1d\x03\xf3error in fragmented message"
            writer.write(frame(8, b"\x03\xf3"))
            assert await reader.read() == b""

    run(main())


def test_text_that_is_no_unicode_is_an_error_of_the_program_and_closes_nothing() -> None:
    """The library resets the connection."""

    async def main() -> None:
        async def handler(ws: Connection) -> None:
            with pytest.raises(UnicodeEncodeError):
                await ws.send("\ud800")
            await ws.send("still open")

        async with ours(handler) as served, served.connect() as client:
            assert await client.recv() == "still open"

    run(main())


# Broadcast


@pytest.mark.parametrize("head", [b"", DEFLATE], ids=["plain", "compressed"])
@pytest.mark.parametrize("text", [None, True, False])
@pytest.mark.parametrize("message", ["é", b"bytes", bytearray(b"array")])
def test_the_librarys_broadcast_writes_what_it_writes_to_its_own(message: Any, text: bool | None, head: bytes) -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        broadcast([ws, ws], message, text=text)
        await ws.send("then")
        return [await peer.frame(), await peer.frame(), await peer.frame()]

    play(scene, head)


def test_the_librarys_broadcast_skips_what_is_closed_and_what_sends_fragments(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        go_on = asyncio.Event()

        async def slowly() -> AsyncIterator[str]:
            yield "one"
            await go_on.wait()

        caplog.clear()
        sending = asyncio.ensure_future(ws.send(slowly()))
        notes: list[object] = [await peer.frame()]
        broadcast([ws], "skipped")
        notes.append([record.levelname for record in caplog.records])
        notes.append("skipped broadcast: sending a fragmented message" in caplog.text)

        async def raising() -> None:
            broadcast([ws], "skipped", raise_exceptions=True)

        notes.append(await outcome(raising()))
        go_on.set()
        await sending
        broadcast([ws], "heard")
        notes += [await peer.frame(), await peer.frame()]
        peer.close()
        await ws.wait_closed()
        broadcast([ws], "nobody", raise_exceptions=True)
        return [*notes, await peer.rest()]

    with caplog.at_level(logging.INFO):
        assert play(scene)[1:3] == [["WARNING"], True]


# Pings


def pong(payload: bytes) -> bytes:
    return frame(PONG, payload)


def test_a_pong_answers_its_ping_and_all_before_it() -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        first, second, third = await ws.ping("one"), await ws.ping(bytearray(b"two")), await ws.ping(memoryview(b"3"))
        notes: list[object] = [[await peer.frame() for _ in range(3)], ws.latency]
        peer.send(pong(b"nobody's"), pong(b"two"))
        await peer.arrived()
        notes.append([ping.done() for ping in (first, second, third)])
        notes.append([0 <= latency < 5 for latency in (await first, await second, ws.latency)])
        notes.append(ws.latency == await second)
        peer.send(pong(b"3"), pong(b"3"))
        return [*notes, 0 <= await third < 5]

    assert play(scene)[2:] == [[True, True, False], [True, True, True], True, True]


def test_a_ping_that_still_waits_is_not_sent_twice() -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        first = await ws.ping("same")
        notes = [await outcome(ws.ping("same")), await outcome(ws.ping(b"same"))]
        await peer.frame()
        peer.send(pong(b"same"))
        await first
        again = await ws.ping("same")
        notes.append(await peer.frame())
        again.cancel()
        peer.send(pong(b"same"))
        await peer.arrived()
        await ws.ping("same")
        return [*notes, await peer.frame()]

    assert "ConcurrencyError" in str(play(scene))


def test_a_ping_without_data_has_four_bytes_of_its_own() -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        pings = [await ws.ping() for _ in range(3)]
        frames = [await peer.frame() for _ in range(3)]
        peer.send(pong(frames[-1][2:]))
        await asyncio.gather(*pings)
        return [[data[:2] for data in frames], len({data[2:] for data in frames})]

    assert play(scene) == [[b"\x89\x04"] * 3, 3]


@pytest.mark.parametrize("call", ["ping", "pong"])
@pytest.mark.parametrize("data", [5, ["a"], "x" * 126, b"x" * 125, "é"])
def test_what_a_ping_may_carry(data: Any, call: str) -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        result = await outcome(getattr(ws, call)(data))
        await ws.send("next")
        first = await peer.frame()
        return [result if isinstance(result, tuple) else "sent", first]

    play(scene)


@pytest.mark.parametrize("how", ["close", "abort"])
def test_a_ping_without_a_pong_ends_with_the_connection(how: str) -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        waiters = [await ws.ping("one"), await ws.ping("two")]
        peer.close(4000, "bye") if how == "close" else peer.abort()
        ends = [await outcome(waiter) for waiter in waiters]
        if how == "abort":  # it may be seen as a reset or as an end: that cause is not compared
            ends = [end[:4] for end in ends if isinstance(end, tuple)]
        return [*ends, await outcome(ws.ping()) is not None, (await outcome(ws.pong("x"))) is not None]

    assert "ConnectionClosedError" in str(play(scene))


def test_pings_are_answered_while_the_handler_does_something_else() -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        peer.send(frame(PING, b"a"), frame(PING), frame(PONG, b"unasked"), frame(PING, b"x" * 125))
        return [await peer.frame(), await peer.frame(), await peer.frame()]

    play(scene)
