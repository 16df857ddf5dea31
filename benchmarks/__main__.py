"""``python -m benchmarks [CASE ...] [--rounds 7]``: what wscluster costs beside others, and how it spreads clients.

wscluster beside plain `websockets` with the same handler, and beside uvicorn with the same ASGI app. Both servers run
at the same time on the same machine and are loaded in turn, the order changing every round. Judged is CPU of all
processes of each side, as the median of the paired ratios; absolute figures are shown, not judged.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks import http_load, load, spread
from benchmarks.processes import Server, start_peer, start_uvicorn, start_wscluster
from wscluster.loops import new_event_loop

MESSAGE_BYTES = 64
ECHO_CLIENTS, ECHO_MESSAGES = 100, 200
CONNECTS = 2000
IDLE_CLIENTS = 2000
MEMBERS, FAN_OUT_ROUNDS = 1000, 20
HTTP_CLIENTS, HTTP_REQUESTS = 100, 200


@dataclass(frozen=True)
class Case:
    """One comparison: a load that returns its cost per unit, the bar, and how both sides are started."""

    unit: str
    bar: float
    run: Callable[[Server], Awaitable[float]]
    start: Callable[[], Server]
    start_peer: Callable[[], Server]
    fresh: bool = False
    """Every round wants servers that have seen nothing before."""


def of_handlers(
    unit: str, bar: float, run: Callable[[Server], Awaitable[float]], ours: str, theirs: str, *, fresh: bool = False
) -> Case:
    """Return a case beside plain `websockets`, with two handlers of `benchmarks.handlers`."""
    return Case(
        f"{unit}, websockets", bar, run, lambda: start_wscluster(f"benchmarks.handlers:{ours}"),
        lambda: start_peer(theirs), fresh,
    )  # fmt: skip


def of_apps(unit: str, bar: float, run: Callable[[Server], Awaitable[float]]) -> Case:
    """Return a case beside uvicorn, with the app of `benchmarks.asgi_app`."""
    return Case(
        f"{unit}, uvicorn", bar, run, lambda: start_wscluster(spread.APP, "--no-access-log"),
        lambda: start_uvicorn(spread.APP),
    )  # fmt: skip


async def echo(server: Server) -> float:
    """CPU µs per echoed message."""
    clients = await load.connect_many(server.port, ECHO_CLIENTS)
    await load.echo(clients, 20, MESSAGE_BYTES)
    begin = server.cpu_seconds()
    await load.echo(clients, ECHO_MESSAGES, MESSAGE_BYTES)
    cost = server.cpu_seconds() - begin
    await load.close_all(clients)
    return cost / (ECHO_CLIENTS * ECHO_MESSAGES) * 1e6


async def connect(server: Server) -> float:
    """CPU µs per connect, upgrade and close."""
    await load.connects(server.port, 200)
    begin = server.cpu_seconds()
    await load.connects(server.port, CONNECTS)
    return (server.cpu_seconds() - begin) / CONNECTS * 1e6


async def memory(server: Server) -> float:
    """KiB of private user-space memory per idle connection, on a server that has seen none before."""
    warm = await load.connect_many(server.port, 100)
    begin = server.private_bytes()
    clients = await load.connect_many(server.port, IDLE_CLIENTS)
    cost = (server.private_bytes() - begin) / IDLE_CLIENTS / 1024
    await load.close_all(clients + warm)
    return cost


def fan_out(under_way: int) -> Callable[[Server], Awaitable[float]]:
    """CPU µs per delivery to one of 1,000 members, with ``under_way`` messages at a time."""

    async def run(server: Server) -> float:
        clients = await load.connect_many(server.port, MEMBERS)
        await asyncio.gather(*(client.first_bytes for client in clients))  # each was told that it has joined
        await load.fan_out(clients, 3, under_way, MESSAGE_BYTES)
        begin = server.cpu_seconds()
        await load.fan_out(clients, FAN_OUT_ROUNDS, under_way, MESSAGE_BYTES)
        cost = server.cpu_seconds() - begin
        await load.close_all(clients)
        return cost / (MEMBERS * FAN_OUT_ROUNDS * under_way) * 1e6

    return run


async def http(server: Server) -> float:
    """CPU µs per request on connections that are kept alive."""
    clients = [await http_load.connect(server.port) for _ in range(HTTP_CLIENTS)]
    await http_load.request(clients, 20)
    begin = server.cpu_seconds()
    await http_load.request(clients, HTTP_REQUESTS)
    cost = server.cpu_seconds() - begin
    await http_load.close_all(clients)
    return cost / (HTTP_CLIENTS * HTTP_REQUESTS) * 1e6


CASES = {
    "echo": of_handlers("CPU µs per echoed message", 0.85, echo, "echo", "echo"),
    "connect": of_handlers("CPU µs per connect, upgrade and close", 0.9, connect, "echo", "echo"),
    "memory": of_handlers("KiB per idle connection", 0.75, memory, "echo", "echo", fresh=True),
    "fanout": of_handlers("CPU µs per delivery, one at a time", 0.8, fan_out(1), "room", "peer_room"),
    "fanout8": of_handlers("CPU µs per delivery, eight under way", 0.4, fan_out(8), "room", "peer_room"),
    "http": of_apps("CPU µs per HTTP request", 1.05, http),
    "websocket": of_apps("CPU µs per echoed message", 1.05, echo),
}
OTHERS = ("spread", "polling")
"""What shows figures and has no bar."""


async def compare(name: str, rounds: int) -> bool:
    """Run one case and print its row; True where the bar holds."""
    case = CASES[name]
    pairs: list[tuple[float, float]] = []
    ours: Server | None = None
    peer: Server | None = None
    for number in range(rounds):
        if ours is None or peer is None or case.fresh:
            for running in (ours, peer):
                if running is not None:
                    running.stop()
            ours, peer = case.start(), case.start_peer()
        if number % 2:
            theirs_cost = await case.run(peer)
            ours_cost = await case.run(ours)
        else:
            ours_cost = await case.run(ours)
            theirs_cost = await case.run(peer)
        pairs.append((ours_cost, theirs_cost))
    assert ours is not None
    assert peer is not None
    ours.stop()
    peer.stop()
    ratios = sorted(mine / theirs for mine, theirs in pairs)
    ratio = statistics.median(ratios)
    print(
        f"{case.unit:54} {statistics.median(mine for mine, _ in pairs):8.2f} "
        f"{statistics.median(theirs for _, theirs in pairs):10.2f}   "
        f"{ratio:5.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})   {case.bar:.2f}",
        flush=True,
    )
    return ratio <= case.bar


async def run(names: list[str], rounds: int) -> bool:
    """Run the cases and then what has no bar; True where all bars hold."""
    held = True
    if cases := [name for name in names if name in CASES]:
        print(f"{f'medians of {rounds} rounds':54} wscluster       peer   ratio (least to most)   bar")
        for name in cases:
            held &= await compare(name, rounds)
    if "spread" in names:
        await spread.compare(rounds)
    if "polling" in names:
        from benchmarks import polling  # it wants python-socketio

        await polling.compare(clients=200, workers=4, kept=True)
    return held


def main() -> int:
    names = [*CASES, *OTHERS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(names)}; all where none is named")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.cases if name not in names]:
        parser.error(f"no such case: {', '.join(unknown)}")
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return 0 if runner.run(run(arguments.cases or names, arguments.rounds)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
