"""Handlers written for `websockets.asyncio.server.serve` run unchanged under ``wscluster serve``."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.cluster.library_support import Server, hear_json, on_both, tell_json
from tests.support import run
from wscluster.testing import Cluster


def test_hello() -> None:
    async def play(server: Server) -> None:
        async with server.connect() as ws:
            await ws.send("Ada")
            assert await ws.recv() == "Good day, Ada!"
            await ws.wait_closed()
            assert ws.close_code == 1000

    on_both("library_examples:hello", play)


def test_echo() -> None:
    async def play(server: Server) -> None:
        async with server.connect() as ws:
            for message in ("text", b"bytes", "", "é" * 50_000):
                await ws.send(message)
                assert await ws.recv() == message

    on_both("library_examples:echo", play)


def test_a_counter_that_all_share() -> None:
    async def play(server: Server) -> None:
        async with server.connect() as first:
            assert [await hear_json(first), await hear_json(first)] == [{"users": 1}, {"value": 0}]
            async with server.connect() as second:
                assert await hear_json(first) == {"users": 2}
                assert [await hear_json(second), await hear_json(second)] == [{"users": 2}, {"value": 0}]
                await tell_json(second, action="up")
                assert [await hear_json(first), await hear_json(second)] == [{"value": 1}] * 2
                await tell_json(first, action="down")
                assert [await hear_json(first), await hear_json(second)] == [{"value": 0}] * 2
            assert await hear_json(first) == {"users": 1}

    on_both("library_examples:counter", play)


def test_a_consumer() -> None:
    async def play(server: Server) -> None:
        async with server.connect() as ws:
            for number in (*range(1, 50), -sum(range(1, 50))):
                await ws.send(str(number))
            assert await ws.recv() == "nothing left"

    on_both("library_examples:consumer", play)


def test_a_producer_ends_with_its_client() -> None:
    async def play(server: Server) -> None:
        async with server.connect() as ws:
            assert [await ws.recv() for _ in range(20)] == [str(number) for number in range(20)]

    on_both("library_examples:producer", play)


@pytest.mark.parametrize("handler", ["first_to_end", "in_a_group"])
def test_a_consumer_and_a_producer(handler: str) -> None:
    async def play(server: Server) -> None:
        async with server.connect() as ws:
            for question in "abc":
                await ws.send(question)
                assert await ws.recv() == f"answer to {question}"
        assert ws.close_code == 1000

    on_both(f"library_examples:{handler}", play)


def test_a_timeout_of_recv_loses_nothing() -> None:
    async def play(server: Server) -> None:
        async with server.connect() as ws:
            assert await ws.recv() == "still there?"
            await ws.send("yes")
            while (heard := await ws.recv()) == "still there?":
                pass
            assert heard == "yes"

    on_both("library_examples:impatient", play)


@pytest.mark.parametrize(
    "handler", ["naive_chat", "chat_with_tasks", "chat_with_broadcast", "chat_with_queues", "chat_with_a_stream"]
)
def test_what_one_says_reaches_everybody_in_order(handler: str) -> None:
    async def play(server: Server) -> None:
        async with server.clients(5) as clients:
            # A handler has begun when it answers: a client that only listens would be told nothing before that.
            for number, ws in enumerate(clients):
                await ws.send(f"I am {number}")
                while await ws.recv() != f"I am {number}":
                    pass
            for number in range(20):
                await clients[0].send(str(number))
            for ws in clients:
                heard = [await ws.recv()]
                while len(heard) < 20:
                    heard = [text for text in [*heard, await ws.recv()] if not str(text).startswith("I am")]
                assert heard == [str(number) for number in range(20)]

    on_both(f"library_examples:{handler}", play)


def test_a_message_to_one_of_them() -> None:
    async def play(server: Server) -> None:
        async with server.clients(3) as clients:
            for name, ws in zip("abc", clients, strict=True):
                await ws.send(name)
                assert await ws.recv() == "known"
            await clients[0].send(json.dumps(["c", "psst"]))
            assert await hear_json(clients[2]) == ["a", "psst"]

    on_both("library_examples:direct_messages", play)


def test_the_game_of_the_tutorial() -> None:
    async def play(server: Server) -> None:
        async with server.clients(4) as (red, yellow, watcher, stranger):
            await tell_json(red, type="init")
            keys = await hear_json(red)
            await tell_json(red, column=3)
            assert await hear_json(red) == {"type": "play", "player": "red", "column": 3}
            await tell_json(yellow, type="init", join=keys["join"])
            await tell_json(watcher, type="init", watch=keys["watch"])
            await tell_json(stranger, type="init", join="no such key")
            assert (await hear_json(stranger))["type"] == "error"
            for ws in (yellow, watcher):
                assert await hear_json(ws) == {"type": "play", "player": "red", "column": 3}
            await tell_json(yellow, column=9)
            assert (await hear_json(yellow))["type"] == "error"
            await tell_json(yellow, column=4)
            for ws in (red, yellow, watcher):
                assert await hear_json(ws) == {"type": "play", "player": "yellow", "column": 4}

    on_both("library_examples:game", play)


# Who is there


def test_a_token_as_the_first_message() -> None:
    async def play(server: Server) -> None:
        async with server.connect() as ws:
            await ws.send("good token")
            assert await ws.recv() == "Hello alice!"
            await ws.send("on it goes")
            assert await ws.recv() == "on it goes"
        async with server.connect() as ws:
            await ws.send("bad token")
            with pytest.raises(ConnectionClosed):
                await ws.recv()
            assert (ws.close_code, ws.close_reason) == (1011, "authentication failed")

    on_both("library_examples:token_comes_first", play)


def test_a_function_for_each_path() -> None:
    async def play(server: Server) -> None:
        async with server.connect("/hello?from=here") as ws:
            await ws.send("Ada")
            assert await ws.recv() == "Good day, Ada!"
        async with server.connect("/echo") as ws:
            await ws.send("Ada")
            assert await ws.recv() == "Ada"
        async with server.connect("/nowhere") as ws:
            await ws.wait_closed()
            assert (ws.close_code, ws.close_reason) == (1008, "no such path")

    on_both("library_examples:router", play)


def test_what_a_connection_knows_of_itself() -> None:
    told: list[Any] = []

    async def play(server: Server) -> None:
        options: Any = {"origin": "https://example.com", "user_agent_header": "a test"}
        async with server.connect("/a?b=c", **options) as ws:
            told.append(await hear_json(ws))

    on_both("library_examples:about", play)
    assert told[0] == told[1]
    assert told[0]["origin"] == "https://example.com"


def test_a_handler_with_more_arguments() -> None:
    async def play(server: Server) -> None:
        async with server.connect() as ws:
            await ws.send("something")
            assert await ws.recv() == "said: something"

    on_both("library_examples:with_argument", play)


# Frames, pings, the end


def test_fragments_pass_through_as_they_come() -> None:
    async def play(server: Server) -> None:
        go_on = asyncio.Event()

        async def fragments() -> AsyncIterator[str]:
            yield "one "
            await go_on.wait()
            yield "two "

        async with server.connect() as ws:
            for _ in range(2):
                go_on.clear()
                sending = asyncio.create_task(ws.send(fragments()))
                received = aiter(ws.recv_streaming())
                assert await anext(received) == "ONE ", "before the second one was sent"
                go_on.set()
                assert "".join([str(fragment) async for fragment in received]) == "TWO "
                await sending

    on_both("library_examples:in_pieces", play)


def test_pings_and_latency() -> None:
    async def play(server: Server) -> None:
        async with server.connect() as ws:
            assert await hear_json(ws) == [True, True]

    on_both("library_examples:latency", play)


def test_several_streams_over_one_connection() -> None:
    async def play(server: Server) -> None:
        async with server.connect() as ws:
            for stream, after in enumerate((0.1, 0.05, 0)):
                await tell_json(ws, stream=stream, after=after)
            assert sorted([(await hear_json(ws))["stream"] for _ in range(3)]) == [0, 1, 2]

    on_both("library_examples:json_commands", play)


@pytest.mark.parametrize("handler", ["show_time", "listen"])
def test_a_clock_that_ticks_for_everybody(handler: str) -> None:
    async def main() -> None:
        async with Cluster(f"tests.cluster.ticking_example:{handler}", workers=1) as cluster:
            async with cluster.connect() as first, cluster.connect() as second:
                for ws in (first, second):
                    times = [str(await ws.recv()) for _ in range(5)]
                    assert times == sorted(times)
                    assert len(set(times)) == 5
            assert await cluster.stop() == 0
            assert "Traceback" not in "\n".join(cluster.output)

    run(main())


def test_a_stop_lets_handlers_clean_up() -> None:
    async def main() -> None:
        async with (
            Cluster("tests.cluster.library_examples:says_goodbye", workers=1) as cluster,
            cluster.connect() as ws,
        ):
            assert await cluster.stop() == 0
            await ws.wait_closed()
            assert ws.close_code == 1001
            text = "\n".join(cluster.output)
            assert "ConnectionClosedOK 1001" in text
            assert "cleaned up" in text

    run(main())
