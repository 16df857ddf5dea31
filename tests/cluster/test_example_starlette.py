"""examples/starlette_jobs: state in the memory of one worker, reached by HTTP and WebSocket of one client."""

import asyncio
import json

from tests.cluster.example_support import http_from, on_different_workers
from tests.cluster.polling_support import source
from tests.support import run
from wscluster.testing import Cluster

APP = "examples.starlette_jobs.main:app"
CLIENTS = 24


def test_every_request_and_the_websocket_of_a_client_reach_the_worker_that_has_its_job() -> None:
    async def main() -> None:
        async with Cluster(APP, workers=3) as cluster:

            async def client(address: str) -> int:
                async with http_from(address, cluster.port) as http:
                    started = await http.post("/jobs")
                    assert started.status_code == 201
                    job = started.json()
                    async with cluster.connect(f"/jobs/{job['job']}/progress", source=address) as ws:
                        told = [json.loads(message) async for message in ws]
                    assert ws.close_code == 1000
                    told += [(await http.get(f"/jobs/{job['job']}")).raise_for_status().json() for _ in range(5)]
                assert {report["worker"] for report in told} == {job["worker"]}
                assert [report["done"] for report in told][-6:] == [job["of"]] * 6
                return int(job["worker"])

            workers = await asyncio.gather(*(client(source(number)) for number in range(CLIENTS)))
            assert set(workers) == set(cluster.worker_pids().values())

    run(main())


def test_another_worker_does_not_know_the_job() -> None:
    async def main() -> None:
        async with Cluster(APP, workers=2) as cluster:

            async def worker(address: str) -> int:
                async with http_from(address, cluster.port) as http:
                    return int((await http.get("/jobs/none")).json()["worker"])

            here, there = (await on_different_workers(worker)).values()
            async with http_from(here, cluster.port) as http:
                job = (await http.post("/jobs")).json()["job"]
            async with http_from(there, cluster.port) as http:
                assert (await http.get(f"/jobs/{job}")).status_code == 404
            async with cluster.connect(f"/jobs/{job}/progress", source=there) as ws:
                await ws.wait_closed()
            assert ws.close_code == 4404

    run(main())
