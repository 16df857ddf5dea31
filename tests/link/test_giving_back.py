"""Connections that go back to the primary with nothing read of them."""

import asyncio
import os
import socket

import pytest

from tests.support import open_fds, run
from wscluster.link import Link, link_pair
from wscluster.packets import Offered, Packet, Returned
from wscluster.workers.giving_back import AT_ONCE, GivingBack, bytes_read


def tcp_pair(family: int = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family) as server:
        client = socket.create_connection(server.getsockname()[:2])
        return client, server.accept()[0]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_byte_that_was_read_is_seen_and_one_that_waits_is_none(family: int) -> None:
    client, served = tcp_pair(family)
    with client, served:
        fd = served.fileno()
        assert bytes_read(fd) == 0
        client.sendall(b"GET / ")
        served.recv(1, socket.MSG_PEEK)
        assert bytes_read(fd) == 0
        assert served.recv(1) == b"G"
        assert bytes_read(fd) == 1
        assert served.recv(100) == b"ET / "
        assert bytes_read(fd) == 6, "nothing waits, but it was read"
        client.sendall(b"x" * 10)
        served.recv(1, socket.MSG_PEEK)
        assert bytes_read(fd) == 6


def test_of_a_unix_socket_nothing_is_known_and_of_what_is_closed_neither() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert bytes_read(one.fileno()) is None
    assert bytes_read(10**6) is None


def test_they_come_in_packets_with_their_sockets_and_are_let_go_of_without_a_word() -> None:
    before = open_fds()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = link_pair()
        got: list[tuple[tuple[Offered, ...], list[int]]] = []
        sent, received = asyncio.Event(), asyncio.Event()

        def receive(packet: Packet, fds: list[int]) -> None:
            assert isinstance(packet, Returned)
            got.append((packet.connections, fds))
            if len(got) == 2:
                received.set()

        primary = Link(ours, loop, receive, lambda: None)
        worker = Link(theirs, loop, lambda _packet, _fds: None, lambda: None)
        giving = GivingBack(worker, sent.set)
        pairs = [tcp_pair() for _ in range(AT_ONCE + 3)]
        offered = [Offered(0, "192.0.2.1", number, 2) for number in range(len(pairs))]
        giving.give([(one, served.fileno(), served.close) for one, (_, served) in zip(offered, pairs, strict=True)])
        await asyncio.gather(sent.wait(), received.wait())
        assert [len(connections) for connections, _ in got] == [AT_ONCE, 3]
        assert [one for connections, _ in got for one in connections] == offered
        fds = [fd for _, some in got for fd in some]
        for (client, served), fd in zip(pairs, fds, strict=True):
            assert served.fileno() == -1
            client.sendall(b"hello")
            with socket.socket(fileno=fd) as back:
                assert back.recv(5) == b"hello"
            client.close()
        assert (giving.unsent, giving.given) == (0, AT_ONCE + 3)
        primary.close()
        worker.close()

    run(main())
    assert open_fds() == before


def test_what_the_link_has_no_room_for_stays() -> None:
    before = open_fds()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = link_pair()
        worker = Link(theirs, loop, lambda _packet, _fds: None, lambda: None, max_outbox=0)
        giving = GivingBack(worker, lambda: None)
        client, served = tcp_pair()
        giving.give([(Offered(0, "192.0.2.1", 1), served.fileno(), served.close)])
        assert served.fileno() >= 0
        assert (giving.unsent, giving.given) == (0, 0)
        os.fstat(served.fileno())
        for sock in (client, served, ours):
            sock.close()
        worker.close()

    run(main())
    assert open_fds() == before
