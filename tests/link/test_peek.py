"""The first look at a connection, over real sockets: what is taken, what is left, and how often it is looked at."""

import asyncio
import socket
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from tests.cluster.raw import RESET
from tests.support import open_fds
from wscluster.gateway import peek
from wscluster.gateway.listener import Accepted
from wscluster.gateway.peek import Peeker
from wscluster.gateway.proxyproto import parse
from wscluster.loops import new_event_loop

LINE = b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 443\r\n"
TRUE = ("192.0.2.7", 40000)
OWN = ("127.0.0.1", 7)


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(asyncio.wait_for(main, 20))


@pytest.fixture(autouse=True)
def _no_fd_is_leaked() -> Iterator[None]:
    run(asyncio.sleep(0))
    before = open_fds()
    yield
    assert open_fds() == before


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


PAIRS = {"TCP": (tcp_pair, OWN), "Unix": (socket.socketpair, ("", 0))}


class Gate:
    """A `Peeker`, and what became of the connections that it was given."""

    def __init__(self, mode: str = "auto", seconds: float = 20) -> None:
        loop = asyncio.get_running_loop()
        self.passed: list[Accepted] = []
        self.refused = 0
        self.news = asyncio.Event()
        self.peeker = Peeker(mode, ["127.0.0.0/8"], seconds, loop, self._pass, self._refuse)

    def _pass(self, batch: list[Accepted]) -> None:
        self.passed += batch
        self.news.set()

    def _refuse(self) -> None:
        self.refused += 1
        self.news.set()

    async def outcome(self) -> list[tuple[str, int]]:
        """Wait for what comes of the next connection; returns the true clients of all that passed."""
        await self.news.wait()
        self.news.clear()
        return [(host, port) for _, host, port, _ in self.passed]


@pytest.mark.parametrize("kind", PAIRS)
def test_a_whole_header_is_taken_at_once_and_nothing_after_it(kind: str) -> None:
    make, peer = PAIRS[kind]

    async def main() -> None:
        gate = Gate()
        client, sock = make()
        with client, sock:
            client.send(LINE + b"GET /")
            gate.peeker.accept([(sock, *peer, 0)])
            assert [(host, port) for _, host, port, _ in gate.passed] == [TRUE]
            assert sock.recv(100) == b"GET /"
        gate.peeker.close()

    run(main())


@pytest.mark.parametrize("kind", PAIRS)
def test_a_half_header_is_looked_at_a_few_times_only_and_waited_for(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, peer = PAIRS[kind]
    looks = 0

    def counted(data: bytes, mode: str) -> Any:
        nonlocal looks
        looks += 1
        return parse(data, mode)

    monkeypatch.setattr(peek, "parse", counted)

    async def main() -> None:
        gate = Gate()
        client, sock = make()
        with client, sock:
            client.send(LINE[:20])
            gate.peeker.accept([(sock, *peer, 0)])
            await asyncio.sleep(0.5)
            # A Unix socket is looked at on a timer, as the kernel does not wait for more on it.
            assert looks <= (1 if kind == "TCP" else 2 + 2 * 0.5 / peek.AGAIN_SECONDS)
            client.send(LINE[20:] + b"x")
            assert await gate.outcome() == [TRUE]
            # The kernel wakes for one byte again, as it would for any connection.
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
            assert sock.recv(100) == b"x"
        gate.peeker.close()

    run(main())


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("size", [0, 1, 20])
def test_the_end_of_a_peer_within_its_header_is_seen_at_once(kind: str, size: int) -> None:
    make, peer = PAIRS[kind]

    async def main() -> None:
        gate = Gate()
        client, sock = make()
        with client:
            client.send(LINE[:size])
            gate.peeker.accept([(sock, *peer, 0)])
            client.shutdown(socket.SHUT_WR)
            assert await gate.outcome() == []
            assert gate.refused == 1
            assert sock.fileno() == -1

    run(main())


def test_a_header_is_whole_before_its_peer_has_gone() -> None:
    async def main() -> None:
        gate = Gate("v1")
        client, sock = tcp_pair()
        with client, sock:
            client.send(LINE)
            client.shutdown(socket.SHUT_WR)
            gate.peeker.accept([(sock, *OWN, 0)])
            assert await gate.outcome() == [TRUE]

    run(main())


def test_a_header_of_many_parts_is_taken_as_it_comes() -> None:
    header = (
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"
        + bytes((192, 0, 2, 7, 10, 0, 0, 1, 156, 64, 1, 187))
        + b"\xff" * (65535 - 12)
    )

    async def main() -> None:
        gate = Gate("v2")
        client, sock = tcp_pair()
        with client, sock:
            client.send(header[:14])
            gate.peeker.accept([(sock, *OWN, 0)])
            for start in range(14, len(header), 9973):
                client.send(header[start : start + 9973])
                await asyncio.sleep(0.01)
                assert bool(gate.passed) is (start + 9973 >= len(header))
            client.send(b"x")
            assert await gate.outcome() == [TRUE]
            await asyncio.get_running_loop().run_in_executor(None, sock.recv, 1, socket.MSG_PEEK)
            assert sock.recv(100) == b"x"

    run(main())


def test_the_deadline_is_each_connections_own() -> None:
    async def main() -> None:
        gate = Gate(seconds=0.2)
        loop = asyncio.get_running_loop()
        pairs = []
        for _ in range(3):
            client, sock = tcp_pair()
            pairs.append((client, sock, loop.time()))
            gate.peeker.accept([(sock, *OWN, 0)])
            await asyncio.sleep(0.05)
        for number, (client, sock, begun) in enumerate(pairs, start=1):
            while gate.refused < number:
                await gate.outcome()
            assert loop.time() - begun > 0.199  # a clock of milliseconds
            assert sock.fileno() == -1
            client.close()
        assert not gate.passed

    run(main())


def test_bytes_that_come_slowly_do_not_put_the_deadline_off() -> None:
    async def main() -> None:
        gate = Gate(seconds=0.3)
        loop = asyncio.get_running_loop()
        client, sock = tcp_pair()
        begun = loop.time()
        sent = 0
        with client:
            gate.peeker.accept([(sock, *OWN, 0)])
            while not gate.refused and sent < len(LINE):
                client.send(LINE[sent : sent + 1])
                sent += 1
                await asyncio.sleep(0.02)
            assert await gate.outcome() == []
            assert loop.time() - begun >= 0.3
            assert sent < len(LINE)

    run(main())


@pytest.mark.parametrize("size", [0, 20])
def test_a_reset_within_a_header_is_seen_at_once(size: int) -> None:
    async def main() -> None:
        gate = Gate()
        client, sock = tcp_pair()
        client.send(LINE[:size])
        gate.peeker.accept([(sock, *OWN, 0)])
        await asyncio.sleep(0.02)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
        assert await gate.outcome() == []
        assert sock.fileno() == -1

    run(main())


def test_at_the_bound_the_oldest_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peek, "MAX_PEEKING", 2)

    async def main() -> None:
        gate = Gate()
        pairs = [tcp_pair() for _ in range(3)]
        gate.peeker.accept([(sock, *OWN, 0) for _, sock in pairs])
        assert [sock.fileno() == -1 for _, sock in pairs] == [True, False, False]
        gate.peeker.close()
        assert gate.refused == 3
        for client, sock in pairs:
            assert sock.fileno() == -1
            with client, pytest.raises(ConnectionResetError):
                client.recv(1)

    run(main())


def test_a_peer_that_is_not_allowed_is_never_looked_at() -> None:
    async def main() -> None:
        for mode, passed in (("v1", []), ("v2", []), ("auto", [("10.0.0.9", 7)])):
            gate = Gate(mode)
            client, sock = tcp_pair()
            with client, sock:
                client.send(LINE)
                gate.peeker.accept([(sock, "10.0.0.9", 7, 0)])
                assert await gate.outcome() == passed
                assert gate.refused == (not passed)
                if passed:
                    assert sock.recv(100) == LINE

    run(main())
