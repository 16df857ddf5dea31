"""``python -m benchmarks.polling [--clients 200] [--workers 4] [--not-kept]``: Socket.IO clients that fail.

The same app (examples/socketio_app/main.py) is served by wscluster and by ``uvicorn --workers``, and visited by clients
from as many addresses that keep their TCP connections as browsers do: one for the poll that is always under way, one
for what they send, and for every second client one for its upgrade to WebSocket. ``--not-kept`` makes a connection for
each request. A client has failed that was answered with anything but 200, or was not served to its end.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter

from tests.cluster import polling_support as polling
from wscluster.testing import Cluster


async def count(name: str, port: int, clients: int, kept: bool) -> None:
    """Send the clients to the server on ``port`` and print what became of them."""
    begin = time.monotonic()
    failed, reasons = await polling.count_failed(port, clients, kept=kept)
    why = ", ".join(f"{number} {reason}" for reason, number in Counter(reasons).most_common(3))
    print(f"{name:12} {failed:4} of {clients} clients failed ({time.monotonic() - begin:.1f} s)  {why}", flush=True)


async def compare(clients: int, workers: int, kept: bool) -> None:
    """Measure both, one after the other."""
    async with Cluster(polling.APP, workers=workers, log_level="warning") as cluster:
        await count("wscluster", cluster.port, clients, kept)
    async with polling.uvicorn(polling.APP, workers=workers) as port:
        await count("uvicorn", port, clients, kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--not-kept", action="store_true")
    arguments = parser.parse_args()
    asyncio.run(compare(arguments.clients, arguments.workers, not arguments.not_kept))


if __name__ == "__main__":
    main()
