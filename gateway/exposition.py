"""`/metrics`: what the primary knows as Prometheus text, written by prometheus-client, its only import."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from wscluster.gateway.sums import Sum

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SIZE_BITS = (6, 8, 10, 12, 14, 16, 18, 20, 24)
"""Upper bounds of message sizes: 63, 255, 1,023 … bytes."""

COUNTERS = {
    "messages_in": "Messages that handlers were sent.",
    "messages_out": "Messages that handlers and rooms have sent.",
    "published": "Messages published to rooms by this cluster.",
    "delivered": "Messages of rooms that members were sent.",
    "gaps": "Gaps in a room's messages that were told.",
    "ignored": "Messages on the bus that were none.",
    "slow_closed": "Members that were closed because they did not read.",
    "bus_losses": "Connections to the bus that were lost.",
}
LEDGER = {
    "accepted": "Connections that the primary has accepted.",
    "adopted": "Connections that workers have adopted.",
    "rejected": "Connections that nobody could serve, or that were over a limit.",
    "refused": "Connections that a worker gave back before it had adopted them.",
    "returned": "Connections that a draining worker gave back, unread.",
    "placed_again": "Connections that were placed a second time.",
}
WORKER_GAUGES = {
    "connections": "Open connections.",
    "rooms": "Rooms with a member.",
    "loop_lag_seconds": "How late the event loop was at the last beat.",
    "cpu_cores": "CPU cores in use.",
    "rss_bytes": "Resident memory.",
}
WORKER_COUNTERS = {
    "adopted": "Connections that this worker has adopted.",
    "messages_in": "Messages that this worker's handlers were sent.",
    "messages_out": "Messages that this worker has sent.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is shown.

    Attributes:
        status: That of `build_status`.
        counters: Sums over all workers there ever were; None is not known.
        ledger: Counters of the handoff.
        waiting: Connections that wait for a slot's worker, for each slot.
        probes: For each slot whose worker has sent one, what the last PING took that the bus has answered.
        offered: Connections that were offered and are not adopted yet.
        sizes: For messages in and out: how many have a length of so many bits, and the sum of their bytes.
        handoff: Counts, bounds and sum of the seconds from accept to adoption.
        application: The program's own numbers.
    """

    status: dict[str, Any]
    counters: dict[str, int | None]
    ledger: dict[str, int]
    waiting: list[int]
    probes: dict[int, float]
    offered: int
    sizes: dict[str, tuple[list[int], int]]
    handoff: tuple[list[int], tuple[float, ...], float]
    application: list[Sum]


def expose(facts: Facts) -> bytes:
    """Return the text of `/metrics`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(facts))
    return generate_latest(registry)


class _Collector:
    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def collect(self) -> Iterable[Metric]:
        yield from _cluster(self._facts)
        yield from _workers(self._facts.status)
        yield from _histograms(self._facts)
        yield from map(_application, self._facts.application)


def _cluster(facts: Facts) -> Iterator[Metric]:
    primary, totals, bus = facts.status["primary"], facts.status["totals"], facts.status["bus"]
    yield InfoMetricFamily("wscluster_build", "Version.", {"version": primary["version"]})
    yield GaugeMetricFamily("wscluster_uptime_seconds", "Since the primary has begun.", primary["uptime_seconds"])
    yield GaugeMetricFamily("wscluster_phase", "Of the last reload that reached every slot.", primary["phase"])
    yield GaugeMetricFamily("wscluster_connections", "Open connections.", totals["connections"])
    yield GaugeMetricFamily("wscluster_bus_connected", "1 where every worker with a room is.", int(bus["connected"]))
    yield GaugeMetricFamily("wscluster_offered_connections", "Offered and not adopted yet.", facts.offered)
    yield CounterMetricFamily(
        "wscluster_workers_restarted", "Workers started in place of one that had exited.", totals["workers_restarted"]
    )
    slots = GaugeMetricFamily("wscluster_slots", "Slots by the state of their worker.", labels=["state"])
    states = [worker["state"] for worker in facts.status["workers"]]
    for state in ("starting", "ready", "draining", "killed", "exited", "failed"):
        slots.add_metric([state], states.count(state))
    yield slots
    waiting = GaugeMetricFamily("wscluster_waiting_connections", "Waiting for a slot's worker.", labels=["slot"])
    for number, count in enumerate(facts.waiting):
        waiting.add_metric([str(number)], count)
    yield waiting
    probes = GaugeMetricFamily(
        "wscluster_worker_bus_probe_seconds", "What the last PING took that the bus has answered.", labels=["slot"]
    )
    for number, seconds in facts.probes.items():
        probes.add_metric([str(number)], seconds)
    yield probes
    for name, text in LEDGER.items():
        yield CounterMetricFamily(f"wscluster_{name}", text, facts.ledger[name])
    for name, text in COUNTERS.items():
        value = facts.counters[name]
        if value is not None:
            yield CounterMetricFamily(f"wscluster_{name}", text, value)


def _workers(status: dict[str, Any]) -> Iterator[Metric]:
    for names, kind in ((WORKER_GAUGES, GaugeMetricFamily), (WORKER_COUNTERS, CounterMetricFamily)):
        for name, text in names.items():
            family = kind(f"wscluster_worker_{name}", text, labels=["slot"])
            for worker in status["workers"]:
                if worker[name] is not None:
                    family.add_metric([str(worker["slot"])], worker[name])
            yield family


def _histograms(facts: Facts) -> Iterator[Metric]:
    for way, (counts, total) in facts.sizes.items():
        family = HistogramMetricFamily(f"wscluster_message_{way}_bytes", f"Size of messages, {way}.")
        bounds = [(str(float((1 << bits) - 1)), sum(counts[: bits + 1])) for bits in SIZE_BITS]
        family.add_metric([], [*bounds, ("+Inf", sum(counts))], total)
        yield family
    counts, edges, seconds = facts.handoff
    family = HistogramMetricFamily("wscluster_handoff_seconds", "From the accept of a connection to its adoption.")
    family.add_metric([], _buckets(counts, edges), seconds)
    yield family


def _application(one: Sum) -> Metric:
    kinds: dict[str, Any] = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
    text = one.help or one.name
    if one.kind == "histogram":
        histogram = HistogramMetricFamily(one.name, text, labels=one.label_names)
        for key, (counts, total) in one.values.items():
            histogram.add_metric(list(key), _buckets(counts, one.bounds), total)
        return histogram
    family: Metric = kinds[one.kind](one.name, text, labels=one.label_names)
    for key, value in one.values.items():
        family.add_metric(list(key), value)  # type: ignore[attr-defined]
    return family


def _buckets(counts: list[int], edges: Iterable[float]) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    so_far = 0
    for count, edge in zip(counts, (*map(str, map(float, edges)), "+Inf"), strict=True):
        so_far += count
        found.append((edge, so_far))
    return found
