"""`recv` and `recv_streaming`, side by side with those of `websockets`."""

import asyncio
import contextlib
import functools
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.wire.harness import BINARY, CONT, PING, TEXT, frame, ours, run, until, upgraded
from tests.wire.side_by_side import Peer, chunks_of, outcome, play, turns
from wscluster.workers.connection import Connection


async def first_of(ws: Any) -> object:
    async for message in ws:
        return message
    return None


CALLS: dict[str, Callable[[Any], Coroutine[Any, Any, object]]] = {
    "recv": lambda ws: ws.recv(),
    "recv_streaming": lambda ws: chunks_of(ws.recv_streaming()),
    "for": lambda ws: first_of(ws),
}


def fragments(opcode: int, *payloads: bytes) -> list[bytes]:
    last = len(payloads) - 1
    return [frame(CONT if at else opcode, payload, fin=at == last) for at, payload in enumerate(payloads)]


@pytest.mark.parametrize("second", ["recv", "recv_streaming"])
@pytest.mark.parametrize("first", ["recv", "recv_streaming"])
def test_a_second_receiver_is_refused_and_the_first_gets_its_message(first: str, second: str) -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        waiting = asyncio.ensure_future(CALLS[first](ws))
        await turns()
        refused = await outcome(CALLS[second](ws))
        peer.send(frame(TEXT, b"one"), frame(TEXT, b"two"))
        return [refused, await waiting, await CALLS[second](ws)]

    assert "ConcurrencyError" in str(play(scene))


@pytest.mark.parametrize("call", ["recv", "recv_streaming", "for"])
def test_what_is_cancelled_before_a_message_came_loses_nothing(call: str) -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        waiting = asyncio.ensure_future(CALLS[call](ws))
        await turns()
        waiting.cancel()
        cancelled = await outcome(waiting)
        peer.send(frame(TEXT, b"one"), *fragments(BINARY, b"tw", b"o"))
        return [cancelled, await CALLS["recv"](ws), await CALLS["recv_streaming"](ws)]

    assert play(scene)[1:] == ["one", [b"tw", b"o", "whole"]]


def test_a_recv_that_is_cancelled_in_the_middle_of_a_fragmented_message_loses_nothing() -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        first, second, third = fragments(TEXT, b"fr", b"agm", b"ents")
        waiting = asyncio.ensure_future(ws.recv())
        peer.send(first, second)
        await peer.arrived()
        waiting.cancel()
        cancelled = await outcome(waiting)
        streamed = aiter(ws.recv_streaming())
        notes = [cancelled, await anext(streamed), await anext(streamed)]
        peer.send(third)
        return [*notes, await chunks_of(streamed)]

    assert play(scene)[1:] == ["fr", "agm", ["ents", "whole"]]


def test_fragments_are_given_out_before_the_message_is_whole() -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        notes: list[object] = []
        for opcode in (TEXT, BINARY):
            stream = aiter(ws.recv_streaming())
            for data in fragments(opcode, b"one", b"", b"two", b""):
                asyncio.get_running_loop().call_later(0.001, peer.send, data)
                notes.append(await anext(stream))
            notes.append(await chunks_of(stream))
        return notes

    assert play(scene) == ["one", "", "two", "", ["whole"], b"one", b"", b"two", b"", ["whole"]]


@pytest.mark.parametrize("decode", [None, True, False])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("payloads", [("é€".encode(),), ("é".encode()[:1], "é".encode()[1:] + b"!", b""), (b"",)])
def test_decode_holds_for_whole_messages_and_for_streams(
    payloads: tuple[bytes, ...], opcode: int, decode: bool | None
) -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        peer.send(*fragments(opcode, *payloads) * 2, frame(TEXT, b"next"))
        await peer.arrived()
        return [await chunks_of(ws.recv_streaming(decode)), await ws.recv(decode=decode), await ws.recv()]

    assert play(scene)[-1] == "next"


@pytest.mark.parametrize("then", ["recv", "recv_streaming"])
@pytest.mark.parametrize("how", ["cancelled", "left", "left at its last fragment", "closed"])
def test_a_stream_that_is_not_read_to_its_end_makes_every_later_call_fail(how: str, then: str) -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        first, second = fragments(TEXT, b"one", b"two")
        stream = aiter(ws.recv_streaming())
        peer.send(first)
        notes = [await anext(stream)]
        if how == "cancelled":
            waiting = asyncio.ensure_future(anext(stream))
            await turns()
            waiting.cancel()
            notes.append(await outcome(waiting))
        if how == "closed":
            await stream.aclose()
        peer.send(second)
        await peer.arrived()
        if how == "left at its last fragment":
            notes.append(await anext(stream))
        peer.send(frame(TEXT, b"next"))
        notes.append(await outcome(CALLS[then](ws)))
        await ws.send("still sends")
        notes.append(await peer.frame())
        closing = asyncio.ensure_future(ws.close())
        notes.append(await peer.answer_close())
        return [*notes, await closing, ws.close_code]

    assert "ConcurrencyError" in str(play(scene))


@pytest.mark.parametrize("end", ["close", "bad close", "end", "abort"])
@pytest.mark.parametrize("read", [0, 1, 2])
def test_what_came_before_the_end_of_the_connection_is_still_streamed(read: int, end: str) -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        stream = aiter(ws.recv_streaming())
        peer.send(*fragments(TEXT, b"one", b"two", b"")[:2])
        await peer.arrived()
        notes = [await anext(stream) for _ in range(read)]
        if end == "close":
            peer.close()
        elif end == "bad close":
            peer.close(4000, "bad")
        elif end == "end":
            peer.end()
        else:
            peer.abort()
        await ws.wait_closed()
        return [*notes, await chunks_of(stream)]

    found = play(scene)
    assert "one" in str(found)
    assert "ConnectionClosed" in str(found)


@pytest.mark.parametrize("end", ["close", "end"])
def test_a_stream_that_waits_ends_with_its_connection(end: str) -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        notes: list[object] = []
        peer.send(fragments(TEXT, b"one", b"two")[0])
        waiting = asyncio.ensure_future(chunks_of(ws.recv_streaming()))
        await peer.arrived()
        peer.close(1001) if end == "close" else peer.end()
        notes.append(await waiting)
        return notes

    play(scene)


def test_a_stream_of_a_connection_without_a_message_ends_with_it() -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        waiting = asyncio.ensure_future(chunks_of(ws.recv_streaming()))
        await turns()
        peer.close()
        return [await waiting]

    play(scene)


@pytest.mark.parametrize("payloads", [(b"\xff",), (b"good", b"\xff"), (b"good", b"cut \xc3"), (b"\xc3", b"(", b"")])
def test_a_stream_that_is_no_utf_8_closes_with_1007(payloads: tuple[bytes, ...]) -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        peer.send(*fragments(TEXT, *payloads))
        reading = asyncio.ensure_future(chunks_of(ws.recv_streaming()))
        return [await peer.answer_close(), await reading]

    assert b"\x03\xef" in play(scene)[0]  # type: ignore[operator]


def test_messages_and_pings_between_and_behind_the_fragments_of_a_stream_keep_their_place() -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        one, two = fragments(TEXT, b"one", b"two"), fragments(BINARY, b"three", b"four", b"five")
        stream = aiter(ws.recv_streaming())
        peer.send(one[0], frame(PING, b"a"))
        notes = [await anext(stream), await peer.frame()]
        peer.send(frame(PING, b"b"), one[1], frame(TEXT, b"whole"), two[0], frame(PING, b"c"), two[1])
        notes += [await peer.frame(), await peer.frame(), await chunks_of(stream), await ws.recv()]
        stream = aiter(ws.recv_streaming())
        notes += [await anext(stream), await anext(stream)]
        peer.send(two[2], frame(TEXT, b"last"))
        return [*notes, await chunks_of(stream), await ws.recv()]

    assert play(scene)[4:] == [["two", "whole"], "whole", b"three", b"four", [b"five", "whole"], "last"]


def test_a_stream_may_have_more_fragments_than_a_message_that_is_kept() -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        stream = asyncio.ensure_future(chunks_of(ws.recv_streaming()))
        await turns()
        peer.send(*fragments(BINARY, *(b"x" for _ in range(6000))), frame(TEXT, b"next"))
        return [await stream, await ws.recv()]

    assert len(play(scene)[0]) == 6001  # type: ignore[arg-type]


def test_a_message_of_many_fragments_that_nobody_streams_closes_with_1009() -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        receiving = asyncio.ensure_future(outcome(ws.recv()))
        await turns()
        peer.send(*fragments(BINARY, *(b"x" for _ in range(4100))))
        answer = await peer.answer_close()
        return [answer, str(await receiving).replace("TooManyFragments", "NoneType")]

    assert b"\x03\xf1" in play(scene)[0]  # type: ignore[operator]


@pytest.mark.parametrize("queue", [1, 4])
def test_a_stream_that_is_read_slowly_gets_every_fragment(queue: int) -> None:
    payloads = [os.urandom(2000) for _ in range(400)]

    async def scene(ws: Any, peer: Peer) -> list[object]:
        peer.send(*fragments(BINARY, *payloads), frame(TEXT, b"next"))
        got = b""
        async for chunk in ws.recv_streaming():
            got += chunk
            await asyncio.sleep(0)
        return [got == b"".join(payloads), await ws.recv()]

    assert play(scene, ws_max_queue=queue) == [True, "next"]


def test_a_stream_that_nobody_reads_on_is_held_in_the_kernel() -> None:
    async def main() -> None:
        opened = asyncio.Event()

        async def handler(ws: Connection) -> None:
            stream = aiter(ws.recv_streaming())
            await anext(stream)
            opened.set()
            await until(lambda: len(ws._inbox) > 4)
            await asyncio.sleep(0.05)  # turns in which more could come
            assert len(ws._inbox) == 5
            assert ws._paused_reading
            got = [await anext(stream) for _ in range(300)]
            assert len(b"".join(got)) == 300_000  # type: ignore[arg-type]
            await ws.send("read on")
            with contextlib.suppress(ConnectionClosed):
                await anext(stream)

        async with ours(handler, ws_max_queue=4) as served, upgraded(served.port) as (reader, writer):
            writer.write(frame(BINARY, b"first", fin=False))
            await opened.wait()
            writer.write(frame(CONT, bytes(1000), fin=False) * 300)
            assert await reader.readexactly(9) == b"\x81\x07read on"
            assert served.server.messages_in == 0, "no message was whole"

    run(main())


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_a_stream_from_a_client_that_sends_chunks_has_its_chunks(compression: Any) -> None:
    async def main() -> None:
        got: list[object] = []

        async def handler(ws: Connection) -> None:
            got.append(await chunks_of(ws.recv_streaming()))
            got.append(await ws.recv())

        async with ours(handler) as served, served.connect(compression=compression) as client:
            await client.send(["one ", "two ", "three"])
            await client.send([b"four ", b"five"])
            await client.wait_closed()
            assert served.server.messages_in == 2
        assert got == [["one ", "two ", "three", "", "whole"], b"four five"]

    run(main())


def test_a_stream_of_a_closed_connection_says_that_it_is_closed_each_time() -> None:
    """The library says so once, and from then on that somebody else is receiving."""

    async def main() -> None:
        done = asyncio.get_running_loop().create_future()

        async def handler(ws: Connection) -> None:
            await ws.wait_closed()
            calls = (chunks_of(ws.recv_streaming()), ws.recv(), chunks_of(ws.recv_streaming()))
            done.set_result([str(await outcome(call)) for call in calls])

        async with ours(handler) as served, served.connect():
            pass
        assert all("ConnectionClosedOK" in text for text in await done)

    run(main())


def test_a_stream_that_is_closed_by_another_task_never_skips_a_fragment() -> None:
    async def main() -> None:
        got: list[Any] = []
        opened = asyncio.Event()

        async def handler(ws: Connection) -> None:
            stream = aiter(ws.recv_streaming(decode=False))
            got.append(await anext(stream))
            closing = asyncio.ensure_future(ws.close())
            opened.set()
            await closing
            with contextlib.suppress(ConnectionClosed):
                async for chunk in stream:
                    got.append(chunk)

        async with ours(handler, ws_max_queue=4) as served, upgraded(served.port) as (reader, writer):
            numbered = functools.partial(int.to_bytes, length=2, byteorder="big")
            writer.write(frame(BINARY, numbered(0), fin=False))
            await opened.wait()
            writer.write(b"".join(frame(CONT, numbered(at), fin=False) for at in range(1, 100)))
            writer.write(frame(8, b"\x03\xe8"))
            assert await reader.read() == b"\x88\x02\x03\xe8"
            await until(lambda: not served.server.connections and not served.server._tasks)
        assert got == [numbered(at) for at in range(len(got))]
        assert len(got) == 6

    run(main())


def test_an_unfinished_message_that_nobody_receives_stops_no_ping() -> None:
    async def main() -> None:
        async def handler(ws: Connection) -> None:
            await ws.wait_closed()

        async with ours(handler, ws_max_queue=2) as served, upgraded(served.port) as (reader, writer):
            writer.write(frame(BINARY, b"x", fin=False) + frame(CONT, b"x", fin=False) * 60 + frame(PING, b"seen?"))
            assert await reader.readexactly(7) == b"\x8a\x05seen?"

    run(main())


def test_a_stream_may_take_as_long_as_it_likes() -> None:
    async def main() -> None:
        async def handler(ws: Connection) -> None:
            stream = aiter(ws.recv_streaming(decode=False))
            await anext(stream)
            assert len(served.server.message_deadlines) == 0
            await ws.send(b"".join([chunk async for chunk in stream]))
            assert len(served.server.message_deadlines) == 0

        async with ours(handler, ws_message_timeout=0.05) as served, upgraded(served.port) as (reader, writer):
            writer.write(frame(BINARY, b"a", fin=False))
            await asyncio.sleep(0.2)
            writer.write(frame(CONT, b"b"))
            assert await reader.readexactly(3) == b"\x82\x01b"

    run(main())
