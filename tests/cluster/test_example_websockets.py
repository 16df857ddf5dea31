"""examples/websockets_echo: a program that knows nothing of wscluster, run on several workers."""

import asyncio

from websockets.asyncio.client import connect

from tests.cluster.polling_support import source
from tests.support import run
from wscluster.testing import Cluster

PROGRAM = "examples/websockets_echo/server.py"
CLIENTS = 24


def test_each_client_is_echoed_by_one_process_always_the_same() -> None:
    async def main() -> None:
        async with Cluster.run(PROGRAM, "0", workers=3) as cluster:
            # It listens on localhost: where that is IPv6 too, on two ports.
            (url,) = (f"ws://{name}" for name in cluster.listeners if name.startswith("127."))

            async def client(address: str) -> int:
                told = set()
                for _ in range(2):
                    async with connect(url, local_addr=(address, 0), proxy=None) as ws:
                        told.add(await ws.recv())
                        for text in ("hello", "x" * 100_000):
                            await ws.send(text)
                            assert await ws.recv() == text
                (greeting,) = told
                return int(str(greeting).removeprefix("process "))

            processes = await asyncio.gather(*(client(source(number)) for number in range(CLIENTS)))
            assert set(processes) == set(cluster.worker_pids().values())
        assert cluster.process.returncode == 0
        assert not [line for line in cluster.output if "Traceback" in line]

    run(main())
