"""``python -m benchmarks [echo connect memory fanout fanout8] [--rounds 7]``: wscluster beside plain `websockets`.

Both servers run at the same time on the same machine and are loaded in turn, the order changing every round. Judged is
CPU of all processes of each side, as the median of the paired ratios; absolute figures are shown, not judged.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks import load
from benchmarks.processes import Server, start_peer, start_wscluster
from wscluster.loops import new_event_loop

MESSAGE_BYTES = 64
ECHO_CLIENTS, ECHO_MESSAGES = 100, 200
CONNECTS = 2000
IDLE_CLIENTS = 2000
MEMBERS, FAN_OUT_ROUNDS = 1000, 20


@dataclass(frozen=True)
class Case:
    """One comparison: the handlers of both sides, a load that returns its cost per unit, and the bar."""

    handler: str
    peer_handler: str
    unit: str
    bar: float
    run: Callable[[Server], Awaitable[float]]
    flags: tuple[str, ...] = ()


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


CASES = {
    "echo": Case("echo", "echo", "CPU µs per echoed message", 0.85, echo),
    "connect": Case("echo", "echo", "CPU µs per connect, upgrade and close", 0.9, connect),
    "memory": Case("echo", "echo", "KiB per idle connection", 0.75, memory),
    "fanout": Case("room", "peer_room", "CPU µs per delivery, one message at a time", 0.8, fan_out(1)),
    "fanout8": Case("room", "peer_room", "CPU µs per delivery, eight under way", 0.4, fan_out(8)),
}


async def compare(name: str, rounds: int) -> bool:
    """Run one case and print its row; True where the bar holds."""
    case = CASES[name]
    pairs: list[tuple[float, float]] = []
    ours: Server | None = None
    peer: Server | None = None
    for number in range(rounds):
        if ours is None or peer is None or name == "memory":
            for running in (ours, peer):
                if running is not None:
                    running.stop()
            ours, peer = start_wscluster(case.handler, *case.flags), start_peer(case.peer_handler)
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
        f"{case.unit:44} {statistics.median(mine for mine, _ in pairs):8.2f} "
        f"{statistics.median(theirs for _, theirs in pairs):10.2f}   "
        f"{ratio:5.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})   {case.bar:.2f}",
        flush=True,
    )
    return ratio <= case.bar


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all where none is named")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.cases if name not in CASES]:
        parser.error(f"no such case: {', '.join(unknown)}")
    print(f"{'medians of ' + str(arguments.rounds) + ' rounds':44} wscluster websockets   ratio (least to most)   bar")
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        held = [runner.run(compare(name, arguments.rounds)) for name in arguments.cases or list(CASES)]
    return 0 if all(held) else 1


if __name__ == "__main__":
    raise SystemExit(main())
