"""PROXY headers in front of real clusters: who is believed, what is taken off the stream, and what the others get."""

import asyncio
import contextlib
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme

from tests.certificate_support import write_server
from tests.cluster.raw import Raw, ask, frame, handshake, slots_of
from tests.support import open_fds, run
from wscluster.gateway.peek import MAX_PEEKING
from wscluster.gateway.proxyproto import V2_SIGNATURE
from wscluster.testing import Cluster

WHO = "tests.cluster.handlers:who"
LINE = b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 443\r\n"
TLV = b"\x04\x01\x00" + b"\xff" * 256


def block(command: int = 0x21, family: int = 0x11, body: bytes | None = None) -> bytes:
    """Return a header of version 2; without a ``body``, for the client 192.0.2.7, port 40000."""
    if body is None:
        body = bytes((192, 0, 2, 7, 10, 0, 0, 1)) + struct.pack("!HH", 40000, 443)
    return V2_SIGNATURE + bytes((command, family)) + struct.pack("!H", len(body)) + body


BLOCK = block()


def proxied(**options: Any) -> Cluster:
    return Cluster(WHO, workers=options.pop("workers", 1), **options)


@contextlib.asynccontextmanager
async def served(cluster: Cluster, data: bytes, source: str = "127.0.0.1") -> AsyncIterator[dict[str, Any]]:
    """Connect, send ``data`` at once; yields what the handler says first, after it has echoed a message."""
    raw = await Raw.connect(cluster.port, source, data)
    try:
        assert " 101 " in await raw.head()
        told: dict[str, Any] = json.loads(await raw.message())
        raw.writer.write(frame("echo"))
        assert await raw.message() == "echo"
        yield told | {"own": raw.port}
    finally:
        await raw.close()


async def is_reset(cluster: Cluster, data: bytes, source: str = "127.0.0.1") -> bool:
    """Say whether the connection is ended without a byte of an answer."""
    return await ask(cluster.port, data, source) == ("", b"")


# The true client


@pytest.mark.parametrize(
    ("mode", "header", "client"),
    [
        ("v1", LINE, ["192.0.2.7", 40000]),
        ("auto", LINE, ["192.0.2.7", 40000]),
        ("v2", BLOCK, ["192.0.2.7", 40000]),
        ("auto", BLOCK, ["192.0.2.7", 40000]),
    ],
)
def test_a_handler_sees_the_true_client(mode: str, header: bytes, client: list[object]) -> None:
    async def main() -> None:
        async with proxied(proxy_protocol=mode) as cluster, served(cluster, header + handshake("/x")) as told:
            assert told["client"] == client
            assert told["path"] == "/x"

    run(main())


def test_every_family_of_address_and_none() -> None:
    v6 = bytes.fromhex("20010db8000000000000000000000007" * 2) + struct.pack("!HH", 40000, 443)
    mapped = bytes(10) + b"\xff\xff" + bytes((192, 0, 2, 7)) + v6[16:]
    own = ["127.1.0.9", "own"]
    cases = {
        b"PROXY TCP6 2001:DB8::7 ::1 40000 443\r\n": ["2001:db8::7", 40000],
        b"PROXY UNKNOWN\r\n": own,
        block(family=0x21, body=v6): ["2001:db8::7", 40000],
        block(family=0x21, body=mapped): ["::ffff:192.0.2.7", 40000],
        block(family=0x31, body=bytes(216)): None,
        block(family=0x12): own,
        block(0x20, 0, b""): own,
        block(0x20): own,
        block(body=BLOCK[16:] + TLV): ["192.0.2.7", 40000],
        block(body=BLOCK[16:] + b"\xff" * (65535 - 12)): ["192.0.2.7", 40000],
    }

    async def main() -> None:
        async with proxied(proxy_protocol="auto") as cluster:
            for header, client in cases.items():
                async with served(cluster, header + handshake(), "127.1.0.9") as told:
                    expected = [client[0], told["own"]] if client == own else client
                    assert told["client"] == expected, header[:60]

    run(main())


def test_a_client_keeps_its_worker_whatever_balancer_it_comes_through() -> None:
    async def main() -> None:
        async with proxied(proxy_protocol="v1", workers=3) as cluster:
            seen = set()
            for number in range(1, 13):
                host = f"192.0.2.{number}"
                for source in ("127.1.0.1", "127.1.0.2"):
                    line = f"PROXY TCP4 {host} 10.0.0.1 40000 443\r\n".encode()
                    async with served(cluster, line + handshake(), source) as told:
                        assert told["slot"] == slots_of(host, 3)[0]
                        seen.add(told["slot"])
            assert len(seen) > 1

    run(main())


def test_a_client_of_another_family_than_its_balancer() -> None:
    async def main() -> None:
        async with proxied(proxy_protocol="v2", host="::1") as cluster:
            for header, client in ((BLOCK, ["192.0.2.7", 40000]), (block(family=0x31, body=bytes(216)), None)):
                raw = Raw(*await asyncio.open_connection("::1", cluster.port))
                raw.writer.write(header + handshake())
                assert " 101 " in await raw.head()
                assert json.loads(await raw.message())["client"] == client
                await raw.close()

    run(main())


def test_a_balancer_on_a_unix_socket_is_believed(tmp_path: Path) -> None:
    async def main() -> None:
        async with proxied(proxy_protocol="v2", uds=tmp_path / "in.sock", proxy_allow_from="10.0.0.0/8") as cluster:
            await cluster.wait_event("ready")
            for header, client in ((BLOCK, ["192.0.2.7", 40000]), (block(0x20, 0, b""), None)):
                for cut in (len(header), 5):
                    raw = Raw(*await asyncio.open_unix_connection(tmp_path / "in.sock"))
                    raw.writer.write(header[:cut])
                    await raw.writer.drain()
                    await asyncio.sleep(0.05)
                    raw.writer.write(header[cut:] + handshake() + frame("echo"))
                    assert " 101 " in await raw.head()
                    assert json.loads(await raw.message())["client"] == client
                    assert await raw.message() == "echo"
                    await raw.close()

    run(main())


# Exactly the header, however it comes


@pytest.mark.parametrize("header", [LINE, BLOCK, block(body=BLOCK[16:] + TLV[:40])], ids=["v1", "v2", "TLV"])
def test_a_header_may_come_byte_by_byte(header: bytes) -> None:
    async def main() -> None:
        async with proxied(proxy_protocol="auto") as cluster:
            raw = await Raw.connect(cluster.port)
            for byte in header + handshake("/slowly")[:3]:
                raw.writer.write(bytes((byte,)))
                await raw.writer.drain()
                await asyncio.sleep(0.001)  # so that each is a segment of its own
            raw.writer.write(handshake("/slowly")[3:])
            assert " 101 " in await raw.head()
            told = json.loads(await raw.message())
            assert (told["client"], told["path"]) == (["192.0.2.7", 40000], "/slowly")
            await raw.close()

    run(main())


@pytest.mark.parametrize("header", [LINE, BLOCK, block(body=BLOCK[16:] + TLV)], ids=["v1", "v2", "TLV"])
def test_what_follows_a_header_is_the_workers_at_every_cut(header: bytes) -> None:
    stream = header + handshake("/cut") + frame("early")

    async def one(cluster: Cluster, cut: int) -> None:
        raw = await Raw.connect(cluster.port, data=stream[:cut])
        await asyncio.sleep(0.05)
        raw.writer.write(stream[cut:])
        assert " 101 " in await raw.head(), cut
        told = json.loads(await raw.message())
        assert (told["client"], told["path"]) == (["192.0.2.7", 40000], "/cut")
        assert await raw.message() == "early"
        await raw.close()

    async def main() -> None:
        async with proxied(proxy_protocol="auto") as cluster:
            cuts = [*range(1, 60), len(header) - 1, len(header), len(header) + 1]
            await asyncio.gather(*(one(cluster, cut) for cut in cuts))
            status = await cluster.status()
            assert status["totals"]["rejected"] == 0

    run(main())


def test_a_health_check_that_ends_at_once_is_no_fault() -> None:
    async def main() -> None:
        async with proxied(proxy_protocol="v2") as cluster:
            for _ in range(5):
                raw = await Raw.connect(cluster.port, data=block(0x20, 0, b""))
                await raw.writer.drain()
                raw.reset()
            await cluster.wait_status(lambda status: status["totals"]["accepted"] == 5)
            async with served(cluster, BLOCK + handshake()) as told:
                assert told["client"] == ["192.0.2.7", 40000]
            assert not [line for line in cluster.output if "WARNING" in line or "ERROR" in line]

    run(main())


def test_tls_begins_behind_the_header(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate, key = write_server(tmp_path, authority)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)

    async def main() -> None:
        async with proxied(proxy_protocol="v2", ssl_certfile=certificate, ssl_keyfile=key) as cluster:
            sock = socket.create_connection(("127.0.0.1", cluster.port))
            sock.sendall(BLOCK)
            raw = Raw(*await asyncio.open_connection(sock=sock, ssl=trust, server_hostname="localhost"))
            raw.writer.write(handshake())
            assert " 101 " in await raw.head()
            assert json.loads(await raw.message())["client"] == ["192.0.2.7", 40000]
            await raw.close()

    run(main())


# Who is refused


BAD = {
    "none": handshake(),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "lying": LINE.replace(b"192.0.2.7", b"192.0.2.700"),
    "too long": b"PROXY UNKNOWN " + b"x" * 200,
    "too short for its addresses": block(body=b"1234"),
    "an unknown command": block(command=0x2F),
    "an unknown version": block(command=0x31),
}


@pytest.mark.parametrize("mode", ["v1", "v2"])
def test_what_has_not_the_header_that_is_demanded_is_reset_and_counted(mode: str) -> None:
    async def main() -> None:
        async with proxied(proxy_protocol=mode) as cluster:
            streams = [*BAD.values(), BLOCK if mode == "v1" else LINE]
            for stream in streams:
                assert await is_reset(cluster, stream)
            status = await cluster.wait_status(lambda status: status["totals"]["rejected"] == len(streams))
            assert status["totals"]["adopted"] == 0
            said = [line for line in cluster.output if "refused by --proxy-protocol" in line]
            assert len(said) == 1
            assert "no PROXY header" in said[0]

    run(main())


@pytest.mark.parametrize(("mode", "header"), [("v1", LINE), ("v2", BLOCK)])
def test_a_header_that_is_cut_ends_with_its_connection(mode: str, header: bytes) -> None:
    async def main() -> None:
        async with proxied(proxy_protocol=mode) as cluster:
            for size in (0, 1, len(header) // 2, len(header) - 1):
                for late in (False, True):
                    raw = await Raw.connect(cluster.port, data=b"" if late else header[:size])
                    if late:
                        await asyncio.sleep(0.02)
                        raw.writer.write(header[:size])
                    raw.writer.write_eof()
                    assert await raw.rest() == b""
                    await raw.close()
            await cluster.wait_status(lambda status: status["totals"]["rejected"] == 8)

    run(main())


def test_auto_serves_a_client_without_a_header() -> None:
    async def main() -> None:
        async with proxied(proxy_protocol="auto") as cluster:
            async with served(cluster, handshake("/plain")) as told:
                assert told["client"] == ["127.0.0.1", told["own"]]
            assert await is_reset(cluster, BAD["lying"])

    run(main())


@pytest.mark.parametrize(("mode", "header"), [("v1", LINE), ("v2", BLOCK)])
def test_a_peer_that_is_not_allowed_is_reset(mode: str, header: bytes) -> None:
    async def main() -> None:
        async with proxied(proxy_protocol=mode, proxy_allow_from="127.2.0.0/16,::1") as cluster:
            assert await is_reset(cluster, header + handshake(), "127.1.0.9")
            assert await is_reset(cluster, handshake(), "127.1.0.9")
            async with served(cluster, header + handshake(), "127.2.0.9") as told:
                assert told["client"] == ["192.0.2.7", 40000]
            assert "127.1.0.9: it is not in --proxy-allow-from" in await cluster.wait_output("refused by")

    run(main())


@pytest.mark.parametrize("header", [LINE, BLOCK], ids=["v1", "v2"])
def test_with_auto_a_peer_that_is_not_allowed_is_a_client_and_never_believed(header: bytes) -> None:
    async def main() -> None:
        async with proxied(proxy_protocol="auto", proxy_allow_from="127.2.0.1") as cluster:
            async with served(cluster, handshake(), "127.1.0.9") as told:
                assert told["client"] == ["127.1.0.9", told["own"]]
            head, _ = await ask(cluster.port, header + handshake(), "127.1.0.9")
            assert " 101 " not in head

    run(main())


def test_off_takes_a_header_for_a_bad_request() -> None:
    async def main() -> None:
        async with Cluster(WHO, workers=1) as cluster:
            head, _ = await ask(cluster.port, LINE + handshake())
            assert " 400 " in head

    run(main())


# Half headers


def test_half_headers_cost_nothing_and_end_at_their_deadline() -> None:
    async def main() -> None:
        async with proxied(proxy_protocol="v2", ws_open_timeout=4) as cluster:
            primary = psutil.Process(cluster.pid)
            await cluster.status()  # libuv opens a spare descriptor with its first stream
            before = len(open_fds(cluster.pid))
            halves = [await Raw.connect(cluster.port, data=BLOCK[: 1 + number % 27]) for number in range(200)]
            async with served(cluster, BLOCK + handshake()) as told:
                assert told["client"] == ["192.0.2.7", 40000]
                busy = sum(primary.cpu_times()[:2])
                started = asyncio.get_running_loop().time()
                await asyncio.sleep(2)
                busy = sum(primary.cpu_times()[:2]) - busy
                share = busy / (asyncio.get_running_loop().time() - started)
                print(f"200 half headers: {share:.1%} of a core")
                assert share < 0.05
                for raw in halves:
                    assert await raw.rest() == b""
                    await raw.close()
                await cluster.wait_status(lambda status: status["totals"]["rejected"] == 200)
            assert "took more than 4 s" in await cluster.wait_output("refused by")
            while len(open_fds(cluster.pid)) > before:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    run(main())


def test_a_connection_that_waited_for_its_header_costs_the_primary_nothing_afterwards() -> None:
    async def main() -> None:
        async with proxied(proxy_protocol="v2") as cluster:
            primary = psutil.Process(cluster.pid)
            raw = await Raw.connect(cluster.port, data=BLOCK[:20])
            await asyncio.sleep(0.1)
            raw.writer.write(BLOCK[20:] + handshake())
            assert " 101 " in await raw.head()
            await raw.message()
            busy = sum(primary.cpu_times()[:2])
            for number in range(500):
                raw.writer.write(frame(str(number)))
                assert await raw.message() == str(number)
            assert sum(primary.cpu_times()[:2]) - busy < 0.1
            await raw.close()

    run(main())


def test_a_flood_of_silent_peers_resets_the_oldest() -> None:
    async def main() -> None:
        async with proxied(proxy_protocol="v2", ws_open_timeout=60) as cluster:
            first = await Raw.connect(cluster.port, data=BLOCK[:20])
            others = [await Raw.connect(cluster.port) for _ in range(MAX_PEEKING)]
            assert await first.rest() == b""
            status = await cluster.wait_status(lambda status: status["totals"]["rejected"] >= 1)
            assert status["totals"]["rejected"] == 1
            async with served(cluster, BLOCK + handshake()) as told:
                assert told["client"] == ["192.0.2.7", 40000]
            others[-1].writer.write(BLOCK + handshake())
            assert " 101 " in await others[-1].head()
            for raw in (first, *others):
                await raw.close()

    run(main())


def test_a_stop_does_not_wait_for_headers() -> None:
    async def main() -> None:
        async with proxied(proxy_protocol="v1", ws_open_timeout=60) as cluster:
            raw = await Raw.connect(cluster.port, data=LINE[:10])
            async with served(cluster, LINE + handshake()):
                pass
            assert await cluster.stop() == 0
            assert await raw.rest() == b""
            await raw.close()

    run(main())
