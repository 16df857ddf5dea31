"""An ASGI app is served through uvicorn in every worker, sticky by client."""

import json

import httpx

from tests.cluster.process_support import close_code, printed
from tests.support import run
from wscluster.testing import Cluster

APP = "tests.cluster.asgi_apps:app"


def test_requests_and_a_websocket_of_one_address_reach_one_worker_and_others_another() -> None:
    async def main() -> None:
        async with Cluster(APP) as cluster:
            slots = {}
            for number in range(1, 9):
                source = f"127.1.0.{number}"
                transport = httpx.AsyncHTTPTransport(local_address=source)
                async with httpx.AsyncClient(transport=transport) as client:
                    told = [(await client.get(f"http://127.0.0.1:{cluster.port}/who")).json() for _ in range(2)]
                async with cluster.connect("/who", source=source) as ws:
                    told.append(json.loads(await ws.recv()))
                    await ws.send("hello")
                    assert await ws.recv() == "hello"
                assert {each["client"][0] for each in told} == {source}
                assert len({(each["slot"], each["pid"]) for each in told}) == 1
                slots[source] = told[0]["slot"]
            assert set(slots.values()) == {0, 1}
            status = await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
            assert status["totals"]["adopted"] == 16
            assert {worker["messages_in"] for worker in status["workers"]} == {None}
            async with cluster.connect("/echo") as ws:
                await cluster.wait_status(lambda status: status["totals"]["connections"] == 1)
                cluster.process.terminate()
                assert await close_code(ws) == 1012
            assert await cluster.wait_exit() == 0
        assert printed(cluster).count("lifespan is over") == 2

    run(main())
