"""A member that does not read is closed and counted; it costs a bounded memory, and nobody else anything."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from tests.cluster.room_support import ROOMS, Member, member
from tests.support import run
from wscluster.testing import Cluster

KIB = 1 << 10
MIB = 1 << 20
RECEIVE_BYTES = 16 * KIB
"""Receive buffer of a client that does not read, so that little is hidden in the kernel."""


@contextlib.asynccontextmanager
async def deaf(cluster: Cluster, room: str = "lobby") -> AsyncIterator[ClientConnection]:
    """A member of ``room`` that reads nothing unless the test calls `recv`."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    sock.connect(("127.0.0.1", cluster.port))
    sock.setblocking(False)
    async with cluster.connect(sock=sock, max_queue=1, max_size=None, compression=None, close_timeout=0.1) as ws:
        await ws.send(f'{{"do": "join", "room": "{room}"}}')
        assert str(await ws.recv()).startswith('!{"is"')
        yield ws
        ws.transport.abort()


async def _all_of(ws: ClientConnection) -> AsyncIterator[str | bytes]:
    """Give what still comes until the connection has ended, however it ends."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            yield await ws.recv()


async def flood(publisher: Member, readers: list[Member], count: int, size: int) -> None:
    """Publish ``count`` messages of ``size`` bytes, the next few only when ``readers`` have heard the last ones."""
    for _ in range(count):
        heard = len(readers[0].heard)
        await publisher.do("publish", size=size)
        for reader in readers:
            await reader.wait_heard(heard + 1)


@pytest.mark.parametrize("reads_again", [True, False])
def test_a_member_that_does_not_read_is_closed_and_the_others_miss_nothing(reads_again: bool) -> None:
    async def main() -> None:
        cluster = Cluster(ROOMS, workers=1, max_send_queue=256 * KIB)
        async with cluster, member(cluster) as one, member(cluster, compression=None) as two, deaf(cluster) as slow:
            await one.join()
            await two.join()
            rounds = 0
            while (await cluster.status())["totals"]["slow_closed"] == 0:
                await flood(one, [one, two], 8, 64 * KIB)
                rounds += 1
                assert rounds < 40, "20 MiB unread, and not closed"
            if reads_again:
                # It takes what was sent before, and then the reason.
                received = [message async for message in _all_of(slow)]
                assert slow.close_code == CloseCode.TRY_AGAIN_LATER
                assert slow.close_reason == "slow consumer"
                assert set(received) == {"x" * 64 * KIB}
                assert 256 * KIB <= len(received) * 64 * KIB < rounds * 8 * 64 * KIB
            # Its close frame cannot be written: it is reset after a second.
            status = await cluster.wait_status(lambda status: status["totals"]["connections"] == 2)
            assert status["workers"][0]["rooms"] == 1
            await flood(one, [one, two], 8, 64 * KIB)
            assert one.heard == two.heard == ["x" * 64 * KIB] * (8 * (rounds + 1))
            assert (await cluster.status())["totals"]["slow_closed"] == 1
            assert not [event for event in cluster.events if event["event"] == "worker_exited"]

    run(main())


def test_a_member_that_pauses_keeps_all_that_fits_its_queue() -> None:
    async def main() -> None:
        cluster = Cluster(ROOMS, workers=1, max_send_queue=8 * MIB)
        async with cluster, member(cluster) as one, deaf(cluster) as paused:
            await one.join()
            await flood(one, [one], 100, 64 * KIB)
            assert (await cluster.status())["totals"]["slow_closed"] == 0
            for _ in range(100):
                assert await paused.recv() == "x" * 64 * KIB
            await one.publish("go on")
            assert await paused.recv() == "go on"

    run(main())


@pytest.mark.parametrize("fragments", [False, True])
def test_a_single_message_that_is_larger_than_the_queue_passes_to_a_member_that_reads(fragments: bool) -> None:
    async def main() -> None:
        cluster = Cluster(ROOMS, workers=1, max_send_queue=1000)
        async with cluster, member(cluster, compression=None) as one, member(cluster) as two:
            await one.join()
            await two.join()
            for turn in range(1, 4):
                if fragments:
                    await two.do("say in fragments")
                await one.do("publish", size=MIB)
                # The one that spoke in fragments has heard its own message too.
                await one.wait_heard(turn * (2 if fragments else 1))
                await two.wait_heard(turn * (3 if fragments else 1))
            assert (await cluster.status())["totals"]["slow_closed"] == 0
            assert two.heard == (["one whole", "between", "x" * MIB] if fragments else ["x" * MIB]) * 3

    run(main())


def test_a_hundred_members_that_do_not_read_cost_a_bounded_memory() -> None:
    """The bar of `websockets.broadcast` to compare with: 890 MB for 20 such clients, and none was closed."""
    count = 100

    async def main() -> None:
        async with Cluster(ROOMS, workers=1) as cluster, contextlib.AsyncExitStack() as stack:
            one = await stack.enter_async_context(member(cluster, compression=None))
            await one.join()
            for _ in range(count):
                await stack.enter_async_context(deaf(cluster))
            before = (await cluster.status())["workers"][0]["rss_bytes"]
            highest = before
            rounds = 0
            while (status := await cluster.status())["totals"]["slow_closed"] < count:
                highest = max(highest, status["workers"][0]["rss_bytes"])
                await flood(one, [one], 4, 64 * KIB)
                rounds += 1
                assert rounds < 100, f"25 MiB unread, and only {status['totals']['slow_closed']} closed"
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 1)
            assert highest - before < 150 * MIB
            await one.publish("the end")
            assert (await one.wait_for("the end"))[:-1] == ["x" * 64 * KIB] * (4 * rounds)

    run(main())


def test_a_member_of_another_room_or_worker_is_not_touched_by_a_slow_one() -> None:
    async def main() -> None:
        cluster = Cluster(ROOMS, workers=2, sticky="none", balance="round-robin", max_send_queue=64 * KIB)
        async with cluster, member(cluster) as one, member(cluster) as two, deaf(cluster) as _:
            slots = [(await each.state())["slot"] for each in (one, two)]
            assert sorted(slots) == [0, 1]
            await one.join()
            await two.join("elsewhere")
            rounds = 0
            while (await cluster.status())["totals"]["slow_closed"] == 0:
                await flood(one, [one], 8, 32 * KIB)
                sent = asyncio.get_running_loop().time()
                await two.publish(f"{rounds}", "elsewhere")
                await two.wait_heard(rounds + 1)
                assert asyncio.get_running_loop().time() - sent < 5
                rounds += 1
                assert rounds < 80
            assert two.heard == [f"{number}" for number in range(rounds)]

    run(main())


def test_what_a_handler_sends_itself_is_waited_for_and_closes_nobody() -> None:
    """The bound is that of rooms: ``ws.send`` waits instead."""

    async def main() -> None:
        async with Cluster("tests.cluster.handlers:echo", workers=1, max_send_queue=KIB) as cluster:
            async with cluster.connect(max_queue=1, max_size=None, compression=None) as ws:
                sent = [os.urandom(256 * KIB) for _ in range(40)]

                async def send() -> None:
                    for data in sent:
                        await ws.send(data)

                sending = asyncio.create_task(send())
                await cluster.wait_status(lambda status: status["workers"][0]["messages_in"] > 4)
                for data in sent:
                    assert await ws.recv() == data
                await sending
            assert (await cluster.status())["totals"]["slow_closed"] == 0

    run(main())
