"""The bus goes away, hangs, comes back, or says nonsense: sockets and handlers live on, and nothing is lost unsaid."""

import asyncio
import contextlib
import os
import pickle
import signal
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.cluster.room_support import ROOMS, Member, NoBus, Valkey, member, pair, private_valkeys, redis_at, wait_until
from tests.support import run
from wscluster import Publisher
from wscluster.testing import Cluster, ClusterFailed


def run_with_valkey(folder: Path, main: Callable[[Valkey], Coroutine[Any, Any, None]], *flags: str) -> None:
    with Valkey(folder, *flags) as valkey:
        run(main(valkey))


async def publish_until_heard(publisher: Member, listeners: list[Member], text: str) -> None:
    """Publish until one is heard by all: with no bus a publish fails, and a room hears again a moment later."""
    number = 0
    async with asyncio.timeout(20):
        while not all(any(str(message).startswith(text) for message in one.heard) for one in listeners):
            number += 1
            with contextlib.suppress(NoBus):
                await publisher.publish(f"{text} {number}")
            await asyncio.sleep(0.02)


async def wait_lines(cluster: Cluster, text: str, count: int) -> None:
    """Wait until exactly ``count`` lines of output have ``text`` in them."""
    await wait_until(lambda: len([line for line in cluster.output if text in line]) >= count, f"{count} times {text!r}")
    assert len([line for line in cluster.output if text in line]) == count


async def wait_connected(cluster: Cluster, connected: bool) -> dict[str, Any]:
    return await cluster.wait_status(lambda status: status["bus"]["connected"] is connected)


def test_a_private_valkey_that_is_killed_is_restarted_and_the_rooms_come_back() -> None:
    async def main() -> None:
        async with Cluster(ROOMS, bus_timeout=2) as cluster, pair(cluster) as (here, there):
            await here.join()
            await there.join()
            await here.join("silent")
            await here.publish("before")
            await there.wait_heard(1)
            url = (await cluster.status())["bus"]["url"]
            pids = cluster.worker_pids()
            (valkey,) = private_valkeys(cluster)
            os.kill(valkey, signal.SIGKILL)
            # The handlers answer all the while.
            assert (await here.state())["rooms"] == ["lobby", "silent"]
            await cluster.wait_output("the bus is gone")
            await publish_until_heard(here, [here, there], "after")
            await there.join("new")
            await here.publish("new room", "new")
            await there.wait_for("new room")
            status = await wait_connected(cluster, True)
            assert status["bus"]["url"] == url
            (new_valkey,) = private_valkeys(cluster)
            assert new_valkey != valkey
            # Another server has another memory: whether something was lost cannot be known, and that is said.
            assert status["bus"]["gaps"] >= 2
            await cluster.wait_output("room 'lobby': messages were lost after")
            await cluster.wait_output("starting it again in 0.1 s")
            assert cluster.worker_pids() == pids
            assert not here.closed
            assert not there.closed
            for one in (here, there):
                numbers = [int(str(message).split()[1]) for message in one.heard if str(message).startswith("after")]
                assert numbers == sorted(set(numbers))
        assert cluster.process.returncode == 0

    run(main())


def test_a_bus_that_hangs_for_a_moment_is_waited_for_and_loses_nothing(tmp_path: Path) -> None:
    async def main(valkey: Valkey) -> None:
        async with Cluster(ROOMS, redis_url=valkey.url) as cluster, pair(cluster) as (here, there):
            await here.join()
            await there.join()
            await here.publish("before")
            valkey.signal(signal.SIGSTOP)
            try:
                asked = asyncio.create_task(here.publish("during"))
                _, pending = await asyncio.wait([asked, asyncio.create_task(there.state())], timeout=3)
                assert pending == {asked}, "the publish waits, another handler does not"
            finally:
                valkey.signal(signal.SIGCONT)
            await asked
            await there.publish("after")
            for one in (here, there):
                assert await one.wait_heard(3) == ["before", "during", "after"]
            assert (await cluster.status())["bus"]["gaps"] == 0
            assert not [line for line in cluster.output if "the bus is gone" in line]

    run_with_valkey(tmp_path, main)


def test_a_bus_that_hangs_for_long_is_noticed_and_everything_recovers_when_it_goes_on(tmp_path: Path) -> None:
    async def main(valkey: Valkey) -> None:
        loop = asyncio.get_running_loop()
        async with Cluster(ROOMS, redis_url=valkey.url, bus_timeout=1) as cluster, pair(cluster) as (here, there):
            await here.join()
            await there.join()
            await here.publish("before")
            await there.wait_heard(1)
            valkey.signal(signal.SIGSTOP)
            try:
                began = loop.time()
                for asked in (here.publish("during"), there.join("new")):
                    with pytest.raises(NoBus):
                        await asked
                assert 1.9 < loop.time() - began < 8
                # Noticed by the missing PONG, though nothing was closed.
                await cluster.wait_output("the bus is gone: no answer to a PING")
                await wait_connected(cluster, False)
                assert loop.time() - began < 12
                assert (await here.state())["rooms"] == ["lobby"]
                with pytest.raises(NoBus):
                    await here.join("new")
            finally:
                valkey.signal(signal.SIGCONT)
            await wait_connected(cluster, True)
            await publish_until_heard(there, [here, there], "after")
            await here.join("new")
            await here.publish("to the new room", "new")
            await here.wait_for("to the new room")
            # Whether "during" arrived is unknown to its publisher, but not to the members: all or none, in its place.
            heard = [message for message in here.heard if message != "to the new room"]
            both = min(len(heard), len(there.heard))
            assert heard[:both] == there.heard[:both]
            assert heard[0] == "before"
            assert heard.count("during") <= 1
            assert (await cluster.status())["bus"]["gaps"] == 0

    run_with_valkey(tmp_path, main)


@pytest.mark.parametrize("room_log", [5000, 0])
def test_subscriptions_that_are_cut_twenty_times_lose_nothing_or_say_so(tmp_path: Path, room_log: int) -> None:
    """With a log nothing is lost; without one each loss is a gap that is counted."""

    async def main(valkey: Valkey) -> None:
        cluster = Cluster(ROOMS, redis_url=valkey.url, room_log=room_log)
        async with cluster, pair(cluster) as (here, there), member(cluster) as publisher:
            await here.join()
            await there.join()
            published = 0
            with valkey.client() as redis:

                def subscribed() -> bool:
                    return len(redis.client_list(_type="pubsub")) == 2

                for _ in range(20):
                    await wait_until(subscribed, "both workers subscribed")
                    assert redis.client_kill_filter(_type="pubsub") == 2
                    await publisher.do("publish many", text=f"{published // 50} part", count=50)
                    published += 50
                await wait_until(subscribed, "both workers subscribed")
            await wait_connected(cluster, True)
            await publish_until_heard(publisher, [here, there], "the end")
            expected = [f"{part} part {number}" for part in range(20) for number in range(50)]
            gaps = (await cluster.status())["bus"]["gaps"]
            for one in (here, there):
                heard = [str(message) for message in one.heard if " part " in str(message)]
                assert [text for text in expected if text in set(heard)] == heard, "out of order, or twice"
                if room_log:
                    assert heard == expected
            assert (gaps == 0) is (room_log > 0)
            await wait_lines(cluster, "the bus is gone", 40)
            if gaps:
                await cluster.wait_output("messages were lost after")

    run_with_valkey(tmp_path, main)


def test_a_log_that_was_evicted_while_a_worker_was_away_is_a_gap(tmp_path: Path) -> None:
    async def main(valkey: Valkey) -> None:
        async with Cluster(ROOMS, workers=1, redis_url=valkey.url) as cluster, member(cluster) as here:
            await here.join()
            await here.publish("before")
            await here.wait_heard(1)
            with valkey.client() as redis:
                assert redis.delete("wscluster:{lobby}") == 1
                assert redis.client_kill_filter(_type="pubsub") == 1
            await cluster.wait_status(lambda status: status["bus"]["gaps"] == 1)
            await cluster.wait_output("room 'lobby': messages were lost after")
            await publish_until_heard(here, [here], "after")
            assert (await cluster.status())["bus"]["gaps"] == 1

    run_with_valkey(tmp_path, main)


def test_nonsense_on_a_rooms_channel_is_ignored(tmp_path: Path) -> None:
    nonsense = [
        b"", b" ", b"garbage", b"\x00" * 100, os.urandom(1000), pickle.dumps({"method": "emit"}), b'{"json": true}',
        b"1-1", b"1-1 ", b"1-1 \x01", b"1-1 \x02\x01new version", b"1-1 \x01\xffflags", b"1-1 \x01\x01\xff\xfe",
        b"1-1 \x01\x02short", b"-1--1 \x01\x01x", b"9" * 50 + b"-1 \x01\x01x", b"1-1\x01\x01x", b"x" * (2 << 20),
        b"\xd9\xa1-1 \x01\x01x",
    ]  # fmt: skip

    async def main(valkey: Valkey) -> None:
        async with Cluster(ROOMS, redis_url=valkey.url) as cluster, pair(cluster) as (here, there):
            await here.join()
            await there.join()
            pids = cluster.worker_pids()
            await here.publish("before")
            with valkey.client() as redis:
                for data in nonsense:
                    assert redis.publish("wscluster:{lobby}", data) == 2
                redis.publish("wscluster:{nobody}", b"garbage")
                await here.publish("after")
                for one in (here, there):
                    assert await one.wait_heard(2) == ["before", "after"]
                assert (await cluster.status())["bus"]["gaps"] == 0
                # One line for each worker, however much comes.
                await wait_lines(cluster, "is no message", 2)
                # A room whose log is not one answers with an error; the others live on.
                redis.set("wscluster:{broken}", "a string")
                with pytest.raises(NoBus, match="WRONGTYPE"):
                    await here.publish("x", "broken")
                # A log that was taken away begins anew.
                redis.delete("wscluster:{lobby}")
                await there.publish("a new log")
                for one in (here, there):
                    assert await one.wait_heard(3) == ["before", "after", "a new log"]
            assert cluster.worker_pids() == pids

    run_with_valkey(tmp_path, main)


def test_a_server_that_was_gone_at_the_join_is_joined_when_it_comes(tmp_path: Path) -> None:
    async def main(valkey: Valkey) -> None:
        async with Cluster(ROOMS, redis_url=valkey.url) as cluster, pair(cluster) as (here, there):
            valkey.kill()
            joins = [asyncio.create_task(one.join()) for one in (here, there)]
            await cluster.wait_output("the bus cannot be reached")
            await asyncio.to_thread(valkey.start)
            await asyncio.gather(*joins)
            await here.publish("hello")
            assert await there.wait_heard(1) == ["hello"]
            # And gone again, under members: a new server at the same address.
            valkey.kill()
            await cluster.wait_output("the bus is gone")
            with pytest.raises(NoBus):
                await here.publish("lost")
            await asyncio.to_thread(valkey.start)
            await publish_until_heard(here, [here, there], "back")
            assert (await cluster.status())["bus"]["gaps"] >= 2
            assert "lost" not in here.heard + there.heard

    run_with_valkey(tmp_path, main)


def test_a_server_that_comes_back_with_an_older_memory_is_heard_and_the_loss_is_a_gap(tmp_path: Path) -> None:
    async def main(valkey: Valkey) -> None:
        async with Cluster(ROOMS, redis_url=valkey.url) as cluster, pair(cluster) as (here, there):
            await here.join()
            await there.join()
            await here.publish("kept")
            with valkey.client() as redis:
                redis.save()
            for number in range(20):
                await here.publish(f"forgotten by the server {number}")
            for one in (here, there):
                await one.wait_heard(21)
            valkey.kill()
            await cluster.wait_output("the bus is gone")
            await asyncio.to_thread(valkey.start)
            # Far fewer than were forgotten: each has a position that the members had seen before.
            await publish_until_heard(here, [here, there], "new life")
            await there.publish("second")
            for one in (here, there):
                await one.wait_for("second")
            assert (await cluster.status())["bus"]["gaps"] >= 2

    run_with_valkey(tmp_path, main)


def test_a_server_that_forgets_its_scripts_is_told_again(tmp_path: Path) -> None:
    async def main(valkey: Valkey) -> None:
        async with Cluster(ROOMS, redis_url=valkey.url) as cluster, pair(cluster) as (here, there):
            await here.join()
            await there.join()
            with valkey.client() as redis:
                for number in range(5):
                    redis.script_flush()
                    await asyncio.gather(here.publish(f"here {number}"), there.publish(f"there {number}"))
            assert len(await here.wait_heard(10)) == 10
            assert await there.wait_heard(10) == here.heard

    run_with_valkey(tmp_path, main)


@pytest.mark.parametrize("url", ["tcp", "unix", "password", "scheme", "port", "silent"])
def test_a_redis_url_of_no_use_ends_the_start_with_code_3_and_one_line(tmp_path: Path, url: str) -> None:
    async def main(text: str, valkey: Valkey) -> None:
        cluster = Cluster(ROOMS, redis_url=text, bus_timeout=1)
        with pytest.raises(ClusterFailed) as failed:
            async with cluster:
                pass
        assert failed.value.exit_code == 3
        assert "sesame" not in failed.value.output
        assert "Traceback" not in failed.value.output
        (line,) = cluster.output
        assert "--redis-url" in line

    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.socket())
        silent.bind(("127.0.0.1", 0))
        if url == "silent":
            silent.listen()
        valkey = stack.enter_context(Valkey(tmp_path, "--requirepass", "open"))
        run(
            main(
                {
                    "tcp": f"redis://:sesame@127.0.0.1:{silent.getsockname()[1]}",
                    "silent": f"redis://127.0.0.1:{silent.getsockname()[1]}",
                    "unix": f"unix://{tmp_path}/nothing.sock?password=sesame",
                    "password": f"redis://:sesame@127.0.0.1:{valkey.port}",
                    "scheme": "http://:sesame@127.0.0.1",
                    "port": "redis://:sesame@127.0.0.1:banana",
                }[url],
                valkey,
            )
        )


class Road:
    """A TCP proxy before the server that can become a black hole: everything stays open, nothing goes through."""

    def __init__(self, valkey: Valkey) -> None:
        self._valkey = valkey
        self._through = asyncio.Event()
        self._through.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Road":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cut(self) -> None:
        self._through.clear()

    def mend(self) -> None:
        self._through.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(asyncio.CancelledError):
            await self._through.wait()
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._valkey.port)
            both = [asyncio.create_task(self._copy(*way)) for way in ((reader, up_writer), (up_reader, writer))]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in both:
                    one.cancel()
                await asyncio.wait(both)
                up_writer.close()
        writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._through.wait()
                writer.write(data)


def test_a_black_hole_of_ten_seconds_is_noticed_within_five_and_nothing_is_lost(tmp_path: Path) -> None:
    async def main(valkey: Valkey) -> None:
        loop = asyncio.get_running_loop()
        async with Road(valkey) as road:
            cluster = Cluster(ROOMS, redis_url=road.url, bus_timeout=1, room_log=5000)
            async with cluster, pair(cluster) as (here, there), Publisher(valkey.url, room_log=5000) as outside:
                for one in (here, there):
                    await one.join()
                await here.publish("before")
                await there.wait_heard(1)
                road.cut()
                began = loop.time()
                await wait_until(
                    lambda: (
                        len([line for line in cluster.output if "the bus is gone: no answer to a PING" in line]) == 2
                    ),
                    "both workers notice",
                )
                assert loop.time() - began < 5
                with pytest.raises(NoBus):
                    await here.publish("into the hole")
                with pytest.raises(NoBus):
                    await there.join("new")
                for number in range(300):
                    await outside.publish("lobby", f"meanwhile {number}")
                assert (await here.state())["rooms"] == ["lobby"]
                await asyncio.sleep(max(0.0, began + 10 - loop.time()))
                road.mend()
                await wait_connected(cluster, True)
                await outside.publish("lobby", "the end")
                for one in (here, there):
                    await one.wait_for("the end")
                    heard = [text for text in one.heard if text != "into the hole"]
                    assert heard == ["before", *(f"meanwhile {number}" for number in range(300)), "the end"]
                    assert len(one.heard) - len(heard) <= 1
                assert (await cluster.status())["bus"]["gaps"] == 0
                await there.join("new")

    run_with_valkey(tmp_path, main)


@pytest.mark.parametrize("room_log", [20_000, 50])
def test_a_worker_that_the_server_cuts_because_it_does_not_read_loses_nothing_or_says_so(
    tmp_path: Path, room_log: int
) -> None:
    """The worker reads as fast as it can; what it cannot read waits in the server, which has a limit for it.

    A Unix socket, because the buffers of TCP hold several megabytes more.
    """

    async def main(valkey: Valkey) -> None:
        cluster = Cluster(ROOMS, redis_url=valkey.unix_url, room_log=room_log, max_send_queue=1 << 30)
        async with (
            cluster,
            pair(cluster) as (here, there),
            Publisher(control_socket=str(cluster.control_socket)) as outside,
        ):
            for one in (here, there):
                await one.join()
            stopped = cluster.worker_pids()[(await here.state())["slot"]]
            texts = [f"{number} ".ljust(1000, "x") for number in range(4000)]
            with valkey.client() as redis:
                subscriptions = len(redis.client_list(_type="pubsub"))
                os.kill(stopped, signal.SIGSTOP)
                try:
                    for at in range(0, 4000, 200):
                        await asyncio.gather(*(outside.publish("lobby", text) for text in texts[at : at + 200]))
                    assert len(redis.client_list(_type="pubsub")) == subscriptions - 1, "cut"
                finally:
                    os.kill(stopped, signal.SIGCONT)
            await cluster.wait_output("the bus is gone: ")
            await wait_connected(cluster, True)
            await publish_until_heard(there, [here, there], "the end")
            heard = [text for text in here.heard if not str(text).startswith("the end")]
            gaps = (await cluster.status())["bus"]["gaps"]
            assert [text for text in there.heard if not str(text).startswith("the end")] == texts
            if room_log > 4000:
                assert heard == texts
                assert gaps == 0
            else:
                assert heard == [text for text in texts if text in set(heard)], "out of order, or twice"
                assert 50 <= len(heard) < 4000
                assert gaps == 1
                await cluster.wait_output("room 'lobby': messages were lost after")
            assert cluster.worker_pids()[(await here.state())["slot"]] == stopped

    run_with_valkey(tmp_path, main, "--client-output-buffer-limit", "pubsub", "1mb", "0", "0")


def test_a_bus_out_of_memory_refuses_messages_with_its_reason_and_joins_live(tmp_path: Path) -> None:
    async def main(valkey: Valkey) -> None:
        async with Cluster(ROOMS, redis_url=valkey.url) as cluster, pair(cluster) as (here, there):
            await here.join()
            await here.publish("before")
            pids = cluster.worker_pids()
            with valkey.client() as redis:
                redis.config_set("maxmemory", "1")
                for room in ("lobby", "other"):
                    with pytest.raises(NoBus, match=r"the server refuses: .*maxmemory"):
                        await here.publish("too much", room)
                # Whoever knows no script yet is told the same.
                redis.script_flush()
                with pytest.raises(NoBus, match=r"the server refuses.*maxmemory"):
                    await there.publish("too much")
                await there.join()
                await there.join("other")
                await here.join("other")
                redis.config_set("maxmemory", "0")
            await there.publish("after")
            await there.wait_heard(1)
            assert await here.wait_heard(2) == ["before", "after"]
            assert there.heard == ["after"]
            assert (await cluster.status())["bus"]["gaps"] == 0
            assert cluster.worker_pids() == pids
            assert not [line for line in cluster.output if "the bus is gone" in line]

    run_with_valkey(tmp_path, main, "--maxmemory-policy", "noeviction")


def test_a_password_that_is_changed_under_a_cluster_is_named_and_never_shown(tmp_path: Path) -> None:
    async def main(valkey: Valkey) -> None:
        url = valkey.url.replace("//", "//:sesame@")
        async with Cluster(ROOMS, redis_url=url, bus_timeout=1) as cluster, pair(cluster) as (here, there):
            for one in (here, there):
                await one.join()
            await here.publish("before")
            with redis_at(f"{valkey.unix_url}?password=sesame") as redis:
                redis.config_set("requirepass", "another")
                for kind in ("pubsub", "normal"):
                    redis.client_kill_filter(_type=kind, skipme=True)
                await cluster.wait_output("the bus is gone")
                for asked in (here.publish("x"), there.join("new")):
                    with pytest.raises(NoBus, match=r"invalid username-password pair|cannot be joined"):
                        await asked
                await wait_connected(cluster, False)
                redis.config_set("requirepass", "sesame")
            await wait_connected(cluster, True)
            await publish_until_heard(here, [here, there], "after")
            assert (await cluster.status())["bus"]["gaps"] == 0
            assert not [line for line in cluster.output if "sesame" in line]

    run_with_valkey(tmp_path, main, "--requirepass", "sesame")


async def use_rooms_without_logs(redis: Redis, one: Member) -> None:
    """Rooms whose keys are no logs: each says so, and lives again when they are gone."""
    for number, (command, *arguments) in enumerate(
        (("SET", "x"), ("HSET", "a", "b"), ("SADD", "a"), ("LPUSH", "a"), ("ZADD", "1", "a"))
    ):
        key = f"wscluster:{{room {number}}}"
        redis.execute_command(command, key, *arguments)  # type: ignore[no-untyped-call]
        with pytest.raises(NoBus, match="WRONGTYPE"):
            await one.publish("x", f"room {number}")
        with pytest.raises(NoBus):
            await one.join(f"room {number}")
        redis.delete(key)
        await one.join(f"room {number}")
        await one.publish(f"alive {number}", f"room {number}")
        await one.wait_for(f"alive {number}")


def test_hostile_payloads_and_keys_of_other_types_end_no_worker(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "unpickled"),)

    async def main(valkey: Valkey) -> None:
        async with Cluster(ROOMS, redis_url=valkey.url, bus_timeout=2) as cluster, pair(cluster) as (here, there):
            for one in (here, there):
                await one.join()
            pids = cluster.worker_pids()
            position = await here.publish("before")
            epoch, _, seq = position.partition("-")
            evil = pickle.dumps(Evil())
            with valkey.client() as redis:
                for data in (
                    evil, f"{position} ".encode() + evil, b"1-1 " + evil,
                    # A position that was used, twice the same, and ones of no time.
                    f"{position} \x01\x01a forged one".encode(), f"{epoch}-0 \x01\x01x".encode(), b"0-0 \x01\x01x",
                ):  # fmt: skip
                    redis.publish("wscluster:{lobby}", data)
                # Larger than what the server lets a subscriber owe: it cuts the workers, which come back. Where they
                # read faster than it writes it need not, so it is told to.
                redis.publish("wscluster:{lobby}", f"{epoch}-{int(seq) + 1} ".encode() + b"\xff" * (40 << 20))
                redis.client_kill_filter(_type="pubsub")
                await cluster.wait_output("the bus is gone")
                await wait_connected(cluster, True)
                await publish_until_heard(here, [here, there], "after")
                # Positions from the future: what is published afterwards is heard all the same, each once and in order.
                for forged in (
                    "18446744073709551615-18446744073709551615",
                    "99999999999999999999-99999999999999999999",
                    f"{int(epoch) + 1}-1",
                    f"{epoch}-{int(seq) + 1_000_000}",
                ):
                    redis.publish("wscluster:{lobby}", f"{forged} \x01\x01forged {forged}".encode())
                    await publish_until_heard(there, [here, there], f"after {forged}:")
                for one in (here, there):
                    true = [str(text) for text in one.heard if str(text).startswith("after ")]
                    assert len(true) == len(set(true))
                    for forged in {text.rpartition(" ")[0] for text in true}:
                        numbers = [int(text.rpartition(" ")[2]) for text in true if text.rpartition(" ")[0] == forged]
                        assert numbers == sorted(numbers)
                await use_rooms_without_logs(redis, here)
                # A stream of somebody else's: entries that are no messages.
                redis.xadd("wscluster:{strange}", {"other": "field"})
                redis.xadd("wscluster:{strange}", {"e": evil})
                await there.join("strange")
                redis.client_kill_filter(_type="pubsub")
                await there.publish("alive", "strange")
                await there.wait_for("alive")
            assert cluster.worker_pids() == pids
            assert not (tmp_path / "unpickled").exists()
            assert not [line for line in cluster.output if "Traceback" in line]

    run_with_valkey(tmp_path, main)


@pytest.mark.parametrize("room_log", [20_000, 20])
def test_twenty_disconnects_under_a_steady_load_lose_nothing_or_say_so(tmp_path: Path, room_log: int) -> None:
    async def main(valkey: Valkey) -> None:
        cluster = Cluster(ROOMS, redis_url=valkey.url, room_log=room_log, max_send_queue=1 << 30)
        async with (
            cluster,
            pair(cluster) as (here, there),
            Publisher(control_socket=str(cluster.control_socket)) as outside,
        ):
            for one in (here, there):
                await one.join()
            published: list[str] = []
            enough = asyncio.Event()

            async def publish() -> None:
                while not enough.is_set():
                    texts = [str(len(published) + number) for number in range(10)]
                    await asyncio.gather(*(outside.publish("lobby", text) for text in texts))
                    published.extend(texts)
                    await asyncio.sleep(0.005)

            load = asyncio.create_task(publish())
            with valkey.client() as redis:
                for _ in range(20):
                    await wait_until(lambda: len(redis.client_list(_type="pubsub")) == 2, "both workers subscribed")
                    before = len(published)
                    await wait_until(lambda: len(published) > before + 50, "the load goes on")  # noqa: B023
                    redis.client_kill_filter(_type="pubsub")
            enough.set()
            await load
            await publish_until_heard(here, [here, there], "the end")
            gaps = (await cluster.status())["bus"]["gaps"]
            lost = 0
            for one in (here, there):
                heard = [text for text in one.heard if not str(text).startswith("the end")]
                assert heard == [text for text in published if text in set(heard)], "out of order, or twice"
                lost += len(published) - len(heard)
            assert lost == 0 or gaps > 0
            if room_log > len(published):
                assert lost == 0
                assert gaps == 0

    run_with_valkey(tmp_path, main)
