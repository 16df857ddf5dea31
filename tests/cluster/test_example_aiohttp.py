"""examples/aiohttp_app: an aiohttp program that uses a room, run on several workers."""

import json
from typing import Any

from websockets.asyncio.client import ClientConnection

from tests.cluster.example_support import http_from, on_different_workers
from tests.support import run
from wscluster.testing import Cluster

PROGRAM = "examples/aiohttp_app/server.py"
NEWS = 20


async def hear(ws: ClientConnection) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(await ws.recv())
    return event


def test_news_by_http_reaches_listeners_on_every_worker_once_and_in_order() -> None:
    async def main() -> None:
        async with Cluster.run(PROGRAM, "0", workers=2) as cluster:

            async def worker(address: str) -> int:
                async with http_from(address, cluster.port) as http:
                    told = (await http.get("/")).raise_for_status().json()
                assert told["client"] == address
                return int(told["worker"])

            addresses = await on_different_workers(worker)
            assert set(addresses) == set(cluster.worker_pids().values())
            (first, here), (second, there) = addresses.items()
            async with (
                cluster.connect("/news", source=here) as ada,
                cluster.connect("/news", source=there) as bob,
                http_from(here, cluster.port) as http,
            ):
                assert (await hear(ada), await hear(bob)) == ({"welcome": first}, {"welcome": second})
                for number in range(NEWS):
                    told = (await http.post("/news", content=str(number))).raise_for_status().json()
                    assert told["worker"] == first
                assert (await http.post("/news", content=" ")).status_code == 400
                for ws in (ada, bob):
                    expected = [{"news": str(number), "worker": first} for number in range(NEWS)]
                    assert [await hear(ws) for _ in range(NEWS)] == expected
                assert await cluster.stop() == 0
                for ws in (ada, bob):
                    await ws.wait_closed()
                    assert ws.close_code == 1001
        assert not [line for line in cluster.output if "Traceback" in line]

    run(main())
