"""``python -m benchmarks.churn --seconds 30 --rate 200 --workers 4``: what happens to clients while workers are killed.

Connections come at a steady rate from 40 addresses, each with its handshake and first message at once; workers are
killed with -9 at random, half of them after they were stopped for a while, so that offers lie unread in their links.

What is proven, and how. Each accepted connection ends in the primary's ledger as adopted (its worker wrote `Adopted`)
or as rejected, once. So, when ``accepted == clients`` and ``accepted == adopted + rejected``, nothing was lost before
its adoption: a client without an answer is one whose worker was killed between adopting it and answering, or one that
the primary turned away with a reset, because it answers no more than 256 at a time with a 503; ``rejected`` less the
503s says how many those are. Beside the counts, each client that was cut off or not answered (but for those resets)
must have ended when a worker had just been killed, and must be older than that kill; where it got as far as the
greeting, it must have been the worker that the greeting names. ``--spare`` workers are left alive by each kill: with 1
or more, nobody is rejected.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.load import CLOSE, REQUEST, masked_frame
from wscluster.testing import Cluster

if TYPE_CHECKING:
    from wscluster import Connection

ADDRESSES = 40
HOLD_SECONDS = 0.5
"""A client stays for a random time up to this after its echo."""
STOP_SECONDS = 0.3
"""Half of the workers are stopped for a random time up to this before they are killed."""
DEATH_SECONDS = 2.0
"""A connection that ends within this time after a kill was ended by it, however busy the machine is."""
CLIENT_SECONDS = 30.0

SERVED = "served"
CUT_OFF = "lost with its worker"
UNANSWERED = "no answer"
REFUSED = "refused with 503"
NOT_CONNECTED = "could not connect"
HUNG = "never ended"
WRONG = "answered wrongly"
OUTCOMES = (SERVED, CUT_OFF, UNANSWERED, REFUSED, NOT_CONNECTED, HUNG, WRONG)


async def greet(ws: Connection) -> None:
    """The handler: say who serves whom, then echo."""
    assert ws.client is not None
    await ws.send(json.dumps({"pid": os.getpid(), "port": ws.client[1]}))
    async for message in ws:
        await ws.send(message)


@dataclass
class Visit:
    """What one client saw; times are of the monotonic clock."""

    began: float
    ended: float = 0.0
    outcome: str = ""
    pid: int | None = None
    answered: bool = False


@dataclass
class Report:
    """What came of it: of every client, and of the primary's ledger."""

    seconds: float
    spare: int
    visits: list[Visit] = field(default_factory=list)
    killed: dict[int, float] = field(default_factory=dict)
    exits: Counter[int] = field(default_factory=Counter)
    totals: dict[str, int] = field(default_factory=dict)

    @property
    def outcomes(self) -> Counter[str]:
        """How many clients met with which end."""
        return Counter(visit.outcome for visit in self.visits)

    @property
    def kills(self) -> int:
        """How many workers were killed."""
        return len(self.killed)

    @property
    def answered(self) -> int:
        """Clients that got an answer of a worker."""
        return sum(visit.answered for visit in self.visits)

    @property
    def died_unanswered(self) -> int:
        """Clients without an answer that were not turned away: their worker died between adopting and answering."""
        return self.outcomes[UNANSWERED] - self.resets

    @property
    def resets(self) -> int:
        """Clients that were turned away with a reset: rejected, and no 503."""
        return self.totals["rejected"] - self.outcomes[REFUSED]

    def faults(self) -> list[str]:
        """Return what contradicts the promise, a line each; empty where it was kept."""
        count, totals = self.outcomes, self.totals
        found = [f"{count[bad]} clients: {bad}" for bad in (NOT_CONNECTED, HUNG, WRONG) if count[bad]]
        equations = {
            "accepted == clients": (totals["accepted"], len(self.visits)),
            "accepted == adopted + rejected": (totals["accepted"], totals["adopted"] + totals["rejected"]),
            "adopted == answered + not answered": (totals["adopted"], self.answered + self.died_unanswered),
            "workers that ended by SIGKILL == kills": (self.exits[-signal.SIGKILL], self.kills),
            "workers that ended == kills": (self.exits.total(), self.kills),
        }
        found += [f"{name}: {left} and {right}" for name, (left, right) in equations.items() if left != right]
        if self.spare and totals["rejected"]:
            found.append(f"{totals['rejected']} clients rejected though a worker was always alive")
        for outcome, allowed in ((CUT_OFF, 0), (UNANSWERED, self.resets)):
            unexplained = sum(visit.outcome == outcome and not self._explained(visit) for visit in self.visits)
            if unexplained > allowed:
                found.append(f"{unexplained} clients ({outcome}) ended when no worker of theirs had just been killed")
        return found

    def _explained(self, visit: Visit) -> bool:
        """True where a kill explains the end of ``visit``."""
        if visit.pid is not None:
            kills = [self.killed[visit.pid]] if visit.pid in self.killed else []
        else:
            kills = list(self.killed.values())
        return any(visit.began <= at <= visit.ended <= at + DEATH_SECONDS for at in kills)

    def table(self) -> str:
        """Return the account as text."""
        lines = [f"{len(self.visits)} connections in {self.seconds:g} s, {self.kills} workers killed"]
        lines += [f"  {self.outcomes[outcome]:6}  {outcome}" for outcome in OUTCOMES if outcome != UNANSWERED]
        lines += [
            f"  {self.died_unanswered:6}  adopted, not answered: its worker was killed",
            f"  {self.resets:6}  refused with a reset, 256 being answered at that moment",
            f"  {len(self.visits) - self.totals['adopted'] - self.totals['rejected']:6}  lost although never adopted",
            "the primary's ledger",
        ]
        names = ("accepted", "adopted", "rejected", "placed_again", "workers_restarted")
        lines += [f"  {self.totals[name]:6}  {name}" for name in names]
        return "\n".join([*lines, *self.faults()])


async def _visit(port: int, source: str, number: int, visit: Visit) -> None:
    """Be one client, and note in ``visit`` how it went."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    except OSError as exc:
        # Turned away with a reset before this loop has seen that the connection stands: it was accepted all the same.
        visit.outcome = UNANSWERED if isinstance(exc, ConnectionResetError) else NOT_CONNECTED
        visit.ended = time.monotonic()
        return
    try:
        visit.outcome = await _talk(reader, writer, f"client {number}", visit)
    except (ConnectionError, asyncio.IncompleteReadError):
        visit.outcome = CUT_OFF if visit.answered else UNANSWERED
    finally:
        visit.ended = time.monotonic()
        writer.transport.abort()


async def _talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str, visit: Visit) -> str:
    writer.write(REQUEST + masked_frame(token.encode()))
    first = await reader.readexactly(1)
    # 503 is the primary's word, everything else a worker's.
    head = first + await reader.readuntil(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 503"):
        return REFUSED
    visit.answered = True
    if not head.startswith(b"HTTP/1.1 101"):
        return WRONG
    greeting = json.loads(await _message(reader))
    visit.pid = greeting["pid"]
    if greeting["port"] != writer.get_extra_info("sockname")[1] or await _message(reader) != token.encode():
        return WRONG
    await asyncio.sleep(random.random() * HOLD_SECONDS)
    writer.write(CLOSE)
    rest = await reader.read()
    if not rest:
        raise ConnectionResetError("no closing handshake")
    return SERVED if rest == b"\x88\x02\x03\xe8" else WRONG


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(2)
    return await reader.readexactly(head[1])


async def _kill_at_random(cluster: Cluster, every: float, spare: int, killed: dict[int, float]) -> None:
    while True:
        await asyncio.sleep(random.expovariate(1 / every))
        pids = [pid for pid in cluster.worker_pids().values() if pid not in killed]
        if len(pids) <= spare:
            continue
        pid = random.choice(pids)
        try:
            if random.random() < 0.5:
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(random.random() * STOP_SECONDS)
        finally:  # also when it is over: nobody is left stopped
            killed[pid] = time.monotonic()
            os.kill(pid, signal.SIGKILL)


async def _send_clients(cluster: Cluster, report: Report, seconds: float, rate: float) -> None:
    """Start a client every 1/rate s, whatever becomes of those before; returns when all have ended."""
    tasks = []
    begin = time.monotonic()
    for number in range(int(seconds * rate)):
        await asyncio.sleep(max(0.0, begin + number / rate - time.monotonic()))
        visit = Visit(time.monotonic())
        report.visits.append(visit)
        source = f"127.1.0.{number % ADDRESSES + 1}"
        tasks.append(asyncio.create_task(_visit(cluster.port, source, number, visit)))
    done, hung = await asyncio.wait(tasks, timeout=CLIENT_SECONDS)
    for task in hung:
        task.cancel()
    await asyncio.gather(*hung, return_exceptions=True)
    for visit in report.visits:
        visit.outcome = visit.outcome or HUNG
    for task in done:
        task.result()


async def churn(seconds: float, rate: float, workers: int, kill_every: float, spare: int = 1) -> Report:
    """Send clients to a cluster whose workers are killed every ``kill_every`` seconds; returns the account."""
    report = Report(seconds, spare)
    async with Cluster("benchmarks.churn:greet", workers=workers, log_level="critical") as cluster:
        killer = asyncio.create_task(_kill_at_random(cluster, kill_every, spare, report.killed))
        try:
            await _send_clients(cluster, report, seconds, rate)
        finally:
            killer.cancel()
            await asyncio.gather(killer, return_exceptions=True)
        for pid in report.killed:
            await cluster.wait_event("worker_exited", pid=pid)
        status = await cluster.status()
        report.totals = status["totals"]
        exits = [event for event in cluster.events if event["event"] == "worker_exited"]
        report.exits = Counter(event["status"] for event in exits)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.churn", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rate", type=float, default=200, help="new connections a second")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kill-every", type=float, default=0.7, help="seconds between two kills, on average")
    parser.add_argument("--spare", type=int, default=1, help="workers that are left alive by each kill")
    arguments = parser.parse_args()
    report = asyncio.run(churn(**vars(arguments)))
    print(report.table())
    return 1 if report.faults() else 0


if __name__ == "__main__":
    raise SystemExit(main())
