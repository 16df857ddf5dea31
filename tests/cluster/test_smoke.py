"""The shortest way through everything."""

import json

from tests.support import run
from wscluster.testing import Cluster


def test_a_client_is_served() -> None:
    async def main() -> None:
        async with Cluster("tests.cluster.handlers:who") as cluster:
            async with cluster.connect("/x", source="127.1.0.7") as ws:
                told = json.loads(await ws.recv())
                assert told["path"] == "/x"
                assert told["client"][0] == "127.1.0.7"
                await ws.send("hello")
                assert await ws.recv() == "hello"
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
        assert cluster.process.returncode == 0

    run(main())
