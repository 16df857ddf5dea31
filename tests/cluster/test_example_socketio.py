"""examples/socketio_app: long polling and upgrade on several workers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import socketio

from tests.cluster import polling_support as polling
from tests.cluster.example_support import on_different_workers
from tests.support import run
from wscluster.testing import Cluster

CLIENTS = 50


@asynccontextmanager
async def guest(cluster: Cluster, address: str) -> AsyncIterator[tuple[Any, int, asyncio.Queue[dict[str, Any]]]]:
    """Be the library's own client: polling, then an upgrade; gives it, its worker, and what it hears."""
    connector = aiohttp.TCPConnector(local_addr=(address, 0))
    async with aiohttp.ClientSession(connector=connector) as http:
        client = socketio.AsyncClient(reconnection=False, http_session=http)
        welcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        hears: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        client.on("welcome", lambda event: welcome.set_result(event["worker"]))
        client.on("said", hears.put)
        await client.connect(f"http://127.0.0.1:{cluster.port}")
        try:
            yield client, await welcome, hears
        finally:
            await client.disconnect()


def test_no_polling_client_is_refused_and_each_has_one_worker() -> None:
    async def main() -> None:
        async with Cluster(polling.APP, workers=4) as cluster:
            for kept in (True, False):
                assert await polling.count_failed(cluster.port, 2 * CLIENTS, kept=kept) == (0, [])
            visits = [
                polling.visit(cluster.port, polling.source(number % 20), upgrade=number < 20) for number in range(40)
            ]
            workers = await asyncio.gather(*visits)
            assert workers[:20] == workers[20:]
            assert len(set(workers)) > 1
            assert set(workers) <= set(cluster.worker_pids().values())

    run(main())


def test_the_same_app_fails_under_uvicorn_with_workers() -> None:
    async def main() -> None:
        async with polling.uvicorn(polling.APP, workers=1) as port:
            assert await polling.count_failed(port, 8) == (0, [])  # the clients and the app do their part
        async with polling.uvicorn(polling.APP, workers=4) as port:
            failed, reasons = await polling.count_failed(port, CLIENTS)
        assert failed > 0  # about 84 of 100: three TCP connections of a client, four processes
        assert any("HTTP 400" in reason for reason in reasons)

    run(main())


def test_an_emit_reaches_the_clients_of_every_worker() -> None:
    async def main() -> None:
        async with Cluster("examples.socketio_app.chat:app", workers=2) as cluster:

            async def worker(address: str) -> int:
                async with guest(cluster, address) as (_, worker, _):
                    return worker

            here, there = (await on_different_workers(worker)).values()
            async with (
                guest(cluster, here) as (ada, ada_on, ada_hears),
                guest(cluster, there) as (bob, bob_on, bob_hears),
            ):
                for client in (ada, bob):
                    await client.call("join", "lobby")
                for number in range(10):
                    await ada.call("say", ("lobby", f"Ada {number}"))
                    await bob.call("say", ("lobby", f"Bob {number}"))
                for hears in (ada_hears, bob_hears):
                    heard = [await hears.get() for _ in range(20)]
                    for name, on in (("Ada", ada_on), ("Bob", bob_on)):
                        own = [(event["text"], event["worker"]) for event in heard if event["text"].startswith(name)]
                        assert own == [(f"{name} {number}", on) for number in range(10)]
            assert await cluster.stop() == 0
        assert not [line for line in cluster.output if "Traceback" in line or "unexpectedly" in line]

    run(main())
