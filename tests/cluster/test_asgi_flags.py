"""What each option does to an ASGI app, and who the client is."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from websockets.exceptions import ConnectionClosedError

from tests.certificate_support import write_server
from tests.cluster.raw import Raw, ask, handshake
from tests.support import run
from wscluster.testing import Cluster

APP = "tests.cluster.asgi_apps:app"
GET = b"GET /who HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n%s\r\n"


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Cluster]:
    async with Cluster(APP, workers=1, **options) as cluster:
        yield cluster


async def get(cluster: Cluster, headers: bytes = b"", before: bytes = b"") -> tuple[str, dict[str, Any]]:
    """Return the head of the answer and what the app says."""
    head, rest = await ask(cluster.port, before + GET % headers)
    return head, json.loads(rest or "{}")


def test_headers_of_every_response_and_the_path_below_which_the_app_is_mounted() -> None:
    async def main() -> None:
        options = {"header": ["X-Frame-Options: DENY", "Server:ours"], "date_header": False, "root_path": "/api"}
        async with serving(**options) as cluster:
            head, told = await get(cluster)
            assert head.startswith("HTTP/1.1 200 OK\r\nx-frame-options: DENY\r\nserver: ours\r\ncontent-length: ")
            assert "date:" not in head.lower()
            assert (told["root_path"], told["path"], told["raw_path"]) == ("/api", "/api/who", "/api/who")
            async with cluster.connect("/told", subprotocols=["chat"]) as ws:
                told = json.loads(await ws.recv())
                assert (told["root_path"], told["path"]) == ("/api", "/api/told")
                assert ws.subprotocol == "chat"
        async with serving(server_header=False) as cluster:
            head, told = await get(cluster)
            assert "server:" not in head.lower()
            assert "date:" in head.lower()
            assert told["state"] == {"pid": cluster.worker_pids()[0]}

    run(main())


def test_the_access_log_is_that_of_uvicorn_without_control_characters() -> None:
    async def main() -> None:
        async with serving() as cluster:
            for line in (b"GET /who?a=1 HTTP/1.1", b"GET /status?404 HTTP/1.0", b"GET /%1b[31m%0a HTTP/1.1"):
                await ask(cluster.port, line + b"\r\nHost: a\r\nConnection: close\r\n\r\n", source="127.0.0.9")
            await ask(cluster.port, GET.replace(b"/who", b"/fail") % b"")
            await cluster.wait_output("failed")
        said = [line.partition(" | ")[2] for line in cluster.output if "worker 1 slot 0 phase 1 | 127.0.0.9" in line]
        assert [text.partition(" - ")[2] for text in said] == [
            '"GET /who?a=1 HTTP/1.1" 200 OK',
            '"GET /status?404 HTTP/1.0" 404 Not Found',
            '"GET /%1B%5B31m%0A HTTP/1.1" 200 OK',
        ]
        assert sum("Exception in ASGI application" in line for line in cluster.output) == 1
        assert any(line.endswith(r"LookupError: failed\x1b[31m") for line in cluster.output)
        # uvicorn's steps are of use to nobody who sees the primary's.
        assert not [line for line in cluster.output if "server process" in line or "application startup" in line]
        for options in ({"access_log": False}, {"log_level": "warning"}):
            async with serving(**options) as cluster:
                await get(cluster)
            assert not [line for line in cluster.output if "GET" in line]

    run(main())


def test_an_idle_connection_ends_and_too_many_requests_at_once_get_503() -> None:
    async def main() -> None:
        async with serving(timeout_keep_alive=0.2, limit_concurrency=2) as cluster:
            raw = await Raw.connect(cluster.port, data=b"GET /status?204 HTTP/1.1\r\nHost: a\r\n\r\n")
            assert " 204 " in await raw.head()
            assert await raw.rest() == b""
            await raw.close()
            slow = await Raw.connect(cluster.port, data=b"GET /slow?3600 HTTP/1.1\r\nHost: a\r\n\r\n")
            await cluster.wait_output("slow begins")
            assert (await get_head(cluster)).startswith("HTTP/1.1 503 Service Unavailable\r\n")
            slow.reset()
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)

    run(main())


async def get_head(cluster: Cluster) -> str:
    return (await ask(cluster.port, GET % b""))[0]


def test_the_size_of_a_message_and_compression() -> None:
    async def main() -> None:
        options = {"ws_max_size": 1000, "ws_per_message_deflate": False}
        async with serving(**options) as cluster, cluster.connect("/echo") as ws:
            assert ws.response is not None
            assert "Sec-WebSocket-Extensions" not in ws.response.headers
            await ws.send("x" * 1000)
            assert len(await ws.recv()) == 1000
            await ws.send("x" * 1001)
            with pytest.raises(ConnectionClosedError) as caught:
                await ws.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1009
        async with serving() as cluster, cluster.connect("/echo", max_size=None) as ws:
            assert ws.response is not None
            assert "permessage-deflate" in ws.response.headers["Sec-WebSocket-Extensions"]
            await ws.send("x" * 2_000_000)
            assert len(await ws.recv()) == 2_000_000

    run(main())


def test_keepalive_pings_are_sent_and_demanded_and_0_sends_none() -> None:
    async def main() -> None:
        async with serving(ws_ping_interval=0.1, ws_ping_timeout=0.1) as cluster:
            raw = await Raw.connect(cluster.port, data=handshake("/echo"))
            await raw.head()
            frames = await raw.rest()
            assert frames[:2] == b"\x89\x04"
            assert frames[6:].startswith(b"\x88\x18\x03\xf3keepalive")
            await raw.close()
        async with serving(ws_ping_interval=0) as cluster:
            raw = await Raw.connect(cluster.port, data=handshake("/echo"))
            await raw.head()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(raw.reader.read(1), 0.5)
            await raw.close()

    run(main())


# Who the client is


@pytest.mark.parametrize(
    ("options", "client", "scheme"),
    [
        ({}, ["192.0.2.7", 0], "https"),
        ({"proxy_headers": False}, None, "http"),
        ({"forwarded_allow_ips": ["10.0.0.0/8"]}, None, "http"),
        ({"forwarded_allow_ips": ["127.0.0.0/8"]}, ["192.0.2.7", 0], "https"),
        ({"forwarded_allow_ips": "*"}, ["203.0.113.1", 0], "https"),
    ],
)
def test_the_client_is_whom_a_believed_proxy_names(options: dict[str, Any], client: Any, scheme: str) -> None:
    async def main() -> None:
        async with serving(**options) as cluster:
            headers = b"X-Forwarded-For: 203.0.113.1, 192.0.2.7\r\nX-Forwarded-Proto: https\r\n"
            _, told = await get(cluster, headers)
            if client is None:
                assert told["client"][0] == "127.0.0.1"
                assert told["client"][1] > 0
            else:
                assert told["client"] == client
            assert told["scheme"] == scheme

    run(main())


def test_the_client_is_whom_a_balancer_names_in_the_proxy_protocol() -> None:
    async def main() -> None:
        async with serving(proxy_protocol="v1") as cluster:
            for header, client in (
                (b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 443\r\n", ["192.0.2.7", 40000]),
                (b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 443\r\n", ["2001:db8::7", 40000]),
            ):
                _, told = await get(cluster, before=header)
                assert told["client"] == client
                assert told["server"] == ["127.0.0.1", cluster.port]
                raw = await Raw.connect(cluster.port, data=header + handshake("/who"))
                assert " 101 " in await raw.head()
                assert json.loads(await raw.message())["client"] == client
                await raw.close()
            await cluster.wait_output('2001:db8::7:40000 - "GET /who')

    run(main())


def test_a_unix_socket_has_no_client(tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "app.sock")
        async with Cluster(APP, workers=1, uds=path, sticky="none") as cluster:
            async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=path)) as client:
                told = (await client.get("http://localhost/who")).json()
            assert told["client"] is None
            assert told["server"] == [path, None]
            async with cluster.connect("/who") as ws:
                assert json.loads(await ws.recv())["client"] is None

    run(main())


def test_tls_ends_in_the_worker(tmp_path: Path) -> None:
    async def main() -> None:
        authority = trustme.CA()
        certificate, key = write_server(tmp_path, authority)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(context)
        async with serving(ssl_certfile=str(certificate), ssl_keyfile=str(key), graceful_timeout=20) as cluster:
            async with httpx.AsyncClient(verify=context) as client:
                told = (await client.get(f"https://127.0.0.1:{cluster.port}/who")).json()
                assert told["scheme"] == "https"
                assert told["client"][0] == "127.0.0.1"
            async with cluster.connect("/echo", ssl=context) as ws:
                await ws.send("hello")
                assert await ws.recv() == "hello"
            # A client in its TLS handshake holds up nothing.
            silent = await Raw.connect(cluster.port)
            await cluster.wait_status(lambda status: status["totals"]["adopted"] == 3)
            async with asyncio.timeout(10):
                assert await cluster.stop() == 0
            await silent.close()

    run(main())


def test_open_connections_are_limited_and_their_ends_are_told() -> None:
    async def main() -> None:
        async with serving(limit_connections=2) as cluster:
            first = await Raw.connect(cluster.port, data=b"GET /status?204 HTTP/1.1\r\nHost: a\r\n\r\n")
            assert " 204 " in await first.head()
            async with cluster.connect("/echo"):
                assert " 503 " in await get_head(cluster)
                await first.close()
                async with asyncio.timeout(20):
                    while " 200 " not in await get_head(cluster):  # noqa: ASYNC110
                        await asyncio.sleep(0.02)

    run(main())


WAITS = """
import asyncio

go = asyncio.Event()

async def app(scope, receive, send):
    assert scope["type"] != "lifespan"
    if scope["type"] == "http":
        go.set()
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})
        return
    await receive()
    await send({"type": "websocket.accept"})
    await go.wait()
    count = 0
    while (event := await receive())["type"] == "websocket.receive":
        assert event["text"].startswith(f"{count} "), event["text"][:20]
        count += 1
        await send({"type": "websocket.send", "text": str(count)})
"""


@pytest.mark.parametrize("queue", [8, 4000])
def test_so_many_messages_wait_for_the_app_before_its_client_is_held_back(tmp_path: Path, queue: int) -> None:
    messages, size = 2500, 16384  # 40 MB: more than the kernel holds

    async def main() -> None:
        (tmp_path / "waits.py").write_text(WAITS)
        async with (
            Cluster("waits:app", app_dir=tmp_path, workers=1, ws_max_queue=queue) as cluster,
            cluster.connect(compression=None) as ws,
        ):

            async def push() -> None:
                for number in range(messages):
                    await ws.send(f"{number} ".ljust(size, "x"))

            pushing = asyncio.create_task(push())
            await asyncio.wait([pushing], timeout=15 if queue > messages else 1)
            assert pushing.done() is (queue > messages)
            await ask(cluster.port, GET % b"")
            for count in range(1, messages + 1):
                assert await ws.recv() == str(count)
            await pushing

    run(main())
