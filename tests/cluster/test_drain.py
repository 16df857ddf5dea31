"""What a drain does with connections: unread ones go to the successor, the others are closed at a rate."""

import asyncio
import contextlib
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import trustme

from benchmarks.load import CLOSE, masked_frame
from tests.certificate_support import write_server
from tests.cluster.process_support import close_code, connect_to_slot, in_folder, printed
from tests.cluster.raw import Raw
from tests.cluster.test_reload import APP, HANDLER, PROGRAM, save
from tests.cluster.test_reload_verb import outcome
from tests.support import run
from wscluster.testing import Cluster

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
SOURCES = {"handler": HANDLER, "app": APP, "program": PROGRAM}


def released(folder: Path, kind: str, **options: Any) -> Cluster:
    save(folder / "app.py", SOURCES[kind].format(word="first"))
    settings: dict[str, Any] = {"workers": 1, "graceful_timeout": 5.0, **options}
    if kind == "program":
        return Cluster.run("app.py", cwd=folder, **settings)
    return Cluster("app:handler", command=in_folder(folder), **settings)


@pytest.mark.parametrize("proxy", ["off", "v1"])
@pytest.mark.parametrize("kind", SOURCES)
def test_a_connection_of_which_nothing_was_read_is_served_by_the_new_worker(
    tmp_path: Path, kind: str, proxy: str
) -> None:
    async def main() -> None:
        options = {} if proxy == "off" else {"proxy_protocol": proxy}
        async with released(tmp_path, kind, **options) as cluster, contextlib.AsyncExitStack() as stack:
            silent = []
            for number in range(40):  # more than go in one packet
                header = b"" if proxy == "off" else b"PROXY TCP4 10.0.0.%d 10.9.9.9 1 2\r\n" % number
                raw = await Raw.connect(cluster.port, f"127.1.0.{number + 1}", header)
                stack.push_async_callback(raw.close)
                silent.append(raw)
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 40)
            save(tmp_path / "app.py", SOURCES[kind].format(word="after"))
            assert (await outcome(cluster, tmp_path))["reason"] == ""
            status = await cluster.wait_status(lambda status: status["totals"]["connections"] == 40)
            assert status["totals"]["accepted"] == status["totals"]["adopted"] == 40
            assert status["totals"]["placed_again"] == 40
            for raw in silent:
                raw.writer.write(UPGRADE)
                assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
                assert b"after" in await raw.reader.readuntil(b"after")

    run(main())


@pytest.mark.parametrize("kind", ["handler", "app"])
def test_a_client_whose_tls_handshake_is_under_way_is_served(tmp_path: Path, kind: str) -> None:
    """One has not begun, one is in the middle, and one has asked for nothing yet."""
    authority = trustme.CA()
    cert, key = write_server(tmp_path, authority)
    context = ssl.create_default_context()
    authority.configure_trust(context)

    async def main() -> None:
        async with released(tmp_path, kind, ssl_certfile=str(cert), ssl_keyfile=str(key)) as cluster:
            silent = await tcp_connect(cluster.port)
            middle = await tcp_connect(cluster.port)
            tls, incoming, outgoing = tls_client(context)
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            hello = outgoing.read()
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(middle, hello)
            incoming.write(await loop.sock_recv(middle, 1 << 16))
            done = await asyncio.open_connection("127.0.0.1", cluster.port, ssl=context, server_hostname="localhost")
            await cluster.wait_status(lambda status: status["totals"]["adopted"] == 3)
            save(tmp_path / "app.py", SOURCES[kind].format(word="after"))
            assert (await outcome(cluster, tmp_path))["reason"] == ""
            await asyncio.sleep(0.7)  # a slow network
            tls.do_handshake()
            tls.write(UPGRADE)
            await loop.sock_sendall(middle, outgoing.read())
            assert b" 101 " in await read_tls(loop, middle, tls, incoming)
            middle.close()
            assert b" 101 " in await upgraded(*done)
            begun = await asyncio.open_connection(sock=silent, ssl=context, server_hostname="localhost")
            assert b" 101 " in await upgraded(*begun)

    run(main())


async def tcp_connect(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return sock


def tls_client(context: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    return context.wrap_bio(incoming, outgoing, server_hostname="localhost"), incoming, outgoing


async def read_tls(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO
) -> bytes:
    """Return the first words of the server."""
    while True:
        try:
            return tls.read(1000)
        except ssl.SSLWantReadError:
            data = await loop.sock_recv(sock, 1 << 16)
            assert data, "the server has ended the connection"
            incoming.write(data)


async def upgraded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Begin a WebSocket and end it; returns what the server has said."""
    writer.write(UPGRADE)
    said = await reader.readuntil(b"\r\n\r\n") + await reader.read(20)
    writer.write(CLOSE)
    await reader.read()
    writer.close()
    return said


@pytest.mark.parametrize("kind", SOURCES)
def test_no_connect_fails_while_one_release_follows_the_other(tmp_path: Path, kind: str) -> None:
    """Clients come all the time, half of them wait for a moment before they speak."""

    async def visit(cluster: Cluster, number: int) -> str:
        raw = await Raw.connect(cluster.port, f"127.1.{number % 200}.7", b"")
        try:
            if number % 2:
                await asyncio.sleep(0.02)
            raw.writer.write(UPGRADE)
            async with asyncio.timeout(10):
                head = await raw.reader.readuntil(b"\r\n\r\n")
            return head.split(b"\r\n")[0].decode()
        except (ConnectionError, asyncio.IncompleteReadError) as exc:
            return type(exc).__name__
        finally:
            raw.writer.transport.abort()

    async def main() -> None:
        async with released(tmp_path, kind, workers=2) as cluster:
            visits: set[asyncio.Task[str]] = set()

            async def come() -> None:
                for number in range(100_000):
                    visits.add(asyncio.create_task(visit(cluster, number)))
                    await asyncio.sleep(0.01)

            coming = asyncio.create_task(come())
            for release in range(3):
                save(tmp_path / "app.py", SOURCES[kind].format(word=f"release{release}"))
                assert (await outcome(cluster, tmp_path))["reason"] == ""
            coming.cancel()
            seen = await asyncio.gather(*visits)
            assert len(seen) > 100
            assert [one for one in seen if "101" not in one] == []

    run(main(), timeout=60)


def test_what_a_client_says_whose_handshake_ends_within_the_drain_reaches_the_handler(tmp_path: Path) -> None:
    source = "async def handler(ws):\n    async for message in ws:\n        print('heard', message)\n"

    async def main() -> None:
        save(tmp_path / "app.py", source)
        async with Cluster("app:handler", command=in_folder(tmp_path), workers=1) as cluster:
            raw = await Raw.connect(cluster.port, data=UPGRADE[:60])
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 1)
            await cluster.status()  # the worker has read what it was sent before it answers this
            assert (await outcome(cluster, tmp_path))["reason"] == ""
            raw.writer.write(UPGRADE[60:] + masked_frame(b"before I know"))
            assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
            first, length = await raw.reader.readexactly(2)
            assert first == 0x88
            assert (await raw.reader.readexactly(length))[:2] == (1012).to_bytes(2, "big")
            raw.writer.write(masked_frame(b"before I answer") + CLOSE)
            assert await raw.reader.read() == b""
            await raw.close()
            await cluster.wait_output("heard before I answer")
            assert printed(cluster) == ["heard before I know", "heard before I answer"]

    run(main())


def test_the_rate_of_a_drain_spreads_the_closes_and_the_time_bounds_it(tmp_path: Path) -> None:
    async def main(rate: int) -> list[float]:
        async with released(tmp_path, "handler", drain_rate=rate, graceful_timeout=3) as cluster:
            clients = [await connect_to_slot(cluster, 0) for _ in range(30)]
            closing = [asyncio.create_task(closed_at(ws)) for ws in clients]
            begin = time.monotonic()
            assert (await outcome(cluster, tmp_path))["reason"] == ""
            assert time.monotonic() - begin < 2.0, "the reload does not wait for the drain"
            return sorted(await asyncio.gather(*closing))

    async def closed_at(ws: Any) -> float:
        assert await close_code(ws) == 1012
        return time.monotonic()

    spread: list[float] = []
    for rate in (30, 1, 0):
        times: list[float] = []

        async def measure(rate: int = rate, times: list[float] = times) -> None:
            times += await main(rate)

        run(measure(), timeout=60)
        spread.append(times[-1] - times[0])
    thirty_a_second, bounded, all_at_once = spread
    assert 0.7 < thirty_a_second < 1.8
    assert 1.8 < bounded < 3.0, "one a second would take half a minute, and there are three seconds"
    assert all_at_once < 0.7


def test_a_drain_that_takes_a_while_says_how_far_it_is() -> None:
    async def main() -> None:
        async with Cluster("tests.cluster.obeying:obey", workers=1, drain_rate=2, graceful_timeout=20) as cluster:
            clients = [await connect_to_slot(cluster, 0) for _ in range(8)]
            closing = asyncio.gather(*map(close_code, clients))
            stopping = asyncio.create_task(cluster.stop())
            line = await cluster.wait_output("left in 1 worker")
            left = int(line.partition("draining: ")[2].partition(" ")[0])
            assert 1 <= left <= 7, line
            assert await closing == [1001] * 8
            assert await stopping == 0

    run(main())


def test_what_a_client_sends_before_it_answers_the_close_reaches_the_handler(tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    source = (
        "import os\nfd = os.open({path!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n\n"
        "async def handler(ws):\n    await ws.send(str(ws.slot))\n"
        "    async for message in ws:\n        os.write(fd, message.encode() + b'\\n')\n"
    )
    save(tmp_path / "app.py", source.format(path=str(heard)))

    async def main() -> None:
        cluster = Cluster("app:handler", command=in_folder(tmp_path), workers=1, graceful_timeout=5)
        async with cluster:
            raw = await Raw.connect(cluster.port, "127.0.0.1", UPGRADE)
            await raw.reader.readuntil(b"\r\n\r\n")
            assert await raw.reader.readexactly(3) == b"\x81\x010"
            reloading = asyncio.create_task(outcome(cluster, tmp_path))
            assert await raw.reader.readexactly(4) == b"\x88\x02\x03\xf4"
            for number in range(100):
                text = b"after the close %02d" % number
                raw.writer.write(bytes((0x81, 0x80 | len(text), 0, 0, 0, 0)) + text)
                if number % 10 == 0:
                    await asyncio.sleep(0.001)
            raw.writer.write(b"\x88\x82\0\0\0\0\x03\xf4")
            assert await raw.reader.read() == b""
            await raw.close()
            assert (await reloading)["reason"] == ""
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
        assert heard.read_text().split("\n")[:-1] == [f"after the close {number:02}" for number in range(100)]

    run(main())


KEEPS = """
async def handler(scope, receive, send):
    if scope["type"] == "http":
        await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]}})
        await send({{"type": "http.response.body", "body": b"{word}"}})
"""


def test_a_kept_connection_of_http_is_told_with_its_next_response_that_it_ends(tmp_path: Path) -> None:
    get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    save(tmp_path / "app.py", KEEPS.format(word="first"))

    async def main() -> None:
        async with Cluster(
            "app:handler", command=in_folder(tmp_path), workers=1, graceful_timeout=6, drain_rate=1
        ) as cluster:
            raws = [await Raw.connect(cluster.port, "127.0.0.1", get) for _ in range(4)]
            for raw in raws:
                assert b"connection: close" not in await raw.reader.readuntil(b"first")
            save(tmp_path / "app.py", KEEPS.format(word="after"))
            assert (await outcome(cluster, tmp_path))["reason"] == ""
            ended = 0
            for raw in raws:
                with contextlib.suppress(ConnectionError):
                    raw.writer.write(get)
                    said = await raw.reader.read()
                    assert said == b"" or (b"connection: close" in said and said.endswith(b"first"))
                    ended += bool(said)
                await raw.close()
            assert ended >= 2, "most had their turn before they were idle for long"

    run(main())
