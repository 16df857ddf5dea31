"""The end of an ASGI app: a graceful stop in each of its forms, a crash, a loop that is stuck; and its uploads."""

import asyncio
import contextlib
import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.exceptions import ConnectionClosed

from tests.cluster.process_support import close_code, printed, wait_gone
from tests.cluster.raw import Raw, addresses_of, ask
from tests.support import ROOT, run
from wscluster.testing import Cluster

APPS = "tests.cluster.asgi_apps"
APP = f"{APPS}:app"


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


async def answered(cluster: Cluster, path: str, text: str) -> Raw:
    """Return a connection whose request for ``path`` the app has begun to answer or has printed ``text`` for."""
    raw = await Raw.connect(cluster.port, data=get(path))
    await cluster.wait_output(text)
    return raw


def seconds_since(started: float) -> float:
    return time.monotonic() - started


# Stops


def test_requests_in_flight_finish_and_idle_connections_end() -> None:
    async def main() -> None:
        async with Cluster(APP, workers=1, graceful_timeout=30) as cluster:
            idle = await Raw.connect(cluster.port, data=get("/status?204"))
            assert " 204 " in await idle.head()
            silent = await Raw.connect(cluster.port)
            slow = await answered(cluster, "/slow?1", "slow begins")
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 3)
            stopping = asyncio.create_task(cluster.stop())
            assert await idle.rest() == b""
            assert await silent.rest() == b""
            assert not stopping.done()
            head = await slow.head()
            assert head.startswith("HTTP/1.1 200 OK\r\n")
            assert "connection: close" in head
            assert await slow.rest() == b"late"
            assert await stopping == 0
            for raw in (idle, silent, slow):
                await raw.close()
        assert printed(cluster).count("lifespan is over") == 1

    run(main())


def test_a_stream_and_a_request_that_do_not_end_hold_a_stop_no_longer_than_the_graceful_timeout() -> None:
    async def main() -> None:
        async with Cluster(APP, workers=1, graceful_timeout=1) as cluster:
            stream = await Raw.connect(cluster.port, data=get("/endless"))
            assert " 200 " in await stream.head()
            slow = await answered(cluster, "/slow?3600", "slow begins")
            ws = await cluster.connect("/hear")
            assert await ws.recv() == "hearing"
            started = time.monotonic()
            stopping = asyncio.create_task(cluster.stop())
            assert await close_code(ws) == 1012
            assert seconds_since(started) < 0.9
            assert (await stream.rest()).count(b"tick") > 10
            # The app is cancelled, and uvicorn answers for it.
            assert (await slow.head()).startswith("HTTP/1.1 500 ")
            assert await stopping == 0
            assert 0.8 < seconds_since(started) < 2
            await stream.close()
            await slow.close()
        assert "lifespan is over" in printed(cluster)
        assert not [line for line in cluster.output if "not drained" in line]

    run(main(), timeout=90)


def test_a_loop_over_a_room_ends_after_its_websocket_was_closed_with_1012() -> None:
    """The app of /hear closes with 1000 when its subscription ends: that must come second."""

    async def main() -> None:
        async with Cluster(APP, workers=2, graceful_timeout=20) as cluster:
            clients = []
            for slot in (0, 1):
                for _ in range(5):
                    clients.append(await cluster.connect("/hear", source=next(addresses_of(slot, 2))))
                    assert await clients[-1].recv() == "hearing"
            await ask(cluster.port, get("/publish?news").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            assert [await ws.recv() for ws in clients] == ["news"] * 10
            started = time.monotonic()
            stopping = asyncio.create_task(cluster.stop())
            assert [await close_code(ws) for ws in clients] == [1012] * 10
            assert await stopping == 0
            assert seconds_since(started) < 5

    run(main())


def test_an_app_that_never_answers_at_the_end_holds_a_stop_one_second_longer_at_most() -> None:
    async def main() -> None:
        async with Cluster(f"{APPS}:deaf", workers=2, graceful_timeout=0.5) as cluster:
            started = time.monotonic()
            assert await cluster.stop() == 0
            assert seconds_since(started) < 2
        said = [line for line in cluster.output if "did not answer 'lifespan.shutdown' within" in line]
        assert len(said) == 2
        assert not [line for line in cluster.output if "not drained" in line]

    run(main())


def test_a_second_stop_ends_at_once() -> None:
    async def main() -> None:
        async with Cluster(APP, workers=1, graceful_timeout=60) as cluster:
            raw = await answered(cluster, "/slow?3600", "slow begins")
            stopping = asyncio.create_task(cluster.stop())
            await cluster.wait_output("stopping")
            assert await cluster.stop(force=True) == 0
            with contextlib.suppress(Exception):
                await stopping
            assert await raw.head() == ""
            await raw.close()

    run(main())


def test_across_reloads_every_request_on_a_new_connection_is_answered(tmp_path: Path) -> None:
    source = (ROOT / "tests/cluster/asgi_apps.py").read_text()
    (tmp_path / "fresh.py").write_text(source)

    async def main() -> None:
        options: dict[str, Any] = {"reload": True, "reload_delay": 0.05, "cwd": tmp_path, "app_dir": tmp_path}
        async with Cluster("fresh:app", workers=2, **options) as cluster:
            ended = asyncio.Event()

            async def connect(source: str) -> int:
                count = 0
                while not ended.is_set():
                    raw = await Raw.connect(cluster.port, source)
                    await asyncio.sleep(0.1)
                    raw.writer.write(get("/status?200").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                    assert (await raw.head()).startswith("HTTP/1.1 200 OK\r\n")
                    await raw.close()
                    count += 1
                return count

            clients = [asyncio.create_task(connect(f"127.1.0.{number}")) for number in range(1, 9)]
            for count in (1, 2):
                (tmp_path / "fresh.py").write_text(source + f"\nrelease = {count}\n")
                await cluster.wait_event("reloaded", count=count)
            ended.set()
            assert sum(await asyncio.gather(*clients)) > 50

    run(main(), timeout=120)


# Crashes


def test_a_worker_that_is_killed_amid_requests_is_replaced_and_the_others_notice_nothing() -> None:
    async def main() -> None:
        async with Cluster(APP, workers=2) as cluster:
            lost, kept = next(addresses_of(0, 2)), next(addresses_of(1, 2))
            slow = await Raw.connect(cluster.port, lost, get("/slow?3600"))
            await cluster.wait_output("slow begins")
            ws = await cluster.connect("/who", source=kept)
            await ws.recv()
            os.kill(cluster.worker_pids()[0], signal.SIGKILL)
            assert await slow.head() == ""
            # While there is no worker in the slot its clients wait for the next.
            head, _ = await ask(cluster.port, get("/who").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), lost)
            assert head.startswith("HTTP/1.1 200 OK")
            await cluster.wait_event("worker_ready", count=2, slot=0)
            await ws.send("hello")
            assert await ws.recv() == "hello"
            await ws.close()
            await slow.close()

    run(main())


def test_an_app_that_blocks_its_loop_is_killed_and_replaced() -> None:
    async def main() -> None:
        async with Cluster(APP, workers=1, timeout_worker_healthcheck=1) as cluster:
            blocked = await Raw.connect(cluster.port, data=get("/block"))
            first = cluster.worker_pids()[0]
            await cluster.wait_output("its event loop is stuck")
            assert await blocked.head() == ""
            await cluster.wait_event("worker_ready", count=2, slot=0)
            await wait_gone([first])
            await blocked.close()
            async with cluster.connect("/echo") as ws:
                await ws.send("hello")
                assert await ws.recv() == "hello"

    run(main())


def test_apps_end_with_their_primary() -> None:
    async def main() -> None:
        async with Cluster(f"{APPS}:deaf", workers=2) as cluster:
            pids = list(cluster.worker_pids().values())
            ws = await cluster.connect("/echo")
            cluster.process.kill()
            with pytest.raises(ConnectionClosed):
                await ws.recv()
            assert await wait_gone(pids) < 2

    run(main())


# Bodies and disconnects


def test_an_upload_that_the_app_does_not_read_is_held_back_and_then_read_whole() -> None:
    size = 64 * 1024 * 1024

    async def main() -> None:
        async with Cluster(APP, workers=1) as cluster:
            worker = psutil.Process(cluster.worker_pids()[0])
            before = worker.memory_info().rss
            head = f"POST /body-later HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
            raw = await Raw.connect(cluster.port, data=head.encode())
            raw.writer.transport.set_write_buffer_limits(high=0)
            block = os.urandom(1024 * 1024)
            sent = 0

            async def upload() -> None:
                nonlocal sent
                while sent < size:
                    raw.writer.write(block)
                    await raw.writer.drain()
                    sent += len(block)

            uploading = asyncio.create_task(upload())
            last = -1
            while sent != last:  # until nothing has moved for half a second
                last = sent
                await asyncio.sleep(0.5)
            assert sent < size / 2
            assert worker.memory_info().rss - before < 16 * 1024 * 1024
            await ask(cluster.port, get("/read-now").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            await uploading
            digest = hashlib.sha256(block * (size // len(block))).hexdigest()
            assert " 200 " in await raw.head()
            assert (await raw.rest()).decode() == f"http.request {size} {digest}"
            await raw.close()

    run(main())


def test_an_app_is_told_that_its_client_is_gone() -> None:
    async def main() -> None:
        async with Cluster(APP, workers=1) as cluster:
            for end in ("close", "reset"):
                raw = await answered(cluster, "/wait-disconnect", "waiting")
                if end == "reset":
                    raw.reset()
                await raw.close()
                await cluster.wait_output("saw http.disconnect")
                cluster.output.clear()
            async with cluster.connect("/echo") as ws:
                await ws.close(4321)
            await cluster.wait_output("websocket.disconnect 4321")
            ws = await cluster.connect("/echo")
            ws.transport.abort()
            await cluster.wait_output("websocket.disconnect 100")
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)

    run(main())
