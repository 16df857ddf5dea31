"""Attacks on a real cluster, each with its bar, while 100 healthy clients of the same workers are measured.

`tests.cluster.crowd` says what is judged: a healthy client's median round trip at most doubles against a calm second
just before, or stays below 20 ms, and its 99th percentile stays at 100 ms or less. Beside that each
test has a bar of its own: memory, CPU, close codes, the processes' ids.
"""

import asyncio
import contextlib
import errno
import select
import socket
import struct
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from tests.cluster.crowd import MIB, Crowd, Usage, bearable, crowd
from tests.cluster.raw import CLOSE, Raw, frame, handshake
from tests.support import run
from wscluster.testing import Cluster

SERVED = "tests.cluster.hostile_handlers:by_path"
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
MASK = bytes(4)
PING, PONG = b"\x89\x80" + MASK, b"\x8a\x80" + MASK


@contextlib.asynccontextmanager
async def attacked(workers: int = 1, **options: Any) -> AsyncIterator[tuple[Cluster, Crowd]]:
    """A cluster with its healthy clients; after the attack its workers are those that it had before."""
    options.setdefault("ws_ping_interval", 0)  # a client without a library answers no ping
    async with Cluster(SERVED, workers=workers, **options) as cluster, crowd(cluster) as them:
        pids = cluster.worker_pids()
        yield cluster, them
        assert cluster.worker_pids() == pids
        assert not [line for line in cluster.output if "Traceback" in line]


@contextlib.asynccontextmanager
async def attackers(cluster: Cluster, count: int, *headers: str, path: str = "/") -> AsyncIterator[list[Raw]]:
    """``count`` clients without a library whose connections are open."""
    sources = (f"127.3.{number // 250}.{number % 250 + 1}" for number in range(count))
    raws = [await Raw.connect(cluster.port, source, handshake(path, *headers)) for source in sources]
    try:
        for raw in raws:
            assert " 101 " in await raw.head()
        yield raws
    finally:
        await asyncio.gather(*(raw.close() for raw in raws))


@contextlib.asynccontextmanager
async def watched(*pids: int) -> AsyncIterator[Usage]:
    usage = Usage(*pids)
    watching = asyncio.create_task(usage.watch())
    try:
        yield usage
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def close_of(raw: Raw) -> tuple[int, str]:
    """Return code and reason of the close frame with which a connection ends."""
    data = await raw.rest()
    while data[0] != CLOSE[0]:
        assert data[1] < 126
        data = data[2 + data[1] :]
    return struct.unpack("!H", data[2:4])[0], data[4:].decode()


# Opening handshakes that are never whole

HALF_OPEN = 5000
OPEN_SECONDS = 3.0


class HalfOpen:
    """Clients that connect and say nothing, half a head, or a byte now and then; without a transport for each."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._poll = select.epoll()
        self._socks: dict[int, socket.socket] = {}
        self.ends: Counter[bytes] = Counter()

    async def attack(self, count: int) -> None:
        """Connect ``count`` clients, and drip bytes until the last one was let go."""
        head = handshake("/", "X: " + "x" * 100)
        drips, fresh = [], []
        for number in range(count):
            sock = socket.socket()
            sock.setblocking(False)
            sock.bind((f"127.4.{number // 250}.{number % 250 + 1}", 0))
            assert sock.connect_ex(("127.0.0.1", self._port)) in (0, errno.EINPROGRESS)
            self._socks[sock.fileno()] = sock
            self._poll.register(sock, select.EPOLLIN | select.EPOLLRDHUP)
            fresh.append(sock)
            if len(fresh) == 20 or number == count - 1:
                await asyncio.sleep(0.002)
                for at, each in enumerate(fresh):
                    if at % 3:  # the others are silent
                        each.send(head[: -2 if at % 3 == 1 else 1])
                drips += fresh[2::3]
                fresh.clear()
        at = 1
        while self._socks:
            for drip in drips:
                with contextlib.suppress(OSError):
                    drip.send(head[at : at + 1])
            at += 1
            for _ in range(10):  # a byte in half a second
                self._take_ends()
                await asyncio.sleep(0.05)

    def _take_ends(self) -> None:
        for fd, _ in self._poll.poll(0):
            try:
                data = self._socks[fd].recv(4096)
            except ConnectionResetError:
                data = b""
            if data:
                self.ends[data.partition(b"\r\n")[0]] += 1
                continue
            self._poll.unregister(fd)
            self._socks.pop(fd).close()

    def close(self) -> None:
        for sock in self._socks.values():
            sock.close()
        self._poll.close()


def test_5000_half_open_handshakes_are_gone_within_their_deadline_and_cost_little() -> None:
    async def main() -> None:
        async with attacked(2, ws_open_timeout=OPEN_SECONDS, ws_close_timeout=1) as (cluster, them):
            pids = (cluster.pid, *cluster.worker_pids().values())
            loop = asyncio.get_running_loop()
            async with watched(*pids) as usage:
                primary = Usage(cluster.pid)

                async def attack() -> AsyncGenerator[None, None]:
                    yield
                    began = loop.time()
                    with contextlib.closing(HalfOpen(cluster.port)) as half:
                        await half.attack(HALF_OPEN)
                    # They came for a second or two, and each had its seconds.
                    assert loop.time() - began < OPEN_SECONDS * 2 + 6
                    # Who has begun a request is told; who was silent is only closed.
                    # A worker that gets too little of a busy machine sheds some with 503 before it adopts them.
                    late, shed = (
                        half.ends[b"HTTP/1.1 408 Request Timeout"],
                        half.ends[b"HTTP/1.1 503 Service Unavailable"],
                    )
                    assert late + shed == half.ends.total()
                    assert HALF_OPEN // 20 * 13 - shed <= late <= HALF_OPEN // 20 * 13
                    assert shed <= HALF_OPEN // 5

                await bearable(them, attack)
                cores = primary.cores()
            print(f"RSS of primary and workers + {usage.growth() / MIB:.1f} MiB, primary {cores:.1%} of a core")
            assert usage.growth() <= 50 * MIB
            assert cores < 0.1
            await cluster.wait_status(lambda status: status["totals"]["connections"] == len(them.clients))

    run(main(), 120)


BAD_HEADS = {
    "a head that never ends": (handshake()[:-2] + b"X: x\r\n" * 1000, "431"),
    "a line that never ends": (b"GET /" + b"\x1b" * 100_000, "414"),
    "too many headers": (handshake("/", *("X: x" for _ in range(200))), "431"),
    "a header too large": (handshake("/", "X: " + "x" * 10_000), "431"),
    "bare line feeds": (handshake().replace(b"\r\n", b"\n") + b"\r\n\r\n", "400"),
    "a bare line feed in a header": (handshake("/", "X: a\nY: b"), "400"),
    "a bare carriage return": (handshake("/", "X: a\rY: b"), "400"),
    "NUL in the path": (handshake("/a\x00b"), "400"),
    "NUL in a header": (handshake("/", "X: a\x00b"), "400"),
    "ESC in the path": (handshake("/\x1b[31mred"), "400"),
    "ESC in a header": (handshake("/", "X: \x1b[31mred"), "400"),
    "a folded header": (handshake("/", "X: a\r\n b"), "400"),
    "a header without colon": (handshake("/", "Xa"), "400"),
    "a space before the colon": (handshake("/", "X : a"), "400"),
    "two Hosts": (handshake("/", "Host: example.com"), "400"),
    "no Host": (handshake().replace(b"Host: 127.0.0.1\r\n", b""), "400"),
    "a fragment in the path": (handshake("/#a"), "400"),
    "a space in the path": (handshake("/a b"), "400"),
    "chunks": (handshake("/", "Transfer-Encoding: chunked"), "400"),
    "two lengths": (handshake("/", "Content-Length: 0", "Content-Length: 5"), "400"),
    "two keys": (handshake("/", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="), "400"),
    "half a head": (handshake("/\x1b[31mred")[:-2], "408"),
}


@pytest.mark.parametrize("level", ["info", "debug"])
def test_ambiguous_and_oversized_heads_are_refused_and_never_raw_in_the_log(level: str) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1, ws_open_timeout=2, ws_close_timeout=1, log_level=level) as cluster:

            async def ask(data: bytes) -> str:
                raw = await Raw.connect(cluster.port, data=data)
                try:
                    head = await raw.head()
                    assert head.removesuffix("\r\n\r\n").replace("\r\n", "").isprintable()
                    await raw.rest()
                    return head[9:12]
                finally:
                    await raw.close()

            answers = await asyncio.gather(*(ask(data) for data, _ in BAD_HEADS.values()))
            got = dict(zip(BAD_HEADS, answers, strict=True))
            assert got == {name: code for name, (_, code) in BAD_HEADS.items()}
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
            assert [line for line in cluster.output if not line.isprintable()] == []

    run(main())


# Frames that cost


def test_100_clients_with_4001_unfinished_fragments_cost_little_and_end_at_their_deadline() -> None:
    """Bar of what others do: 82 MB pinned and the loop stalled for 1.2 s."""
    part = b"\x01\x81" + MASK + b"x" + (b"\x00\x81" + MASK + b"x") * 4000

    async def main() -> None:
        async with attacked(ws_message_timeout=1.5) as (cluster, them):
            (worker,) = cluster.worker_pids().values()
            async with watched(worker) as usage:

                async def attack() -> AsyncGenerator[None, None]:
                    async with attackers(cluster, 100) as raws:
                        yield
                        for raw in raws:
                            raw.writer.write(part)
                        ends = await asyncio.gather(*(close_of(raw) for raw in raws))
                    assert set(ends) == {(1008, "message not finished in time")}

                await bearable(them, attack)
            print(f"RSS + {usage.growth() / MIB:.1f} MiB")
            assert usage.growth() <= 20 * MIB

    run(main())


def compressed(size: int) -> bytes:
    """Return a frame of ``size`` zero bytes, compressed a thousand times."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -12)
    body = (deflate.compress(bytes(size)) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]
    return b"\xc2\xff" + struct.pack("!Q", len(body)) + MASK + body


def test_200_bombs_at_once_are_refused_with_1009_and_delay_nobody() -> None:
    bomb = compressed(64 * MIB)

    async def main() -> None:
        async with attacked() as (cluster, them):
            (worker,) = cluster.worker_pids().values()
            async with watched(worker) as usage:

                async def attack() -> AsyncGenerator[None, None]:
                    async with attackers(cluster, 200, DEFLATE) as raws:
                        yield
                        for raw in raws:
                            raw.writer.write(bomb)
                        ends = await asyncio.gather(*(close_of(raw) for raw in raws))
                    assert {code for code, _ in ends} == {1009}

                await bearable(them, attack)
            print(f"RSS + {usage.growth() / MIB:.1f} MiB")
            assert usage.growth() <= 100 * MIB

    run(main())


@pytest.mark.parametrize(("size", "on_wire"), [(230_000, 256), (90_000, 128)])
def test_small_frames_that_inflate_a_thousand_times_and_are_good_messages_delay_nobody(size: int, on_wire: int) -> None:
    good = compressed(size)

    async def main() -> None:
        assert len(good) <= on_wire
        async with attacked() as (cluster, them):

            async def attack() -> AsyncGenerator[None, None]:
                async with attackers(cluster, 200, DEFLATE, path="/drop") as raws:
                    yield
                    for _ in range(5):
                        for raw in raws:
                            raw.writer.write(good)
                        await asyncio.sleep(0.3)

            await bearable(them, attack)

    run(main())


FLOODS = {
    "pings": (PING * 20_000, 5 * 20_000 * 2),
    "pongs": (PONG * 20_000, 0),
    "closes": (CLOSE * 20_000, 0),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_100000_control_frames_make_no_task_and_keep_no_memory(kind: str) -> None:
    flood, answered = FLOODS[kind]

    async def main() -> None:
        async with attacked() as (cluster, them), attackers(cluster, 1, path="/tasks") as (asker,):
            (worker,) = cluster.worker_pids().values()

            async def tasks() -> int:
                asker.writer.write(frame("?"))
                return int(await asker.message())

            before = await tasks()
            counts: set[int] = set()
            async with watched(worker) as usage:

                async def attack() -> AsyncGenerator[None, None]:
                    async with attackers(cluster, 5) as raws:
                        yield

                        async def one(raw: Raw) -> int:
                            raw.writer.write(flood + CLOSE)
                            return len(await raw.rest()) - len(b"\x88\x02\x03\xe8")

                        flooding = [asyncio.create_task(one(raw)) for raw in raws]
                        while not all(each.done() for each in flooding):
                            counts.add(await tasks())
                        assert sum(each.result() for each in flooding) == answered

                await bearable(them, attack)
            # One for the handler of each that floods: none for a frame.
            assert max(counts) <= before + 5
            assert await tasks() <= before + 5
            print(f"tasks {before} to {max(counts)}, RSS + {usage.growth() / MIB:.1f} MiB")
            assert usage.growth() <= 20 * MIB

    run(main())


def test_a_frame_that_comes_byte_by_byte_ends_with_the_keepalive() -> None:
    """A pong cannot come within a frame (RFC 6455, 5.4), so a frame has the time of a keepalive to be whole."""

    async def main() -> None:
        async with attacked(ws_ping_interval=1, ws_ping_timeout=1) as (cluster, _):
            loop = asyncio.get_running_loop()

            async def drip(raw: Raw) -> float:
                began = loop.time()
                raw.writer.write(b"\x82\xff" + struct.pack("!Q", MIB) + MASK)
                ended = asyncio.create_task(close_of(raw))
                while not ended.done():
                    raw.writer.write(b"x")
                    await asyncio.wait([ended], timeout=0.05)
                assert await ended == (1011, "keepalive ping timeout")
                return loop.time() - began

            async with attackers(cluster, 50) as raws:
                assert 0.9 < max(await asyncio.gather(*(drip(raw) for raw in raws))) < 10

    run(main())


# Clients that do not read

RATE = MIB
BROADCAST_SECONDS = 8.0
"""Some 4 MiB for each client wait in the kernel before anything waits in the worker."""
MESSAGE = "x" * 16384


class Member:
    """A healthy member of the room: counts what it hears."""

    def __init__(self, raw: Raw) -> None:
        self.heard = 0
        self.raw = raw
        self._wanted = b"\x81\x7e" + struct.pack("!H", len(MESSAGE)) + MESSAGE.encode()

    async def hear(self, count: int) -> None:
        for _ in range(count):
            assert await self.raw.reader.readexactly(len(self._wanted)) == self._wanted
            self.heard += 1


def test_100_members_that_do_not_read_a_megabyte_a_second_cost_a_bounded_memory() -> None:
    """Bar of `websockets.broadcast`: 890 MB for 20 of them after 50 s, and none was closed."""
    count = int(RATE * BROADCAST_SECONDS / len(MESSAGE))

    async def main() -> None:
        async with attacked() as (cluster, them), attackers(cluster, 11, path="/room") as (speaker, *members):
            (worker,) = cluster.worker_pids().values()
            for raw in (speaker, *members):
                assert await raw.message() == "joined"
            message = b"\x81\xfe" + struct.pack("!H", len(MESSAGE)) + MASK + MESSAGE.encode()

            async def speak() -> None:
                loop = asyncio.get_running_loop()
                began = loop.time()
                for number in range(count):
                    speaker.writer.write(message)
                    await asyncio.sleep(began + number * len(MESSAGE) / RATE - loop.time())

            healthy = [Member(raw) for raw in (speaker, *members)]
            async with watched(worker) as usage:

                async def attack() -> AsyncGenerator[None, None]:
                    async with deaf(cluster.port, 100, "/room", b"joined"):
                        yield
                        await asyncio.gather(speak(), *(each.hear(count) for each in healthy))

                await bearable(them, attack)
            status = await cluster.status()
            print(f"RSS + {usage.growth() / MIB:.1f} MiB, {status['totals']['slow_closed']} closed")
            assert usage.growth() <= 150 * MIB
            assert status["totals"]["slow_closed"] % 100 == 0
            assert status["totals"]["slow_closed"] >= 100
            assert {each.heard % count for each in healthy} == {0}

    run(main(), 120)


@contextlib.asynccontextmanager
async def deaf(port: int, count: int, path: str, until: bytes) -> AsyncIterator[None]:
    """``count`` clients that read up to ``until`` and then no more."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", port))
            await loop.sock_sendall(sock, handshake(path))
            data = b""
            while until not in data:
                data += await loop.sock_recv(sock, 4096)
        yield


def test_readers_that_are_too_slow_for_what_their_handler_sends_stall_nobody() -> None:
    """`ws.send` waits for them: what is held for each is one message and what the kernel takes."""

    async def main() -> None:
        async with attacked() as (cluster, them):
            (worker,) = cluster.worker_pids().values()
            async with watched(worker) as usage:

                async def attack() -> AsyncGenerator[None, None]:
                    yield
                    async with deaf(cluster.port, 50, "/big", b"\r\n\r\n"):
                        await asyncio.sleep(2)

                await bearable(them, attack)
            print(f"RSS + {usage.growth() / MIB:.1f} MiB")
            assert usage.growth() <= 100 * MIB

    run(main())


# Whose answer it is

IDENTITIES = 10_000
AT_ONCE = 250


def test_10000_connections_get_their_own_answers() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=3, sticky="none", balance="round-robin") as cluster:
            left = iter(range(IDENTITIES))
            served = 0

            async def client() -> None:
                nonlocal served
                for number in left:
                    path = f"/who/{number}"
                    data = handshake(path) + frame(f"{number} a")
                    raw = await Raw.connect(cluster.port, f"127.5.{number % 250}.1", data)
                    assert " 101 " in await raw.head()
                    assert await raw.message() == f"{path} '{number} a'"
                    raw.writer.write(frame(f"{number} b") + frame(f"{number} c"))
                    assert [await raw.message() for _ in "bc"] == [f"{path} '{number} {x}'" for x in "bc"]
                    raw.writer.write(CLOSE)
                    await raw.close()
                    served += 1

            await asyncio.gather(*(client() for _ in range(AT_ONCE)))
            assert served == IDENTITIES
            status = await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
            assert status["totals"]["adopted"] == IDENTITIES
            assert [worker["messages_in"] >= 9_000 for worker in status["workers"]] == [True] * 3

    run(main(), 120)


# The measure itself


def test_a_worker_whose_loop_is_held_up_is_seen_by_the_healthy_clients() -> None:
    async def main() -> None:
        async with attacked() as (cluster, them):

            async def attack() -> AsyncGenerator[None, None]:
                async with attackers(cluster, 1, path="/stall") as (raw,):
                    yield
                    for _ in range(3):
                        raw.writer.write(frame("0.3"))
                        await asyncio.sleep(0.4)

            with pytest.raises(AssertionError, match="the healthy clients feel it"):
                await bearable(them, attack, tries=1)

    run(main())
