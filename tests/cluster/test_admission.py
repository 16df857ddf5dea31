"""Limits on new connections, in real clusters: what the client over a limit gets, and who makes room again."""

import asyncio
import contextlib
import os
import signal
import ssl
from pathlib import Path

import pytest
import trustme

from tests.certificate_support import write_server
from tests.cluster.raw import CLOSE, Raw, ask, handshake
from tests.support import run
from wscluster.testing import Cluster

ECHO = "tests.cluster.handlers:echo"


async def opened(cluster: Cluster, source: str = "127.1.0.1", head: bytes = b"") -> Raw:
    """Return a connection that was upgraded."""
    raw = await Raw.connect(cluster.port, source, head + handshake())
    assert " 101 " in await raw.head()
    return raw


async def refused(cluster: Cluster, source: str = "127.1.0.1") -> str:
    """Return what somebody over a limit is told."""
    head, body = await ask(cluster.port, handshake(), source)
    assert head.startswith("HTTP/1.1 503 ")
    assert "Retry-After: 1\r\n" in head
    return body.decode()


async def reopened(cluster: Cluster, source: str = "127.1.0.1") -> Raw:
    """Connect until there is room."""
    async with asyncio.timeout(20):
        while True:
            raw = await Raw.connect(cluster.port, source, handshake())
            if " 101 " in await raw.head():
                return raw
            await raw.close()


def test_over_the_limit_a_client_gets_503_until_another_ends() -> None:
    async def main() -> None:
        async with Cluster(ECHO, workers=2, limit_connections=3) as cluster:
            open_ones = [await opened(cluster, f"127.1.0.{number}") for number in range(1, 4)]
            assert await refused(cluster, "127.1.0.9") == "Too many connections. Try again in a second."
            status = await cluster.status()
            assert (status["totals"]["accepted"], status["totals"]["rejected"]) == (4, 1)
            assert "over --limit-connections: 1" in await cluster.wait_output("turned away")
            open_ones[0].reset()
            open_ones[1].writer.write(CLOSE)
            again = [await reopened(cluster, "127.1.0.9"), await reopened(cluster, "127.1.0.8")]
            await refused(cluster, "127.1.0.7")
            for raw in (*open_ones[1:], *again):
                await raw.close()

    run(main())


def test_an_address_has_a_limit_of_its_own() -> None:
    async def main() -> None:
        async with Cluster(ECHO, workers=2, limit_connections_per_ip=2) as cluster:
            open_ones = [await opened(cluster), await opened(cluster)]
            await refused(cluster)
            open_ones.append(await opened(cluster, "127.1.0.2"))
            open_ones[0].reset()
            open_ones.append(await reopened(cluster))
            for raw in open_ones[1:]:
                await raw.close()

    run(main())


def test_the_address_is_the_true_clients() -> None:
    async def main() -> None:
        async with Cluster(ECHO, workers=1, limit_connections_per_ip=1, proxy_protocol="v1") as cluster:
            lines = [f"PROXY TCP4 192.0.2.{number} 10.0.0.1 40000 443\r\n".encode() for number in (1, 2)]
            open_ones = [await opened(cluster, head=line) for line in lines]
            head, _ = await ask(cluster.port, lines[0] + handshake(), "127.1.0.9")
            assert " 503 " in head
            for raw in open_ones:
                await raw.close()

    run(main())


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "never upgraded"])
def test_no_place_is_lost(kill: bool) -> None:
    """Connections that end in every other way make room too: with their worker, or before they began."""

    async def main() -> None:
        async with Cluster(ECHO, workers=1, limit_connections=20) as cluster:
            for turn in range(3):
                raws = [await (reopened(cluster) if kill else Raw.connect(cluster.port)) for _ in range(20)]
                if kill:
                    pid = cluster.worker_pids()[0]
                    os.kill(pid, signal.SIGKILL)
                    await cluster.wait_event("worker_exited", pid=pid)
                    await cluster.wait_event("worker_ready", count=turn + 2)
                for raw in raws:
                    raw.reset() if not kill else await raw.close()
                (await reopened(cluster)).reset()

    run(main(), timeout=120)


def test_tls_that_never_begins_makes_room_again(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate, key = write_server(tmp_path, authority)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)

    async def main() -> None:
        async with Cluster(ECHO, workers=1, limit_connections=5, ssl_certfile=certificate, ssl_keyfile=key) as cluster:
            silent = [await Raw.connect(cluster.port) for _ in range(5)]
            await cluster.wait_status(lambda status: status["totals"]["adopted"] == 5)
            # Where TLS is spoken nobody could read a 503.
            assert await ask(cluster.port, b"") == ("", b"")
            for raw in silent:
                raw.writer.write(handshake())  # no TLS
                await raw.rest()
                await raw.close()
            async with asyncio.timeout(20):
                while True:
                    with contextlib.suppress(OSError):
                        raw = Raw(*await asyncio.open_connection("127.0.0.1", cluster.port, ssl=trust))
                        break
            raw.writer.write(handshake())
            assert " 101 " in await raw.head()
            await raw.close()

    run(main())


def test_an_address_that_begins_too_many_a_second_waits() -> None:
    async def main() -> None:
        async with Cluster(ECHO, workers=1, limit_connect_rate_per_ip=2) as cluster:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            answers = await asyncio.gather(*(ask(cluster.port, b"GET / HTTP/1.1\r\n\r\n") for _ in range(30)))
            admitted = sum(" 400 " in head for head, _ in answers)
            assert 0 < admitted <= 2 + 2 * (loop.time() - begun)
            status = await cluster.wait_status(lambda status: status["totals"]["accepted"] == 30)
            assert status["totals"]["rejected"] == 30 - admitted
            open_ones = [await opened(cluster, "127.1.0.2"), await reopened(cluster)]
            for raw in open_ones:
                await raw.close()

    run(main())
