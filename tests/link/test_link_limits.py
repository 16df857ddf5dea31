"""Links at the kernel's limits, with peers that are processes and die, and with peers that send what is no packet."""

import array
import asyncio
import contextlib
import errno
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from tests.support import ROOT
from wscluster.link import MAX_FDS, Link, link_pair
from wscluster.loops import new_event_loop
from wscluster.packets import MAX_PACKET_BYTES, Adopted, InvalidPacket, Offer, Offered, Packet, Poll, Start, encode

BIG = Start(0, 0, 0, "x" * 60_000)


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(asyncio.wait_for(main, 30))


class Receiver:
    """A link, and what came through it in its order; a None is its end."""

    def __init__(self, sock: socket.socket, max_outbox: int = 1024) -> None:
        self.packets: list[Packet | None] = []
        self.fds: list[list[int]] = []
        self._changed = asyncio.Event()
        self.link = Link(sock, asyncio.get_running_loop(), self._received, self._ended, max_outbox=max_outbox)

    def _received(self, packet: Packet, fds: list[int]) -> None:
        self.packets.append(packet)
        self.fds.append(fds)
        self._changed.set()

    def _ended(self) -> None:
        self.packets.append(None)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


@contextlib.contextmanager
def receiver(max_outbox: int = 1024) -> Iterator[tuple[Receiver, socket.socket]]:
    ours, peer = link_pair()
    with peer:
        side = Receiver(ours, max_outbox)
        try:
            yield side, peer
        finally:
            side.link.close()
            for fds in side.fds:
                for fd in fds:
                    os.close(fd)


@contextlib.contextmanager
def device(count: int = 1) -> Iterator[list[int]]:
    """One file descriptor, ``count`` times: the kernel counts each that is in flight."""
    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        yield [fd] * count
    finally:
        os.close(fd)


def offer(*numbers: int) -> Offer:
    return Offer(tuple(Offered(number, "192.0.2.1", 80) for number in numbers))


# A peer process


async def start_peer(sock: socket.socket, script: str, *arguments: str) -> asyncio.subprocess.Process:
    """Run ``script`` with ``peer``, its end of the link, and ``arguments``; returns when it has said something."""
    head = "import socket, sys, time\nfrom wscluster.packets import *\npeer = socket.socket(fileno=int(sys.argv[1]))\n"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", head + script, str(sock.fileno()), *arguments,
        pass_fds=[sock.fileno()], stdout=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    sock.close()
    assert process.stdout is not None
    assert await process.stdout.readline() == b"here\n"
    return process


ADOPTS_AND_SLEEPS = """
for number in range(int(sys.argv[2])):
    peer.send(encode(Adopted((number,))))
print("here", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("count", [0, 1, 64, 65, 150])
def test_all_adopted_of_a_killed_worker_are_read_though_it_leaves_an_unread_offer(count: int) -> None:
    """The kernel reports ECONNRESET once and before what is still queued."""

    async def main() -> None:
        with receiver() as (side, peer), device() as fds:
            # Unread while the process writes: nothing is received before it is dead.
            asyncio.get_running_loop().remove_reader(side.link._fd)
            process = await start_peer(peer, ADOPTS_AND_SLEEPS, str(count))
            side.link.send(offer(7), fds)
            process.kill()
            assert await process.wait() == -signal.SIGKILL
            asyncio.get_running_loop().add_reader(side.link._fd, side.link._readable)
            await side.until(lambda: None in side.packets)
            assert side.packets == [*(Adopted((number,)) for number in range(count)), None]
            for _ in range(10):
                await asyncio.sleep(0)
            assert side.packets.count(None) == 1

    run(main())


def test_a_socket_in_an_offer_that_died_unread_is_still_alive_for_who_kept_it() -> None:
    async def main() -> None:
        with receiver() as (side, peer):
            ours, client = socket.socketpair()
            with ours, client:
                process = await start_peer(peer, ADOPTS_AND_SLEEPS, "0")
                side.link.send(offer(1), [ours.fileno()])
                process.kill()
                await process.wait()
                await side.until(lambda: None in side.packets)
                client.sendall(b"still there?")
                assert ours.recv(100) == b"still there?"
                ours.sendall(b"yes")
                assert client.recv(100) == b"yes"

    run(main())


def test_a_stopped_peer_gets_every_packet_in_order_when_it_goes_on() -> None:
    """A full link (EAGAIN) holds back what comes later, with and without sockets."""
    script = """
print("here", flush=True)
order = []
while len(order) < int(sys.argv[2]):
    data, fds, _, _ = socket.recv_fds(peer, 200_000, 253)
    packet = decode(data)
    if isinstance(packet, Offer):
        assert len(fds) == 1
        order.append(packet.connections[0].number)
        socket.close(fds[0])
    else:
        order.append(packet.slot)
peer.send(encode(Adopted(tuple(order))))
"""

    async def main() -> None:
        with receiver() as (side, peer), device() as fds:
            process = await start_peer(peer, script, "60")
            process.send_signal(signal.SIGSTOP)
            for number in range(60):
                if number % 3:
                    side.link.send(offer(number), fds)
                else:
                    side.link.send(Start(number, 0, 0, "x" * 60_000))
            assert side.link.outbox > 40
            process.send_signal(signal.SIGCONT)
            await side.until(lambda: bool(side.packets))
            assert side.packets[0] == Adopted(tuple(range(60)))
            assert await process.wait() == 0

    run(main())


# Limits of the kernel


def test_254_sockets_are_refused_and_the_link_goes_on() -> None:
    async def main() -> None:
        with receiver() as (side, peer), device(MAX_FDS + 1) as fds:
            with pytest.raises(ValueError, match="254 file descriptors"):
                side.link.send(offer(*range(254)), fds)
            # The kernel says so too.
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            with pytest.raises(OSError, match="Invalid argument") as refused:
                peer.sendmsg([b"x"], rights)
            assert refused.value.errno == errno.EINVAL
            side.link.send(Poll(1))
            assert peer.recv(100) == encode(Poll(1))

    run(main())


def test_a_packet_that_is_too_long_is_refused_and_the_link_goes_on() -> None:
    async def main() -> None:
        with receiver() as (side, peer):
            with pytest.raises(InvalidPacket, match="more than 200000"):
                side.link.send(Start(0, 0, 0, "x" * MAX_PACKET_BYTES))
            side.link.send(Poll(1))
            assert peer.recv(100) == encode(Poll(1))
            assert side.link.outbox == 0

    run(main())


TOO_MANY = """
import array, asyncio, os, resource, socket
from wscluster.link import Link, link_pair
from wscluster.loops import new_event_loop
from wscluster.packets import Offer, Offered, Poll, decode

async def main():
    ours, peer = link_pair()
    link = Link(ours, asyncio.get_running_loop(), lambda packet, fds: None, lambda: None)
    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        flying = 0
        while True:  # until the kernel has enough of this user
            left, right = hold = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            held.append(hold)
            left.setblocking(False)
            for _ in range(4):
                left.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd] * 253))])
                flying += 253
    except OSError as exc:
        print(exc.errno, flying, flush=True)
    sent = []
    link.send(Offer((Offered(1, "", 0),)), [fd], sent=lambda: sent.append(1))
    link.send(Poll(2), sent=lambda: sent.append(2))
    for _ in range(5):
        await asyncio.sleep(0.02)
    print(sent, link.outbox, flush=True)
    cpu = os.times().user + os.times().system
    await asyncio.sleep(0.3)
    print(os.times().user + os.times().system - cpu < 0.1, flush=True)
    for left, right in held:
        left.close()
        right.close()
    while len(sent) < 2:
        await asyncio.sleep(0.005)
    for _ in range(2):
        data, fds, _, _ = socket.recv_fds(peer, 1000, 10)
        print(decode(data), len(fds), flush=True)

held = []
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(asyncio.wait_for(main(), 20))
"""


def test_too_many_descriptors_in_flight_only_delay_and_cost_no_cpu() -> None:
    """ETOOMANYREFS: per user, over all processes, and not for root."""
    done = subprocess.run(
        [sys.executable, "-c", TOO_MANY], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert int(first.split()[0]) == errno.ETOOMANYREFS, first
    assert rest == [
        "[] 2",
        "True",
        "Offer(connections=(Offered(number=1, host='', port=0, listener=0),)) 1",
        "Poll(serial=2) 0",
    ]


def test_at_the_limit_of_the_receiver_no_descriptor_is_left_over_or_closed_twice() -> None:
    async def main() -> None:
        with receiver() as (side, peer), device(MAX_FDS) as fds:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            lowest = os.dup(fds[0])
            os.close(lowest)
            for room in (0, 1, 100, 253):
                side.packets.clear()
                socket.send_fds(peer, [encode(offer(*range(MAX_FDS)))], fds)
                # The table has holes below the limit: fill them, so that only ``room`` are free.
                held = [os.dup(fds[0])]
                while held[-1] < lowest + 300:
                    held.append(os.dup(fds[0]))
                resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1] + 1 + room, hard))
                try:
                    side.link.receive_all()
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                    for fd in held:
                        os.close(fd)
                assert len(side.packets) == 1
                got = side.fds.pop()
                assert len(got) == room
                for fd in got:
                    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
                    os.close(fd)
            assert side.link.fds_lost == 3

    run(main())


# What is no packet


@pytest.mark.parametrize(
    ("data", "sockets"),
    [
        (b"\0", 0),
        (b"\xffgarbage", 3),
        (encode(offer(1))[:-3], 1),
        (encode(Adopted((1, 2)))[:-1], 0),
        (b"\x04{}", 1),
        (b"\x04[1]", 0),
        (b"\x04" + b"[" * 100_000, 2),
    ],
)
def test_what_is_no_packet_is_dropped_with_its_sockets_and_counted(data: bytes, sockets: int) -> None:
    async def main() -> None:
        with receiver() as (side, peer), device(max(sockets, 1)) as fds:
            socket.send_fds(peer, [data], fds[:sockets])
            peer.send(encode(Poll(1)))
            await side.until(lambda: bool(side.packets))
            assert (side.packets, side.link.dropped) == ([Poll(1)], 1)

    before = set(os.listdir("/proc/self/fd"))
    run(main())
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_packet_that_was_cut_off_is_dropped_though_its_beginning_is_one() -> None:
    """One number less, and the buffer's end would fall between two numbers."""

    async def main() -> None:
        with receiver() as (side, peer):
            peer.send(bytes((8,)) + bytes(MAX_PACKET_BYTES + 8))
            peer.send(encode(Poll(1)))
            await side.until(lambda: bool(side.packets))
            assert (side.packets, side.link.dropped) == ([Poll(1)], 1)

    assert encode(Adopted(()))[0] == 8
    run(main())


@pytest.mark.parametrize(("packet", "sockets", "kept"), [(Poll(1), 3, 0), (offer(1, 2), 5, 2), (offer(), 1, 0)])
def test_sockets_that_belong_to_nothing_are_closed(packet: Packet, sockets: int, kept: int) -> None:
    async def main() -> None:
        with receiver() as (side, peer), device(sockets) as fds:
            before = len(os.listdir("/proc/self/fd"))
            socket.send_fds(peer, [encode(packet)], fds)
            await side.until(lambda: bool(side.packets))
            assert (side.packets, len(side.fds[0])) == ([packet], kept)
            assert len(os.listdir("/proc/self/fd")) == before + kept

    run(main())
