"""What `wscluster status --json` says, from the fleet, the ledger and the workers' beats."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from wscluster.gateway.fleet import Fleet
from wscluster.gateway.handoff import Ledger
from wscluster.gateway.rolling import Worker
from wscluster.gateway.sums import Sums, add_lists
from wscluster.packets import Stats

CPU_WINDOW_SECONDS = 0.5
"""Two figures of a worker's CPU time must be this far apart to say how busy it is."""

KEYS = (
    "slot", "id", "pid", "state", "phase", "uptime_seconds", "connections", "adopted", "messages_in", "messages_out",
    "rooms", "loop_lag_seconds", "cpu_cores", "rss_bytes",
)  # fmt: skip
"""What is said of each worker."""

SUMMED = ("published", "delivered", "gaps", "ignored", "slow_closed", "bus_losses")
KNOWN = ("messages_in", "messages_out")
"""Summed too, where the kind of target knows them."""


@dataclass(slots=True)
class Figures:
    """What one worker said last; ``stats`` is None until its first beat."""

    pid: int
    stats: Stats | None = None
    cpu_cores: float | None = None
    _sampled: tuple[float, float] | None = None

    def update(self, stats: Stats, now: float) -> None:
        """Take the figures of a beat that came at ``now``."""
        self.stats = stats
        if self._sampled is None:
            self._sampled = (now, stats.cpu_seconds)
            return
        at, cpu_seconds = self._sampled
        if now - at >= CPU_WINDOW_SECONDS:
            self.cpu_cores = round((stats.cpu_seconds - cpu_seconds) / (now - at), 4)
            self._sampled = (now, stats.cpu_seconds)


@dataclass(slots=True)
class Totals:
    """Counters of workers that have exited, so that no total ever falls."""

    values: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*SUMMED, *KNOWN), 0))
    application: Sums = field(default_factory=Sums)
    sizes_in: list[int] = field(default_factory=list)
    sizes_out: list[int] = field(default_factory=list)
    bytes_in: int = 0
    bytes_out: int = 0

    def retire(self, stats: Stats | None) -> None:
        """Keep what a worker that has exited had counted; None: it never said anything."""
        if stats is None:
            return
        for name in self.values:
            self.values[name] += getattr(stats, name) or 0
        self.application.retire(stats.application)
        for way in ("in", "out"):
            counts, total = self.sizes([stats])[way]
            setattr(self, f"sizes_{way}", counts)
            setattr(self, f"bytes_{way}", total)

    def sizes(self, live: list[Stats]) -> dict[str, tuple[list[int], int]]:
        """Return the sizes of the messages of all workers there ever were, in and out, and their bytes."""
        found = {"in": (self.sizes_in, self.bytes_in), "out": (self.sizes_out, self.bytes_out)}
        for stats in live:
            found["in"] = (add_lists(found["in"][0], stats.sizes_in), found["in"][1] + stats.bytes_in)
            found["out"] = (add_lists(found["out"][0], stats.sizes_out), found["out"][1] + stats.bytes_out)
        return found

    def sum(self, live: list[Stats]) -> dict[str, int]:
        """Return the counters of all workers there ever were."""
        return {name: kept + sum(getattr(stats, name) or 0 for stats in live) for name, kept in self.values.items()}


@dataclass(frozen=True, slots=True)
class PrimaryFacts:
    """What the primary knows of itself."""

    pid: int
    version: str
    started_at: float
    listeners: tuple[str, ...]
    sticky: tuple[str, ...]
    bus_url: str | None
    bus_private: bool


def build_status(
    facts: PrimaryFacts, fleet: Fleet, ledger: Ledger, figures: dict[int, Figures], totals: Totals, now: float
) -> dict[str, Any]:
    """Return the status, in the shape that programs rely on. What is not known is None, never 0."""
    said = [figures[worker].stats for worker in fleet.workers if worker in figures]
    live = [stats for stats in said if stats is not None]
    sums = totals.sum(live)
    connected = [stats.bus_connected for stats in live if stats.bus_connected is not None]
    return {
        "primary": {
            "pid": facts.pid,
            "version": facts.version,
            "uptime_seconds": round(now - facts.started_at, 3),
            "listeners": list(facts.listeners),
            "sticky": list(facts.sticky),
            "phase": fleet.phase,
        },
        "workers": [_describe_slot(number, fleet, figures, now) for number in range(len(fleet.slots))],
        "bus": {
            "url": facts.bus_url,
            "private": facts.bus_private,
            "connected": bool(connected) and all(connected),
            "published": sums["published"],
            "delivered": sums["delivered"],
            "gaps": sums["gaps"],
            "ignored": sums["ignored"],
        },
        "totals": {
            "connections": sum(stats.connections for stats in live),
            "accepted": ledger.books.accepted,
            "rejected": ledger.books.rejected,
            "adopted": ledger.books.adopted - ledger.books.returned,
            "placed_again": ledger.books.placed_again,
            "moved": None,
            "slow_closed": sums["slow_closed"],
            "workers_restarted": fleet.restarts,
        },
        "others": [_describe_worker(worker, figures.get(worker.id), now) for worker in _others(fleet)],
    }


def _others(fleet: Fleet) -> list[Worker]:
    """Return the workers that are in no slot: candidates of a reload, and those whose slot has another or is gone."""
    seated = {slot.worker for slot in fleet.slots}
    others = (worker for worker in fleet.workers.values() if worker.id not in seated)
    return sorted(others, key=lambda worker: (worker.slot, worker.id))


def _describe_slot(number: int, fleet: Fleet, figures: dict[int, Figures], now: float) -> dict[str, Any]:
    slot = fleet.slots[number]
    worker = fleet.workers.get(slot.worker) if slot.worker is not None else None
    if worker is not None:
        return _describe_worker(worker, figures.get(worker.id), now)
    return dict.fromkeys(KEYS) | {"slot": number, "state": "failed" if slot.failed else "exited"}


def _describe_worker(worker: Worker, known: Figures | None, now: float) -> dict[str, Any]:
    described: dict[str, Any] = dict.fromkeys(KEYS)
    described |= {"slot": worker.slot, "id": worker.id, "state": worker.state.value, "phase": worker.phase}
    described["uptime_seconds"] = round(now - worker.spawned_at, 3)
    if known is None:
        return described
    described["pid"] = known.pid
    stats = known.stats
    if stats is None:
        return described
    return described | {
        "connections": stats.connections,
        "adopted": stats.adopted,
        "messages_in": stats.messages_in,
        "messages_out": stats.messages_out,
        "rooms": stats.rooms,
        "loop_lag_seconds": round(stats.loop_lag_seconds, 6),
        "cpu_cores": known.cpu_cores,
        "rss_bytes": stats.rss_bytes,
    }
