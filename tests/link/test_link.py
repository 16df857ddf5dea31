"""Links over real socket pairs: order, file descriptors, and what is left when one end dies."""

import asyncio
import contextlib
import fcntl
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any

import pytest

from wscluster.link import MAX_FDS, Link, LinkFull, link_pair
from wscluster.loops import new_event_loop
from wscluster.packets import Adopted, Offer, Offered, Packet, Poll, Ready, Refused, Start, encode

BIG = Start(0, 0, 0, "x" * 100_000)


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(asyncio.wait_for(main, 20))


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _no_fd_is_leaked() -> Iterator[None]:
    run(asyncio.sleep(0))
    before = open_fds()
    yield
    assert open_fds() == before


class Side:
    """One end of a link, and what came through it."""

    def __init__(self, sock: socket.socket, max_outbox: int = 1024) -> None:
        self.packets: list[Packet] = []
        self.fds: list[int] = []
        self.ends = 0
        self.link = Link(sock, asyncio.get_running_loop(), self._on_packet, self._on_end, max_outbox=max_outbox)
        self._changed = asyncio.Event()

    def _on_packet(self, packet: Packet, fds: list[int]) -> None:
        assert not self.ends
        self.packets.append(packet)
        self.fds += fds
        self._changed.set()

    def _on_end(self) -> None:
        self.ends += 1
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def close(self) -> None:
        self.link.close()
        for fd in self.fds:
            os.close(fd)


@contextlib.asynccontextmanager
async def two_sides(max_outbox: int = 1024) -> AsyncIterator[tuple[Side, Side]]:
    left, right = (Side(sock, max_outbox) for sock in link_pair())
    try:
        yield left, right
    finally:
        left.close()
        right.close()


@contextlib.asynccontextmanager
async def one_side(max_outbox: int = 1024) -> AsyncIterator[tuple[Side, socket.socket]]:
    """Yields a side and the bare socket of its peer."""
    ours, peer = link_pair()
    with peer:
        peer.setblocking(False)
        side = Side(ours, max_outbox)
        try:
            yield side, peer
        finally:
            side.close()


@contextlib.contextmanager
def null_devices(count: int) -> Iterator[list[int]]:
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def polls(serials: range) -> list[Packet]:
    return [Poll(serial) for serial in serials]


def test_packets_arrive_in_order() -> None:
    async def main() -> None:
        async with two_sides(5000) as (left, right):
            for serial in range(3000):
                left.link.send(Poll(serial))
                right.link.send(Adopted((serial,)))
            await right.until(lambda: len(right.packets) == 3000)
            await left.until(lambda: len(left.packets) == 3000)
            assert right.packets == polls(range(3000))
            assert left.packets == [Adopted((serial,)) for serial in range(3000)]

    run(main())


def test_packets_that_wait_are_delivered_by_receive_all() -> None:
    async def main() -> None:
        async with two_sides() as (left, right):
            for serial in range(100):
                left.link.send(Poll(serial))
            left.link.close()
            right.link.receive_all()
            assert right.packets == polls(range(100))
            assert right.ends == 1

    run(main())


def test_sockets_arrive_beside_their_packet_and_are_not_inherited() -> None:
    async def main() -> None:
        async with two_sides() as (left, right):
            one, other = socket.socketpair()
            with one, other:
                left.link.send(Poll(1))
                left.link.send(Offer((Offered(7, "192.0.2.1", 80),)), [other.fileno()])
                left.link.send(Poll(2))
                await right.until(lambda: len(right.packets) == 3)
                (fd,) = right.fds
                assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
                other.close()
                os.write(fd, b"through the sent one")
                assert one.recv(100) == b"through the sent one"

    run(main())


def test_both_ends_of_a_link_are_not_inherited() -> None:
    for sock in link_pair():
        with sock:
            assert not sock.get_inheritable()


def test_253_sockets_go_with_one_packet_in_their_order() -> None:
    async def main() -> None:
        async with two_sides() as (left, right):
            with null_devices(MAX_FDS) as fds:
                os.close(fds[100])
                fds[100] = os.open("/dev/zero", os.O_RDONLY)
                left.link.send(Offer(tuple(Offered(number, "::1", 1) for number in range(MAX_FDS))), fds)
                await right.until(lambda: bool(right.packets))
            assert len(right.fds) == MAX_FDS
            assert [index for index, fd in enumerate(right.fds) if os.read(fd, 1)] == [100]
            assert right.link.fds_lost == 0

    run(main())


def test_all_packets_of_a_peer_that_died_with_unread_ones_arrive_and_then_the_end() -> None:
    async def main() -> None:
        async with one_side() as (side, peer):
            with null_devices(2) as fds:
                side.link.send(Ready())
                for serial in range(100):
                    peer.send(encode(Poll(serial)))
                socket.send_fds(peer, [encode(Offer((Offered(1, "", 0), Offered(2, "", 0))))], fds)
                peer.close()
            await side.until(lambda: bool(side.ends))
            assert side.packets[:-1] == polls(range(100))
            assert len(side.fds) == 2
            await turns()
            assert side.ends == 1
            assert side.link.closed

    run(main())


def test_a_dead_peers_packets_still_arrive_after_a_send_to_it_failed() -> None:
    async def main() -> None:
        async with one_side() as (side, peer):
            peer.send(encode(Poll(1)))
            peer.close()
            side.link.send(Poll(2))
            assert side.link.outbox == 0
            await side.until(lambda: bool(side.ends))
            assert side.packets == [Poll(1)]

    run(main())


def test_a_dead_peers_many_packets_arrive_though_a_send_in_the_same_turn_took_the_error() -> None:
    async def main() -> None:
        async with one_side() as (side, peer):
            side.link.send(Ready())
            for serial in range(200):
                peer.send(encode(Poll(serial)))
            peer.close()
            asyncio.get_running_loop().call_soon(side.link.send, Poll(2))
            await side.until(lambda: bool(side.ends))
            assert side.packets == polls(range(200))

    run(main())


def test_the_death_of_a_peer_that_did_not_read_is_noticed_while_packets_wait_for_it() -> None:
    async def main() -> None:
        async with one_side() as (side, peer):
            fill(side)
            for serial in range(200):
                peer.send(encode(Poll(serial)))
            peer.close()
            await side.until(lambda: bool(side.ends))
            assert (side.packets, side.link.outbox) == (polls(range(200)), 0)

    run(main())


def test_nothing_is_sent_on_a_link_that_has_ended() -> None:
    async def main() -> None:
        async with one_side() as (side, peer):
            peer.close()
            await side.until(lambda: bool(side.ends))
            sent: list[int] = []
            side.link.send(Poll(1), sent=lambda: sent.append(1))
            assert (sent, side.link.outbox) == ([], 0)

    run(main())


def fill(side: Side, packet: Packet = BIG) -> int:
    """Send until something waits; returns the number of packets that the kernel took."""
    taken = 0
    while not side.link.outbox:
        side.link.send(packet)
        taken += not side.link.outbox
    return taken


def test_a_full_outbox_refuses_and_drains_when_the_peer_reads() -> None:
    async def main() -> None:
        async with one_side(max_outbox=3) as (side, peer):
            taken = fill(side)
            sent: list[int] = []
            side.link.send(Poll(1), sent=lambda: sent.append(1))
            side.link.send(Poll(2), sent=lambda: sent.append(2))
            with pytest.raises(LinkFull, match="3 packets wait"):
                side.link.send(Poll(3), sent=lambda: sent.append(3))
            await turns()
            assert (side.link.outbox, sent) == (3, [])
            received: list[bytes] = []
            while len(received) < taken + 3:
                await turns(2)
                with contextlib.suppress(BlockingIOError):
                    received.append(peer.recv(200_000))
            assert received[-3:] == [encode(BIG), encode(Poll(1)), encode(Poll(2))]
            assert (side.link.outbox, sent) == (0, [1, 2])
            side.link.send(Poll(4))
            assert peer.recv(100) == encode(Poll(4))

    run(main())


def test_sent_is_told_at_once_where_the_link_has_room() -> None:
    async def main() -> None:
        async with two_sides() as (left, _):
            sent: list[int] = []
            left.link.send(Poll(1), sent=lambda: sent.append(1))
            assert sent == [1]

    run(main())


def test_a_packet_sent_by_a_sent_callback_comes_after_those_that_wait() -> None:
    async def main() -> None:
        async with two_sides() as (left, right):
            left.link.send(Poll(1), sent=lambda: left.link.send(Poll(2)))
            await right.until(lambda: len(right.packets) == 2)
            assert right.packets == [Poll(1), Poll(2)]

    run(main())


def test_sockets_in_a_full_outbox_may_be_closed_once_they_are_sent() -> None:
    async def main() -> None:
        async with one_side() as (side, peer):
            taken = fill(side)
            fd = os.open(os.devnull, os.O_RDONLY)
            side.link.send(Offer((Offered(1, "", 0),)), [fd], sent=lambda: os.close(fd))
            for _ in range(taken + 1):
                peer.recv(200_000)
                await turns(4)
            data, fds, _, _ = socket.recv_fds(peer, 1000, 1)
            for received in fds:
                os.close(received)
            assert data == encode(Offer((Offered(1, "", 0),)))
            assert len(fds) == 1

    run(main())


@contextlib.contextmanager
def room_for_fds(count: int) -> Iterator[None]:
    """Lower the limit of this process so that ``count`` more file descriptors may be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, open_fds())) + 1
    held: list[int] = []
    try:
        while not held or held[-1] < highest:
            held.append(os.open(os.devnull, os.O_RDONLY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1] + 1 + count, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)


def test_sockets_lost_at_the_limit_of_the_process_are_counted_and_those_that_came_are_delivered() -> None:
    async def main() -> None:
        async with two_sides() as (left, right):
            with null_devices(10) as fds:
                left.link.send(Offer(tuple(Offered(number, "", 0) for number in range(10))), fds)
            with room_for_fds(4):
                right.link.receive_all()
            assert right.link.fds_lost == 1
            assert len(right.fds) == 4
            assert len(right.packets) == 1
            left.link.send(Poll(1))
            await right.until(lambda: right.packets[1:] == [Poll(1)])

    run(main())


def test_garbage_is_dropped_with_its_sockets(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with one_side() as (side, peer):
            with null_devices(3) as fds:
                socket.send_fds(peer, [b"\xffgarbage"], fds)
            peer.send(encode(Poll(1)))
            await side.until(lambda: bool(side.packets))
            assert (side.packets, side.fds) == ([Poll(1)], [])

    run(main())
    assert [record.getMessage() for record in caplog.records if record.name == "wscluster.link"] == [
        "packet dropped: 8 bytes that are no packet: tuple index out of range"
    ]


def test_a_packet_longer_than_any_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with one_side() as (side, peer):
            peer.send(encode(Start(0, 0, 0, "x" * 150_000))[:-1] + b"y" * 52_000)
            await turns()
            peer.send(encode(Poll(1)))
            await side.until(lambda: bool(side.packets))
            assert side.packets == [Poll(1)]

    run(main())
    assert "packet dropped" in caplog.text


def test_close_ends_both_callbacks_and_drops_the_outbox() -> None:
    async def main() -> None:
        async with one_side() as (side, peer):
            taken = fill(side)
            peer.send(encode(Poll(1)))
            side.link.close()
            side.link.close()
            side.link.receive_all()
            await turns()
            assert (side.packets, side.ends, side.link.outbox) == ([], 0, 0)
            assert side.link.closed
            with pytest.raises(ConnectionResetError):
                peer.recv(100)
            assert [peer.recv(200_000) for _ in range(taken + 1)] == [encode(BIG)] * taken + [b""]

    run(main())


@pytest.mark.parametrize("packet", [Ready(), Refused((1, 2)), Offer(())])
def test_closing_a_link_from_its_own_callback_delivers_nothing_more(packet: Packet) -> None:
    async def main() -> None:
        got: list[Packet] = []
        ours, peer = link_pair()

        def on_packet(received: Packet, fds: Sequence[int]) -> None:
            got.append(received)
            link.close()

        with peer:
            link = Link(ours, asyncio.get_running_loop(), on_packet, lambda: got.append(Poll(0)))
            for _ in range(3):
                peer.send(encode(packet))
            peer.close()
            await turns()
        assert got == [packet]

    run(main())


def test_the_links_flood_does_not_starve_the_loop() -> None:
    async def main() -> None:
        async with two_sides() as (left, right):
            for serial in range(200):
                left.link.send(Poll(serial))
            order: list[int] = []

            async def other() -> None:
                while len(right.packets) < 200:
                    order.append(len(right.packets))
                    await asyncio.sleep(0)

            task: Awaitable[None] = asyncio.ensure_future(other())
            await right.until(lambda: len(right.packets) == 200)
            await task
            assert {64, 128} <= set(order)

    run(main())
