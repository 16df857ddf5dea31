"""Rooms: join, leave, publish, positions, and one order for all, over a real bus."""

import asyncio
import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.cluster.room_support import ROOMS, HandlerError, Member, Valkey, member, members, pair, redis_at, wait_until
from tests.support import run
from wscluster.testing import Cluster

MIB = 1 << 20


@contextlib.contextmanager
def bus_of(status: dict[str, Any]) -> Iterator[Redis]:
    with redis_at(status["bus"]["url"]) as client:
        yield client


def test_members_on_every_worker_hear_each_message_once_and_the_publisher_too() -> None:
    async def main() -> None:
        async with Cluster(ROOMS, workers=3) as cluster, members(cluster, 3, each=2) as slots:
            everybody = [one for slot in slots for one in slot]
            for one in everybody:
                await one.join()
            await everybody[0].publish("from the first slot")
            await everybody[-1].publish("from the last slot")
            for one in everybody:
                assert await one.wait_heard(2) == ["from the first slot", "from the last slot"]
            status = await cluster.wait_status(lambda status: status["bus"]["delivered"] >= 12)
            assert status["bus"]["published"] == 2
            assert status["bus"]["delivered"] == 12
            assert status["bus"]["private"] is True
            assert status["bus"]["connected"] is True
            assert status["bus"]["gaps"] == 0
            assert [worker["rooms"] for worker in status["workers"]] == [1, 1, 1]

    run(main())


@pytest.mark.parametrize("deflate", [True, False])
def test_all_members_hear_several_publishers_in_one_order(deflate: bool) -> None:
    count = 200

    async def main() -> None:
        cluster = Cluster(ROOMS, workers=3, ws_per_message_deflate=deflate)
        async with cluster, members(cluster, 3, each=2) as slots:
            everybody = [one for slot in slots for one in slot]
            for one in everybody:
                await one.join()
            # One publisher in each worker, all at once.
            positions = await asyncio.gather(
                *(slots[slot][0].do("publish many", text=f"{slot}", count=count) for slot in range(3))
            )
            heard = [await one.wait_heard(3 * count) for one in everybody]
            assert all(sequence == heard[0] for sequence in heard)
            for slot in range(3):
                own = [message for message in heard[0] if str(message).startswith(f"{slot} ")]
                assert own == [f"{slot} {number}" for number in range(count)]
            assert heard[0] != sorted(map(str, heard[0])), "the publishers took turns: this shows nothing"
            assert len({position for told in positions for position in told}) == 3 * count
            seen = {(await one.state())["positions"]["lobby"] for one in everybody}
            assert len(seen) == 1
            assert seen <= {told[-1] for told in positions}

    run(main())


def test_a_publisher_that_excludes_itself_is_the_only_one_that_hears_nothing() -> None:
    async def main() -> None:
        async with Cluster(ROOMS) as cluster, members(cluster, 2, each=2) as ((own, near), (far, _)):
            for one in (own, near, far):
                await one.join()
            position = await own.publish("to the others", exclude_self=True)
            await far.publish("to all")
            assert await near.wait_heard(2) == ["to the others", "to all"]
            assert await far.wait_heard(2) == ["to the others", "to all"]
            assert await own.wait_heard(1) == ["to all"]
            # A publisher need not be a member, and hears nothing then.
            await own.do("leave")
            assert await own.publish("from outside") != position
            assert (await near.wait_heard(3))[2] == "from outside"
            assert own.heard == ["to all"]

    run(main())


def test_text_stays_text_and_bytes_stay_bytes_down_to_nothing_and_up_to_a_mebibyte() -> None:
    async def main() -> None:
        for deflate in (True, False):
            cluster = Cluster(ROOMS, ws_per_message_deflate=deflate)
            async with cluster, pair(cluster) as (here, there):
                await here.join()
                await there.join()
                for message in ({"text": "snow ☃ 雪"}, {"hex": "00ff80"}, {"text": ""}, {"hex": ""}, {"size": MIB}):
                    await here.do("publish", **message)
                await here.do("publish", hex=os.urandom(65_537).hex())
                for one in (here, there):
                    heard = await one.wait_heard(6)
                    assert heard[:5] == ["snow ☃ 雪", b"\x00\xff\x80", "", b"", "x" * MIB]
                    assert isinstance(heard[5], bytes)
                    assert len(heard[5]) == 65_537
                assert here.heard == there.heard

    run(main())


@pytest.mark.parametrize(
    ("message", "room", "error"),
    [
        ({"text": "x"}, "r" * 256, "ValueError"),
        ({"text": "x"}, "é" * 128, "ValueError"),
        ({"text": "x"}, "", "ValueError"),
        ({"text": "x"}, "\ud800", "UnicodeEncodeError"),
        ({"text": "x"}, 7, "TypeError"),
        ({"text": "\ud800"}, "lobby", "UnicodeEncodeError"),
        ({"wrong": 7}, "lobby", "TypeError"),
        ({"wrong": ["x"]}, "lobby", "TypeError"),
        ({"wrong": {"x": 1}}, "lobby", "TypeError"),
    ],
)  # fmt: skip
def test_what_is_no_room_and_no_message_is_refused_and_the_connection_lives(
    message: dict[str, Any], room: Any, error: str
) -> None:
    async def main() -> None:
        async with Cluster(ROOMS, workers=1) as cluster, member(cluster) as one:
            await one.join()
            with pytest.raises(HandlerError, match=f"^{error}:"):
                await one.do("publish", room, **message)
            if room != "lobby":
                for verb in ("join", "leave"):
                    with pytest.raises(HandlerError, match=f"^{error}:"):
                        await one.do(verb, room)
            await one.publish("still here")
            assert await one.wait_heard(1) == ["still here"]
            assert not [event for event in cluster.events if event["event"] == "worker_exited"]

    assert issubclass(UnicodeEncodeError, ValueError)
    run(main())


def test_names_of_rooms_are_any_text_of_up_to_255_bytes() -> None:
    names = ["r" * 255, "é" * 127, "雪 ☃ room", "a b\tc\n\x00", "{x}", "}{", "*", "lobby", "Lobby", "lobby "]

    async def main() -> None:
        async with Cluster(ROOMS) as cluster, pair(cluster) as (here, there):
            for name in names:
                await here.join(name)
            assert (await here.state())["rooms"] == sorted(names)
            for name in names:
                await there.publish(f"to {name}", name)
            assert await here.wait_heard(len(names)) == [f"to {name}" for name in names]

    run(main())


def test_leaving_ends_delivery_and_neither_leaving_nor_joining_twice_does_harm() -> None:
    async def main() -> None:
        async with Cluster(ROOMS) as cluster, pair(cluster) as (here, there):
            await here.do("leave", "never joined")
            assert await here.join() == await here.join()
            await there.join()
            await there.publish("once")
            assert await here.wait_heard(1) == ["once"]
            await here.do("leave")
            await here.do("leave")
            assert await here.state() == {"slot": 0, "rooms": [], "positions": {}}
            await there.publish("not for everybody")
            await there.wait_heard(2)
            # Back within the linger, and nothing of the time between is heard.
            await here.join()
            await there.publish("again")
            assert await there.wait_heard(3) == ["once", "not for everybody", "again"]
            assert await here.wait_heard(2) == ["once", "again"]

    run(main())


def test_a_position_is_that_of_the_last_message_that_was_delivered() -> None:
    async def main() -> None:
        async with Cluster(ROOMS) as cluster, pair(cluster) as (here, there):
            nothing = await here.join()
            assert (await here.state())["positions"] == {"lobby": nothing}
            first = await there.publish("one")
            await here.wait_heard(1)
            assert (await here.state())["positions"] == {"lobby": first}
            assert await there.join() == first
            second = await here.publish("two")
            await here.join("other")
            for one in (here, there):
                await one.wait_for("two")
                assert (await one.state())["positions"]["lobby"] == second
            assert len({nothing, first, second}) == 3
            assert all(re.fullmatch(r"[!-~]{1,64}", position) for position in (nothing, first, second))

    run(main())


def test_status_counts_the_rooms_that_have_members_and_forgets_them() -> None:
    async def main() -> None:
        async with Cluster(ROOMS) as cluster, pair(cluster) as (here, there):
            await here.join("a")
            await here.join("b")
            await there.join("b")
            await cluster.wait_status(lambda status: [worker["rooms"] for worker in status["workers"]] == [2, 1])
            await here.do("leave", "a")
            await cluster.wait_status(lambda status: [worker["rooms"] for worker in status["workers"]] == [1, 1])
            here.ws.transport.abort()  # no leave, no close frame: the socket is just gone
            await cluster.wait_status(lambda status: [worker["rooms"] for worker in status["workers"]] == [0, 1])
            await there.publish("nobody else", "b")
            assert await there.wait_heard(1) == ["nobody else"]

    run(main())


def test_an_idle_room_stays_subscribed_and_an_empty_one_is_dropped_and_can_be_joined_again() -> None:
    async def main() -> None:
        async with Cluster(ROOMS) as cluster, pair(cluster) as (here, there):
            await here.join("quiet")
            await there.join("left")
            await there.do("leave", "left")
            left_at = asyncio.get_running_loop().time()
            with bus_of(await cluster.status()) as redis:
                channels = {b"wscluster:{quiet}", b"wscluster:{left}"}
                assert set(redis.pubsub_channels()) == channels
                # A join that is given up, at whatever moment, leaves no subscription behind either.
                await there.do("join in haste", "hasty", count=2000)
                assert (await there.state())["rooms"] == []
                await wait_until(lambda: set(redis.pubsub_channels()) == channels - {b"wscluster:{left}"}, "the linger")
            await there.join("left")
            await here.publish("back", "left")
            assert await there.wait_heard(1) == ["back"]
            # redis-py's default would have cut the subscription after 5 s.
            await asyncio.sleep(max(0.0, left_at + 6.5 - asyncio.get_running_loop().time()))
            await there.publish("after a while", "quiet")
            assert await here.wait_heard(1) == ["after a while"]
            assert (await cluster.status())["bus"]["gaps"] == 0
            assert not [line for line in cluster.output if "the bus is gone" in line]

    run(main())


def test_compressed_and_uncompressed_clients_share_a_room_and_hear_their_handler_between() -> None:
    """The compressor of a connection's own messages remembers what a client no longer has after a room's message."""

    async def main() -> None:
        text = "the quick brown fox jumps over the lazy dog, " * 10
        async with contextlib.AsyncExitStack() as stack:
            cluster = await stack.enter_async_context(Cluster(ROOMS, workers=1))
            deflated = await stack.enter_async_context(member(cluster))
            plain = await stack.enter_async_context(member(cluster, compression=None))
            assert deflated.ws.protocol.extensions
            assert not plain.ws.protocol.extensions
            for one in (deflated, plain):
                await one.join()
            expected = []
            for turn in range(20):
                for one in (deflated, plain):
                    await one.do("say", text=f"own {turn} {text}")
                await plain.publish(f"room {turn} {text}")
                await plain.publish(f"short {turn}")
                expected += [f"own {turn} {text}", f"room {turn} {text}", f"short {turn}"]
                for one in (deflated, plain):
                    await one.wait_heard(len(expected))
            assert deflated.heard == plain.heard == expected

    run(main())


@pytest.mark.parametrize("compression", ["deflate", None])
def test_a_rooms_message_does_not_break_into_one_that_is_sent_in_fragments(compression: str | None) -> None:
    async def main() -> None:
        cluster = Cluster(ROOMS, workers=1)
        async with cluster, member(cluster, compression=compression) as one, member(cluster) as other:
            await one.join()
            await other.join()
            for _ in range(3):
                await one.do("say in fragments")
            await one.wait_heard(6)
            assert one.heard == ["one whole", "between"] * 3
            assert await other.wait_heard(3) == ["between"] * 3

    run(main())


def test_a_connection_can_be_in_a_thousand_rooms() -> None:
    count = 1000

    async def main() -> None:
        async with Cluster(ROOMS) as cluster, pair(cluster) as (here, there):
            await here.do("join many", "room", count=count)
            assert len((await here.state())["rooms"]) == count
            status = await cluster.wait_status(lambda status: status["workers"][0]["rooms"] == count)
            assert status["workers"][1]["rooms"] == 0
            for number in range(count):
                await there.publish(f"to {number}", f"room {number}")
            assert await here.wait_heard(count) == [f"to {number}" for number in range(count)]
        assert cluster.process.returncode == 0

    run(main())


def test_a_background_task_of_the_lifespan_publishes_to_every_worker(tmp_path: Path) -> None:
    (tmp_path / "ticker.py").write_text(
        """
import asyncio, contextlib
import wscluster

async def tick():
    number = 0
    while True:
        await wscluster.publish("ticks", f"{wscluster.this_worker.slot} {number}")
        number += 1
        await asyncio.sleep(0.005)

@wscluster.lifespan
async def life():
    task = asyncio.create_task(tick())
    yield {"task": task}
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    print("the last words went out at", await wscluster.publish("ticks", "the end"), flush=True)

async def listen(ws):
    await ws.join("ticks")
    await ws.wait_closed()
"""
    )

    async def main() -> None:
        async with Cluster("ticker:listen", app_dir=tmp_path) as cluster, contextlib.AsyncExitStack() as stack:
            heard: list[Member] = []
            for number in range(1, 9):
                heard.append(await stack.enter_async_context(member(cluster, f"127.1.0.{number}")))
            status = await cluster.status()
            assert all(worker["connections"] for worker in status["workers"]), "every worker is to have members"
            for one in heard:
                await one.wait(lambda one=one: {str(message)[0] for message in one.heard} == {"0", "1"})  # type: ignore[misc]
            # From the first message that all have heard on, they hear the same.
            await heard[0].wait(lambda: _common(heard))
            first = next(message for message in heard[0].heard if message in _common(heard))
            sequences = []
            for one in heard:
                start = one.heard.index(first)
                sequences.append((await one.wait_heard(start + 40))[start : start + 40])
            assert all(sequence == sequences[0] for sequence in sequences)
        # The private server is the last to stop: the lifespan's end still reaches it.
        assert "".join(cluster.output).count("the last words went out at") == 2

    def _common(listening: list[Member]) -> set[str | bytes]:
        return set.intersection(*(set(one.heard) for one in listening))

    run(main())


def test_clusters_share_rooms_where_they_share_redis_and_prefix_and_only_there(tmp_path: Path) -> None:
    async def main(valkey: Valkey) -> None:
        with_login = valkey.url.replace("//", "//:sesame@")
        async with contextlib.AsyncExitStack() as stack:
            listening: list[Member] = []
            # Two machines as it were, one of them over the Unix socket, and a stranger.
            for url, prefix in (
                (with_login, "shared"),
                (f"{valkey.unix_url}?password=sesame", "shared"),
                (with_login, "other"),
            ):
                cluster = Cluster(ROOMS, workers=1, redis_url=url, redis_prefix=prefix)
                await stack.enter_async_context(cluster)
                listening.append(await stack.enter_async_context(member(cluster)))
                await listening[-1].join()
                status = await cluster.status()
                assert status["bus"]["url"] == url.replace("sesame", "***")
                assert status["bus"]["private"] is False
                assert status["bus"]["connected"] is True
                assert not [line for line in cluster.output if "sesame" in line]
            one, friend, stranger = listening
            await one.publish("hello")
            await friend.publish("hello, you")
            await stranger.publish("who is there?")
            assert await one.wait_heard(2) == await friend.wait_heard(2) == ["hello", "hello, you"]
            assert await stranger.wait_heard(1) == ["who is there?"]
            assert len(one.heard) == len(friend.heard) == 2
            with redis_at(f"{valkey.unix_url}?password=sesame") as redis:
                assert set(redis.pubsub_channels()) == {b"shared:{lobby}", b"other:{lobby}"}
                assert set(redis.keys()) == {b"shared:{lobby}", b"other:{lobby}"}

    with Valkey(tmp_path, "--requirepass", "sesame") as valkey:
        run(main(valkey))
