"""`join` with ``since`` and ``on_gap``, one case at a time."""

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

import wscluster
from tests.cluster.room_support import (
    ROOMS,
    HandlerError,
    Member,
    NoBus,
    Valkey,
    member,
    members,
    pair,
    redis_at,
    wait_until,
)
from tests.support import run
from wscluster.testing import Cluster


async def rejoin(one: Member, since: str, room: str = "lobby") -> tuple[bool, int]:
    """Join with ``since``; returns whether it was recovered, and how many messages were replayed."""
    joined = await one.do("join", room, since=since)
    return joined["recovered"], joined["missed"]


def test_what_was_missed_comes_once_in_order_and_before_the_join_returns_on_whatever_worker() -> None:
    async def main() -> None:
        async with Cluster(ROOMS) as cluster, members(cluster, 2, each=2) as ((one, two), (three, four)):
            start = await one.join()
            positions = [await one.publish(f"message {number}") for number in range(20)]
            for other in (two, three):
                assert await rejoin(other, positions[4]) == (True, 15)
                # The answer to the join came after all of them.
                assert other.heard == [f"message {number}" for number in range(5, 20)]
            assert await rejoin(four, start) == (True, 20)
            await one.publish("later")
            for other in (two, three, four):
                assert (await other.wait_for("later"))[-2:] == ["message 19", "later"]
                assert (await other.state())["positions"] == {"lobby": (await one.state())["positions"]["lobby"]}

    run(main())


def test_binary_and_large_messages_are_replayed_as_they_were_and_compressed_for_who_can() -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            cluster = await stack.enter_async_context(Cluster(ROOMS, workers=1))
            one = await stack.enter_async_context(member(cluster))
            start = await one.join()
            await one.publish("snow ☃")
            await one.do("publish", hex="00ff")
            await one.do("publish", size=60_000)
            await one.publish("")
            for compression in ("deflate", None):
                other = await stack.enter_async_context(member(cluster, compression=compression))
                assert await rejoin(other, start) == (True, 4)
                assert other.heard == one.heard == ["snow ☃", b"\x00\xff", "x" * 60_000, ""]
                await other.do("say", text="y" * 300)  # its own compressor goes on
                assert (await other.wait_heard(5))[-1] == "y" * 300

    run(main())


def test_one_that_published_without_itself_gets_that_neither_live_nor_replayed_on_the_same_connection() -> None:
    async def main() -> None:
        async with Cluster(ROOMS) as cluster, pair(cluster) as (here, there):
            start = await there.join()
            await here.publish("mine", exclude_self=True)
            last = await there.publish("theirs")
            assert await rejoin(here, start) == (True, 1)
            assert here.heard == ["theirs"]
            assert (await here.state())["positions"] == {"lobby": last}
            # It passed, so the client that comes back with its position is not given it either.
            await here.publish("mine again", exclude_self=True)
            await there.wait_for("mine again")
            after = (await there.state())["positions"]["lobby"]
            await here.publish("to all")
            await here.wait_for("to all")
            await there.do("leave")
            assert await rejoin(there, after) == (True, 1)

    run(main())


def test_a_log_that_no_longer_reaches_back_replays_nothing_and_says_so() -> None:
    async def main() -> None:
        async with Cluster(ROOMS, room_log=10) as cluster, pair(cluster) as (here, there):
            start = await here.join()
            positions = (await here.do("publish many", text="message", count=400))[-5:]
            assert await rejoin(there, start) == (False, 0)
            assert there.heard == []
            last = await here.publish("next")
            assert await there.wait_heard(1) == ["next"]
            # A member already: it needs no replay, or gets none.
            assert await rejoin(there, last) == (True, 0)
            assert await rejoin(there, positions[0]) == (False, 0)
            await there.do("leave")
            assert await rejoin(there, positions[0]) == (True, 5)
            assert there.heard == ["next", *(f"message {number}" for number in range(396, 400)), "next"]

    run(main())


def test_a_message_that_the_log_does_not_keep_cannot_be_replayed() -> None:
    async def main() -> None:
        async with Cluster(ROOMS) as cluster, pair(cluster) as (here, there):
            start = await here.join()
            await here.publish("small")
            large = await here.do("publish", size=70_000)
            await here.publish("small again")
            assert await rejoin(there, start) == (False, 0)
            await there.do("leave")
            assert await rejoin(there, large) == (True, 1)
            assert there.heard == ["small again"]

    run(main())


@pytest.mark.parametrize(
    ("since", "error"),
    [
        ("", "ValueError"), ("nonsense", "ValueError"), ("1-", "ValueError"), ("1-2-3", "ValueError"),
        ("1" * 65, "ValueError"), ("٣-٤", "ValueError"), ("99999999999999999999-1", "ValueError"),
        ("\x00", "ValueError"), (7, "TypeError"), (["1-2"], "TypeError"), ({}, "TypeError"), (True, "TypeError"),
    ],
)  # fmt: skip
def test_what_is_no_position_is_refused_and_the_connection_lives(since: Any, error: str) -> None:
    async def main() -> None:
        async with Cluster(ROOMS, workers=1) as cluster, member(cluster) as one:
            with pytest.raises(HandlerError, match=f"^{error}: "):
                await one.do("join", since=since)
            assert (await one.state())["rooms"] == []
            await one.join()
            await one.publish("alive")
            assert await one.wait_heard(1) == ["alive"]

    run(main())


def test_positions_of_another_room_of_another_epoch_and_of_the_future_are_not_recovered() -> None:
    async def main() -> None:
        async with Cluster(ROOMS, workers=1) as cluster, member(cluster) as one, member(cluster) as other:
            await one.join("elsewhere")
            foreign = await one.publish("there", "elsewhere")
            await asyncio.sleep(0.01)  # the two logs begin in different milliseconds
            await one.join()
            last = await one.publish("here")
            epoch, _, seq = last.partition("-")
            ahead = f"{epoch}-{int(seq) + 1}"
            for since in (foreign, ahead, "0-0", "1-1", "18446744073709551614-18446744073709551614"):
                assert await rejoin(other, since) == (False, 0), since
                await other.do("leave")
            assert other.heard == []

    run(main())


def test_a_room_that_was_silent_longer_than_its_log_lives_is_recovered_where_its_worker_knows_that() -> None:
    async def main() -> None:
        async with Cluster(ROOMS, room_log_ttl=0.2) as cluster, pair(cluster) as (here, there):
            await here.join()
            last = await here.publish("before the silence")
            with redis_at((await cluster.status())["bus"]["url"]) as redis:
                await wait_until(lambda: not redis.exists("wscluster:{lobby}"), "the log expires")
            await here.do("leave")
            assert await rejoin(here, last) == (True, 0)
            # Another worker cannot know whether something was said.
            assert await rejoin(there, last) == (False, 0)
            await here.do("leave")
            await there.publish("after it")
            await there.wait_for("after it")
            assert await rejoin(here, last) == (True, 1)
            assert here.heard == ["before the silence", "after it"]

    run(main())


def test_a_client_that_does_not_read_makes_its_replay_wait_and_memory_stays() -> None:
    """Six megabytes for a client that reads nothing for a while: more than the send queue, and it is not closed."""

    async def main() -> None:
        async with Cluster(ROOMS, workers=1, max_send_queue=200_000) as cluster, member(cluster) as one:
            start = await one.join()
            for _ in range(100):
                await one.do("publish", size=60_000)
            async with cluster.connect(max_size=None, compression=None, max_queue=1) as ws:
                sock: socket.socket = ws.transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                await ws.send(json.dumps({"do": "join", "room": "lobby", "since": start}))
                await one.publish("live, while it is replayed")
                await one.wait_for("live, while it is replayed")
                heard: list[str] = []
                while not heard or not heard[-1].startswith("!"):
                    heard.append(str(await ws.recv()))
                    if len(heard) < 10:
                        await asyncio.sleep(0.02)
                assert json.loads(heard[-1][1:])["is"]["missed"] == 101
                assert heard[:-1] == ["x" * 60_000] * 100 + ["live, while it is replayed"]
            assert (await cluster.status())["totals"]["slow_closed"] == 0

    run(main())


def test_one_that_falls_behind_the_log_during_its_replay_is_closed_as_slow() -> None:
    """Nine megabytes are more than the kernel takes for a client that does not read; then the log moves on."""

    async def main() -> None:
        async with Cluster(ROOMS, workers=1, room_log=150) as cluster:
            async with wscluster.Publisher(control_socket=str(cluster.control_socket)) as publisher:
                start = await publisher.publish("lobby", "x" * 60_000)
                for _ in range(149):
                    await publisher.publish("lobby", "x" * 60_000)
                async with cluster.connect(max_size=None, compression=None, max_queue=1, ping_interval=None) as ws:
                    sock: socket.socket = ws.transport.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                    await ws.send(json.dumps({"do": "join", "room": "lobby", "since": start}))
                    assert str(await ws.recv()) == "x" * 60_000
                    for _ in range(160):
                        await publisher.publish("lobby", "x" * 60_000)
                    with contextlib.suppress(ConnectionClosed):
                        while True:
                            assert str(await ws.recv()) == "x" * 60_000
                    assert ws.close_code in {1013, 1006}
            assert (await cluster.status())["totals"]["slow_closed"] == 1

    run(main())


def test_a_replay_waits_until_a_fragmented_message_is_whole() -> None:
    async def main() -> None:
        async with Cluster(ROOMS, workers=1) as cluster, member(cluster) as one, member(cluster) as other:
            start = await one.join("missed")
            await one.publish("replayed", "missed")
            await other.join()
            # The handler obeys one after the other: this one speaks while it joins.
            joined = await other.do("join amid fragments", "missed", since=start, speak_in="lobby")
            assert joined == {"position": (await one.state())["positions"]["missed"], "recovered": True, "missed": 1}
            assert other.heard == ["one whole", "between", "replayed"]

    run(main())


def test_joins_and_leaves_of_one_room_at_once_replay_nothing_twice() -> None:
    async def main() -> None:
        async with Cluster(ROOMS, workers=1) as cluster, member(cluster) as one, member(cluster) as other:
            start = await one.join()
            await one.do("publish many", text="message", count=50)
            for _ in range(5):
                told = await other.do("join at once", since=start, count=8)
                assert sorted(each["missed"] for each in told) == [0] * 7 + [50]
                assert other.heard == [f"message {number}" for number in range(50)]
                other.heard.clear()
                await other.do("leave")
            # Given up at whatever moment, then whole.
            await other.do("join in haste", "lobby", count=200, since=start)
            other.heard.clear()
            assert await rejoin(other, start) == (True, 50)
            assert other.heard == [f"message {number}" for number in range(50)]
            assert (await other.state())["rooms"] == ["lobby"]
            await one.publish("after all")
            assert (await other.wait_for("after all"))[-1] == "after all"
            assert len(other.heard) == 51

    run(main())


def test_who_leaves_during_its_replay_and_joins_again_gets_everything_from_the_second_join() -> None:
    """Each time the leave comes a turn of the loop later: before, in, and after the reading of the log."""

    async def main() -> None:
        async with Cluster(ROOMS, workers=1) as cluster, member(cluster) as one, member(cluster) as other:
            start = await one.join()
            await one.do("publish many", text="message", count=50)
            told = await other.do("leave amid joins", since=start, count=30)
            assert [(joined["recovered"], joined["missed"], is_member) for joined, is_member in told] == [
                (True, 50, True)
            ] * 30
            everything = [f"message {number}" for number in range(50)]
            for _ in range(30):
                end = other.heard.index("--")
                assert other.heard[:end] in (everything, everything * 2)  # the first replay may have come before
                del other.heard[: end + 1]

    run(main())


def test_a_bus_that_dies_during_the_join_is_unavailable_and_leaves_no_member(tmp_path: Path) -> None:
    async def main(valkey: Valkey) -> None:
        async with (
            Cluster(ROOMS, workers=1, redis_url=valkey.url, bus_timeout=1.0) as cluster,
            member(cluster) as one,
            member(cluster) as other,
        ):
            start = await one.join()
            await one.publish("before")
            await one.wait_heard(1)
            valkey.kill()
            with pytest.raises(NoBus):
                await rejoin(other, start)
            assert (await other.state())["rooms"] == []
            valkey.start()
            await cluster.wait_output("the bus is back")
            # Its memory is gone: what was said after the position cannot be known.
            assert await rejoin(other, start) == (False, 0)
            await one.publish("after")
            assert await other.wait_heard(1) == ["after"]

    with Valkey(tmp_path) as valkey:
        run(main(valkey))


def test_a_forged_position_does_not_silence_a_room() -> None:
    async def main() -> None:
        async with Cluster(ROOMS, workers=1) as cluster, member(cluster) as one:
            await one.join()
            last = await one.publish("before")
            epoch, _, seq = last.partition("-")
            with redis_at((await cluster.status())["bus"]["url"]) as redis:
                for position in (f"{epoch}-{int(seq) + 1000}", f"{int(epoch) + 5}-7", "99999999999999999999-1"):
                    redis.publish("wscluster:{lobby}", f"{position} \x01\x01forged")
            await cluster.wait_status(lambda status: status["bus"]["ignored"] == 3)
            await one.publish("after")
            assert await one.wait_heard(2) == ["before", "after"]
            assert (await cluster.status())["bus"]["gaps"] == 0
            # One line says so, whichever was seen first.
            assert "".join(cluster.output).count("ignored, as later ones are without a word") == 1

    run(main())


GAPS = """
import dataclasses, json

from websockets.exceptions import ConnectionClosedOK

async def listen(ws):
    kind = await ws.recv()
    told = []

    def plain(gap):
        told.append(dataclasses.asdict(gap) | {"at": ws.positions["lobby"]})

    async def later(gap):
        await ws.send(json.dumps(dataclasses.asdict(gap)))

    def broken(gap):
        raise LookupError("this handler's own fault")

    async def closed(gap):
        raise ConnectionClosedOK(None, None)

    async def broken_later(gap):
        raise LookupError("this handler's own fault, later")

    kinds = {"plain": plain, "later": later, "broken": broken, "closed": closed, "broken later": broken_later}
    joined = await ws.join("lobby", on_gap=kinds.get(kind))
    await ws.send(joined.position)
    async for _ in ws:
        await ws.send(json.dumps(told))

async def wrong(ws):
    try:
        await ws.join("lobby", on_gap="nothing that can be called")
    except TypeError as exc:
        await ws.send(str(exc))
"""


def test_on_gap_is_told_where_its_connection_is_and_what_it_raises_is_logged(tmp_path: Path) -> None:
    (tmp_path / "gaps.py").write_text(GAPS)

    async def main(valkey: Valkey) -> None:
        cluster = Cluster("gaps:listen", app_dir=tmp_path, workers=1, redis_url=valkey.url)
        async with cluster, contextlib.AsyncExitStack() as stack:
            clients = {}
            for kind in ("broken", "plain", "later", "closed", "broken later", "none"):
                clients[kind] = await stack.enter_async_context(cluster.connect())
                await clients[kind].send(kind)
                await clients[kind].recv()
            async with wscluster.Publisher(valkey.url) as publisher:
                last = await publisher.publish("lobby", "before")
                for ws in clients.values():
                    assert await ws.recv() == "before"
            valkey.kill()
            await cluster.wait_output("the bus is gone")
            valkey.start()
            await cluster.wait_status(lambda status: status["bus"]["gaps"] == 1)
            assert json.loads(await clients["later"].recv()) == {"room": "lobby", "after": last, "before": ""}
            await clients["plain"].send("told?")
            (told,) = json.loads(await clients["plain"].recv())
            assert told["after"] == last
            async with wscluster.Publisher(valkey.url) as publisher:
                await publisher.publish("lobby", "after")
            for ws in clients.values():
                assert await ws.recv() == "after"
            await cluster.wait_output("this handler's own fault, later")
            output = "".join(cluster.output)
            assert output.count("on_gap of room 'lobby' failed (connection ") == 2
            assert (await cluster.status())["totals"]["workers_restarted"] == 0

    async def wrong(valkey: Valkey) -> None:
        cluster = Cluster("gaps:wrong", app_dir=tmp_path, workers=1, redis_url=valkey.url)
        async with cluster, cluster.connect() as ws:
            assert "on_gap is called with each Gap" in str(await ws.recv())

    with Valkey(tmp_path) as valkey:
        run(main(valkey))
        run(wrong(valkey))
