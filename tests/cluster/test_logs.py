"""Lines of the log, as a collector reads them."""

import json

from tests.cluster.process_support import close_code, connect_to_slot
from tests.support import run
from wscluster.testing import Cluster


def test_every_line_of_primary_and_workers_is_json() -> None:
    async def main() -> None:
        cluster = Cluster("tests.cluster.obeying:obey", workers=2, log_format="json", access_log=True)
        async with cluster:
            ws = await connect_to_slot(cluster, 1)
            await ws.send("raise")
            assert await close_code(ws) == 1011
        lines = [json.loads(line) for line in cluster.output]
        assert {line["role"] for line in lines} == {"primary", "worker"}
        failed = next(line for line in lines if "exception" in line)
        assert (failed["slot"], failed["level"]) == (1, "error")
        assert "as it was told" in failed["exception"]

    run(main())
