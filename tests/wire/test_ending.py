"""How a connection ends, side by side with `websockets`: by `close`, by its client, and with its handler."""

import asyncio
import contextlib
import logging
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.wire.harness import BINARY, CLOSE, TEXT, frame, ours, read_frame, run, theirs, until, upgraded
from tests.wire.side_by_side import Peer, chunks_of, outcome, play, turns
from wscluster.workers.connection import Connection


@pytest.mark.parametrize("close", [(), (1001, "away"), (4321, "é"), (3000,), (1011, "x" * 123)])
def test_close_sends_its_code_and_returns_when_the_connection_is_gone(close: tuple[Any, ...]) -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        closing = asyncio.ensure_future(ws.close(*close))
        frames = await peer.answer_close()
        notes = [frames, await closing, ws.state, ws.close_code, ws.close_reason]
        return [*notes, await outcome(ws.recv()), await outcome(ws.send("late")), await ws.close(1011, "again")]

    play(scene)


@pytest.mark.parametrize("close", [(999,), (1005,), (1006,), (1015,), (2999,), (5000,), (1000, "x" * 124)])
def test_a_close_that_is_not_allowed_harms_nothing(close: tuple[Any, ...]) -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        refused = await outcome(ws.close(*close))
        await ws.send("still open")
        return [refused, await peer.frame()]

    assert "ProtocolError" in str(play(scene))


def test_several_tasks_may_close_and_wait() -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        calls = [ws.close(1001, "first"), ws.close(4000, "second"), ws.wait_closed(), ws.wait_closed(), ws.recv()]
        tasks = [asyncio.ensure_future(outcome(call)) for call in calls]
        await turns()
        cancelled = asyncio.ensure_future(ws.wait_closed())
        await turns()
        cancelled.cancel()
        await turns()
        notes: list[object] = [[task.done() for task in tasks], cancelled.cancelled(), await peer.answer_close()]
        return [*notes, await asyncio.gather(*tasks), await ws.wait_closed()]

    assert play(scene)[0] == [False] * 5


@pytest.mark.parametrize("call", ["recv", "recv_streaming", "send", "ping", "pong"])
def test_what_is_called_while_the_closing_handshake_goes_on_ends_with_it(call: str) -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        closing = asyncio.ensure_future(ws.close(1001))
        await turns()
        calls = {"send": lambda: ws.send("late"), "recv_streaming": lambda: chunks_of(ws.recv_streaming())}
        waiting = asyncio.ensure_future(outcome(calls.get(call, getattr(ws, call))()))
        await turns()
        notes: list[object] = [waiting.done(), await peer.answer_close(), await waiting]
        return [*notes, await closing]

    assert play(scene)[0] is False


def test_messages_that_come_before_the_clients_close_frame_are_received_after_ours() -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        closing = asyncio.ensure_future(ws.close())
        peer.send(frame(TEXT, b"one"), frame(BINARY, b"two"))
        notes: list[object] = [await peer.answer_close(), await closing]
        return [*notes, await outcome(ws.recv()), await outcome(ws.recv()), await outcome(ws.recv())]

    assert play(scene)[2:4] == ["one", b"two"]


def test_a_client_that_never_answers_the_close_frame_is_given_up() -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        await ws.close()
        notes: list[object] = [await peer.frame(), ws.close_code, await outcome(ws.recv())]
        return [*notes, await outcome(ws.send("late"))]

    assert "TimeoutError" in str(play(scene, ws_close_timeout=0.1))


@pytest.mark.parametrize("raises", [False, True])
def test_a_connection_is_a_context_manager(raises: bool) -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        async def inside() -> str:
            async with ws as same:
                assert same is ws
                await ws.send("inside")
                if raises:
                    raise LookupError("what happened")
            return "left"

        leaving = asyncio.ensure_future(outcome(inside()))
        return [await peer.answer_close(), await leaving, ws.close_code]

    play(scene)


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1007, 1011, 1012, 3000, 4999, None])
def test_the_loop_over_messages_and_a_close_frame(code: int | None) -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        async def read() -> list[object]:
            return [message async for message in ws]

        peer.send(frame(TEXT, b"one"))
        if code is None:
            peer.send(frame(CLOSE))
            peer.end()
        else:
            peer.close(code, "why")
        return [await outcome(read()), ws.close_code, ws.close_reason, await peer.frame()]

    play(scene)


# Handlers


class Fault(Exception):
    pass


async def cancels_itself(ws: Any) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(1)


async def raises(ws: Any) -> None:
    raise Fault("of the handler")


async def returns(ws: Any) -> None:
    await ws.send("bye")


async def closes_and_goes_on(ws: Any) -> None:
    await ws.close(4000, "enough")
    await ws.send("late")


async def is_told_of_the_end(ws: Any) -> None:
    await ws.recv()
    await ws.recv()


async def raises_in_a_group(ws: Any) -> None:
    raise ExceptionGroup("two", [Fault("one"), ConnectionClosed(None, None)])


HANDLERS = [cancels_itself, raises, returns, closes_and_goes_on, is_told_of_the_end, raises_in_a_group]


@pytest.mark.parametrize("handler", HANDLERS)
def test_the_end_of_a_handler_closes_as_with_the_library(handler: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def client(port: int) -> list[bytes]:
        async with upgraded(port) as (reader, writer):
            writer.write(frame(TEXT, b"one"))
            frames: list[bytes] = []
            while not frames or frames[-1][0] != 0x80 | CLOSE:
                if handler is is_told_of_the_end:
                    writer.write(frame(CLOSE, b"\x0f\xa0"))
                frames.append(await read_frame(reader))
            with contextlib.suppress(OSError):
                writer.write(frame(CLOSE, frames[-1][2:]))
                writer.write_eof()
                await reader.read()
            return frames

    async def main() -> None:
        async with theirs(handler) as port:
            expected = await client(port)
        caplog.clear()
        async with ours(handler) as served:
            assert await client(served.port) == expected

    with caplog.at_level(logging.ERROR):
        run(main())
    assert ("handler failed" in caplog.text) == (handler in (raises, raises_in_a_group))


def test_a_handler_that_never_reads_holds_its_client_back_and_is_told_when_it_does() -> None:
    async def scene(ws: Any, peer: Peer) -> list[object]:
        for number in range(30):
            peer.send(frame(TEXT, f"{number} ".encode() + bytes(20_000)))
        peer.close()
        return [[(await ws.recv())[:3] for _ in range(30)], await outcome(ws.recv())]

    assert len(play(scene, ws_max_queue=2)[0]) == 30  # type: ignore[arg-type]


def test_a_task_that_outlives_its_handler_is_told_that_the_connection_is_closed() -> None:
    async def main() -> None:
        tasks: list[asyncio.Task[object]] = []

        async def handler(ws: Connection) -> None:
            tasks.append(asyncio.ensure_future(outcome(ws.recv())))
            tasks.append(asyncio.ensure_future(outcome(ws.wait_closed())))
            await turns()

        async with ours(handler) as served, served.connect() as client:
            await client.wait_closed()
            told, waited = await asyncio.gather(*tasks)
        assert isinstance(told, tuple)
        assert told[0] == "ConnectionClosedOK"
        assert waited is None

    run(main())


def test_a_handler_that_swallows_its_cancellation_holds_the_drain_no_longer_than_its_timeout(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def stubborn(ws: Connection) -> None:
            while not go_on.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await go_on.wait()

        async with ours(stubborn) as served, served.connect():
            await served.server.drain(1001, "", 0.1)
            assert not served.server.connections, "its connection was reset"
            go_on.set()
            await until(lambda: not served.server._tasks)

    with caplog.at_level(logging.WARNING):
        run(main())
    assert "1 handlers did not end within 0.1 s: cancelled" in caplog.text


@pytest.mark.parametrize("first", ["server", "client"])
def test_after_both_close_frames_nobody_waits_for_the_client(first: str) -> None:
    async def main() -> None:
        closed = asyncio.Event()

        async def handler(ws: Connection) -> None:
            await (ws.close() if first == "server" else ws.wait_closed())
            closed.set()

        async with ours(handler) as served, upgraded(served.port) as (reader, writer):
            if first == "client":
                writer.write(frame(CLOSE, b"\x03\xe8"))
            assert await read_frame(reader) == b"\x88\x02\x03\xe8"
            if first == "server":
                writer.write(frame(CLOSE, b"\x03\xe8"))
            await closed.wait()
            assert await reader.read() == b""

    run(main())
