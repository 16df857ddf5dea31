"""`wscluster.subscribe`: rooms for whoever is no connection."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import wscluster
from tests.cluster.room_support import Valkey, redis_at, wait_until
from tests.support import run
from wscluster.testing import Cluster

HEAR = "tests.cluster.recovery_handlers:hear"


async def enter(ws: Any, *rooms: Any, **options: Any) -> str:
    await ws.send(json.dumps({"rooms": rooms, "options": options}))
    return str(await ws.recv())


async def wait_heard(ws: Any, position: str) -> None:
    while json.loads(await ws.recv())["position"] != position:
        pass


def test_messages_of_several_rooms_come_with_their_positions_and_types_until_the_worker_drains() -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            cluster = await stack.enter_async_context(Cluster(HEAR, workers=1))
            one, two = [await stack.enter_async_context(cluster.connect()) for _ in range(2)]
            assert await enter(one, "lobby", "news", "lobby") == "entered"
            assert await enter(two, "lobby") == "entered"
            for ws in (one, two):
                await ws.send("all")
            publisher = await stack.enter_async_context(wscluster.Publisher(control_socket=str(cluster.control_socket)))
            expected = []
            for room, data in (("lobby", "snow ☃"), ("news", b"\x00\xff"), ("other", "not heard"), ("lobby", "")):
                position = await publisher.publish(room, data)
                if room != "other":
                    shown = data if isinstance(data, str) else list(data)
                    expected.append({"room": room, "data": shown, "position": position})
            assert sorted([json.loads(await one.recv()) for _ in range(3)], key=str) == sorted(expected, key=str)
            assert [json.loads(await two.recv()) for _ in range(2)] == [expected[0], expected[2]]

    run(main())


def test_too_slow_the_oldest_are_dropped_and_a_gap_comes_in_their_place() -> None:
    async def main() -> None:
        async with Cluster(HEAR, workers=1) as cluster, cluster.connect() as ws, cluster.connect() as other:
            assert await enter(ws, "lobby", max_queue=3) == "entered"
            assert await enter(other, "lobby") == "entered"
            await other.send("all")
            async with wscluster.Publisher(control_socket=str(cluster.control_socket)) as publisher:
                positions = [await publisher.publish("lobby", str(number)) for number in range(4)]
                # A publish is answered before the worker has heard it: what one of its subscribers has, the other has.
                await wait_heard(other, positions[-1])
                await ws.send("next")
                assert json.loads(await ws.recv())["before"] == positions[1]
                positions += [await publisher.publish("lobby", str(number)) for number in range(4, 10)]
                await wait_heard(other, positions[-1])
                await ws.send("next")
                gap = json.loads(await ws.recv())
                assert gap["before"] == positions[7]
                await ws.send("all")
                heard = [json.loads(await ws.recv()) for _ in range(3)]
                assert [(item["data"], item["position"]) for item in heard] == [
                    (str(number), positions[number]) for number in (7, 8, 9)
                ]

    run(main())


def test_a_loss_of_the_bus_is_a_gap_and_the_iteration_goes_on(tmp_path: Path) -> None:
    async def main(valkey: Valkey) -> None:
        async with Cluster(HEAR, workers=1, redis_url=valkey.url, bus_timeout=1.0) as cluster, cluster.connect() as ws:
            assert await enter(ws, "lobby") == "entered"
            await ws.send("all")
            async with wscluster.Publisher(valkey.url) as publisher:
                position = await publisher.publish("lobby", "before")
            assert json.loads(await ws.recv())["data"] == "before"
            valkey.kill()
            await cluster.wait_output("the bus is gone")
            async with cluster.connect() as other:
                assert (await enter(other, "elsewhere")).startswith("BusUnavailable: room 'elsewhere'")
            valkey.start()
            assert json.loads(await ws.recv()) == {"room": "lobby", "after": position, "before": ""}
            async with wscluster.Publisher(valkey.url) as publisher:
                await publisher.publish("lobby", "after")
            assert json.loads(await ws.recv())["data"] == "after"

    with Valkey(tmp_path) as valkey:
        run(main(valkey))


def test_leaving_ends_the_subscription_after_the_linger() -> None:
    async def main() -> None:
        async with Cluster(HEAR, workers=1) as cluster, cluster.connect() as ws:
            assert await enter(ws, "lobby", "news") == "entered"
            with redis_at((await cluster.status())["bus"]["url"]) as redis:
                assert set(redis.pubsub_channels()) == {b"wscluster:{lobby}", b"wscluster:{news}"}
                ws.transport.abort()
                await wait_until(lambda: not redis.pubsub_channels(), "the linger")

    run(main())


@pytest.mark.parametrize(
    ("rooms", "options", "error"),
    [
        ([], {}, "TypeError: wscluster.subscribe wants"), ([""], {}, "ValueError: a room's name"),
        (["lobby", "é" * 128], {}, "ValueError: a room's name"), ([7], {}, "TypeError: a room's name is a str"),
        (["lobby"], {"max_queue": 0}, "ValueError: max_queue is at least 1, not 0"),
        (["lobby"], {"max_queue": "9"}, "TypeError: max_queue is a whole number, not str"),
        (["lobby"], {"max_queue": True}, "TypeError: max_queue is a whole number, not bool"),
    ],
)  # fmt: skip
def test_what_is_no_room_and_no_bound_is_refused(rooms: list[Any], options: dict[str, Any], error: str) -> None:
    async def main() -> None:
        async with Cluster(HEAR, workers=1) as cluster, cluster.connect() as ws:
            assert (await enter(ws, *rooms, **options)).startswith(error)

    run(main())


def test_it_is_for_workers_and_says_so() -> None:
    with pytest.raises(wscluster.NotInWorker, match=r"wscluster\.subscribe"):
        wscluster.subscribe("lobby")
    script = "import sys, wscluster; wscluster.subscribe; print([name for name in sys.modules if 'workers' in name])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_one_that_is_being_entered_when_its_worker_drains_comes_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "entering.py").write_text(
        """
import wscluster

async def enter(ws):
    print("entering", flush=True)
    async with wscluster.subscribe("lobby") as messages:
        print("heard", [message async for message in messages], flush=True)
"""
    )

    async def main(valkey: Valkey) -> None:
        async with Cluster("entering:enter", app_dir=tmp_path, workers=1, redis_url=valkey.url) as cluster:
            async with cluster.connect():
                valkey.signal(signal.SIGSTOP)
                await cluster.wait_output("entering")
                stopping = asyncio.create_task(cluster.stop())
                await cluster.wait_output("stopping: ")
            valkey.signal(signal.SIGCONT)
            await cluster.wait_output("heard []")
            assert await stopping == 0
            assert "cancelled" not in "".join(cluster.output)

    with Valkey(tmp_path) as valkey:
        run(main(valkey))


LISTENER = """
import asyncio
import wscluster

async def listen():
    async with wscluster.subscribe("lobby") as messages:
        async for message in messages:
            print("task heard", message.data, flush=True)
    print("task ended", flush=True)

@wscluster.lifespan
async def life():
    async with wscluster.subscribe("lobby") as messages:
        await wscluster.publish("lobby", "boot")
        print("boot heard", (await anext(messages)).data, flush=True)
        task = asyncio.create_task(listen())
        yield
        # What waited comes, and then the end.
        print("lifespan heard", [message.data async for message in messages], flush=True)
    await task
    async with wscluster.subscribe("lobby") as messages:
        await wscluster.publish("lobby", "goodbye")
        print("end heard", (await anext(messages)).data, flush=True)
        try:
            async with messages:
                pass
        except RuntimeError as exc:
            print("twice:", exc, flush=True)

async def listen_and_publish(ws):
    async with wscluster.subscribe("lobby") as messages:
        await ws.send("ready")
        first, second = asyncio.create_task(anext(messages)), asyncio.create_task(anext(messages))
        await asyncio.wait([second])
        await wscluster.publish("lobby", "from a handler")
        await first
        await ws.send(f"{first.exception() or first.result().data} {second.exception() or ''}")
        # Given up while it waits, nothing is lost.
        try:
            await asyncio.wait_for(anext(messages), 0.01)
        except TimeoutError:
            await wscluster.publish("lobby", "after giving up")
        await ws.send((await anext(messages)).data)
        async for _ in messages:
            pass
    try:
        await anext(messages)
    except StopAsyncIteration:
        print("handler ended", flush=True)
"""


def test_background_tasks_and_lifespans_hear_rooms_before_and_after_the_yield_and_end_with_the_drain(
    tmp_path: Path,
) -> None:
    (tmp_path / "listener.py").write_text(LISTENER)

    async def main() -> None:
        async with Cluster("listener:listen_and_publish", app_dir=tmp_path, workers=1) as cluster:
            await cluster.wait_output("boot heard boot")
            async with cluster.connect() as ws:
                assert await ws.recv() == "ready"
                said = str(await ws.recv())
                assert said.startswith("from a handler")
                assert "another task waits for this subscription already" in said
                assert await ws.recv() == "after giving up"
                await cluster.wait_output("task heard after giving up")
                began = asyncio.get_running_loop().time()
                assert await cluster.stop() == 0
                # Nobody waited for the graceful timeout, which is 30 seconds.
                assert asyncio.get_running_loop().time() - began < 10
            output = "".join(cluster.output)
            assert "lifespan heard ['from a handler', 'after giving up']" in output
            assert "task ended" in output
            assert "end heard goodbye" in output
            assert "twice: a subscription is entered once" in output
            assert "handler ended" in output

    run(main())
