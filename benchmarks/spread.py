"""``python -m benchmarks.spread [--rounds 7]``: how evenly clients of 1,000 addresses are spread over 8 workers.

Each address connects twice, and each response names the process that has answered. Shown are the largest share of a
worker over the mean, and how many addresses came to the same worker again: of wscluster, and of uvicorn with as many
workers, which all accept from one socket.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections import Counter
from dataclasses import dataclass

from benchmarks import http_load
from benchmarks.processes import Server, start_uvicorn, start_wscluster
from wscluster.loops import new_event_loop

WORKERS = 8
ADDRESSES = 1000
AT_ONCE = 50
APP = "benchmarks.asgi_app:app"


@dataclass(frozen=True)
class Spread:
    """Where the addresses of one round came to: the largest share over the mean, and how many came there twice."""

    largest: float
    returned: int


async def ask(port: int, source: str) -> bytes:
    """Return which process answers ``source``."""
    client = await http_load.connect(port, source)
    await http_load.request([client], 1)
    await http_load.close_all([client])
    return client.body


async def ask_all(port: int, sources: list[str]) -> list[bytes]:
    """Return which process answers each of ``sources``, 50 of them at a time."""
    answers: list[bytes] = []
    for begin in range(0, len(sources), AT_ONCE):
        answers += await asyncio.gather(*(ask(port, source) for source in sources[begin : begin + AT_ONCE]))
    return answers


async def measure(server: Server, number: int) -> Spread:
    """Send the addresses of round ``number`` twice."""
    sources = [f"127.{number + 1}.{host // 250}.{host % 250 + 1}" for host in range(ADDRESSES)]
    first = await ask_all(server.port, sources)
    second = await ask_all(server.port, sources)
    largest = max(Counter(first).values()) / (ADDRESSES / WORKERS)
    return Spread(largest, sum(one == two for one, two in zip(first, second, strict=True)))


async def compare(rounds: int) -> None:
    """Measure both, the order changing every round, and print a line for each."""
    servers = {
        "wscluster": start_wscluster(APP, "--no-access-log", workers=WORKERS),
        "uvicorn": start_uvicorn(APP, workers=WORKERS),
    }
    found: dict[str, list[Spread]] = {name: [] for name in servers}
    for number in range(rounds):
        for name in sorted(servers, reverse=bool(number % 2)):
            found[name].append(await measure(servers[name], number))
    for name, server in servers.items():
        server.stop()
        shares = sorted(spread.largest for spread in found[name])
        returned = statistics.median(spread.returned for spread in found[name])
        print(
            f"{ADDRESSES:,} addresses over {WORKERS} workers, {name:10} largest share / mean "
            f"{statistics.median(shares):.2f} ({shares[0]:.2f} to {shares[-1]:.2f}), "
            f"{returned:.0f} came to the same worker again",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(compare(arguments.rounds))


if __name__ == "__main__":
    main()
