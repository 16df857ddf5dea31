"""`wscluster status --json`: its shape, None for what is not known, and totals that never fall."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wscluster.gateway.fleet import Fleet
from wscluster.gateway.fleet_words import BecameReady, Exited, ReloadAsked, StopAsked, StopForced, Ticked
from wscluster.gateway.handoff import Ledger
from wscluster.gateway.placement import ByAddress
from wscluster.gateway.status import CPU_WINDOW_SECONDS, KNOWN, SUMMED, Figures, PrimaryFacts, Totals, build_status
from wscluster.packets import Offered, Stats

FACTS = PrimaryFacts(
    pid=1,
    version="0.1.0",
    started_at=100.0,
    listeners=("127.0.0.1:8000", "[::1]:8000"),
    sticky=("ip",),
    bus_url="unix:///run/bus.sock",
    bus_private=True,
)
UNKNOWN = dict.fromkeys(
    ("id", "pid", "phase", "uptime_seconds", "connections", "adopted", "messages_in", "messages_out", "rooms",
     "loop_lag_seconds", "cpu_cores", "rss_bytes")
)  # fmt: skip


class Cluster:
    """The pure parts that a status is made of, moved by hand."""

    def __init__(self, slots: int = 1) -> None:
        self.fleet = Fleet(slots, 60.0, 30.0, 30.0)
        self.ledger = Ledger(slots, ByAddress(slots), 2.0, 100.0)
        self.figures: dict[int, Figures] = {}
        self.totals = Totals()
        self.fleet.handle(Ticked(), 100.0)

    def become_ready(self, worker: int, stats: Stats | None = None, now: float = 101.0) -> None:
        self.fleet.handle(BecameReady(worker), now)
        self.ledger.route(self.fleet.workers[worker].slot, worker)
        self.figures[worker] = Figures(1000 + worker)
        if stats is not None:
            self.figures[worker].update(stats, now)

    def exit(self, worker: int, now: float = 105.0) -> None:
        if worker in self.figures:
            self.totals.retire(self.figures.pop(worker).stats)
        self.fleet.handle(Exited(worker, -9, 0.0), now)

    def status(self, now: float = 110.0, facts: PrimaryFacts = FACTS) -> dict[str, Any]:
        return build_status(facts, self.fleet, self.ledger, self.figures, self.totals, now)


def test_the_status_is_that_of_the_contract() -> None:
    cluster = Cluster()
    stats = Stats(
        connections=5, adopted=9, messages_in=7, messages_out=8, rooms=1, loop_lag_seconds=0.0003, cpu_seconds=1.0,
        rss_bytes=41_000_000, published=3, delivered=12, gaps=1, ignored=4, slow_closed=2, bus_connected=True,
    )  # fmt: skip
    cluster.become_ready(1, stats)
    cluster.ledger.accept([Offered(number, "192.0.2.1", 1) for number in range(1, 10)], 101.0)
    cluster.ledger.adopt(1, range(1, 9))
    cluster.ledger.refuse(1, [9], 101.0)
    status = cluster.status()
    assert status == {
        "primary": {
            "pid": 1,
            "version": "0.1.0",
            "uptime_seconds": 10.0,
            "listeners": ["127.0.0.1:8000", "[::1]:8000"],
            "sticky": ["ip"],
            "phase": 1,
        },
        "workers": [
            {
                "slot": 0,
                "id": 1,
                "pid": 1001,
                "state": "ready",
                "phase": 1,
                "uptime_seconds": 10.0,
                "connections": 5,
                "adopted": 9,
                "messages_in": 7,
                "messages_out": 8,
                "rooms": 1,
                "loop_lag_seconds": 0.0003,
                "cpu_cores": None,
                "rss_bytes": 41_000_000,
            }
        ],
        "bus": {
            "url": "unix:///run/bus.sock",
            "private": True,
            "connected": True,
            "published": 3,
            "delivered": 12,
            "gaps": 1,
            "ignored": 4,
        },
        "totals": {
            "connections": 5,
            "accepted": 9,
            "rejected": 1,
            "adopted": 8,
            "placed_again": 0,
            "moved": None,
            "slow_closed": 2,
            "workers_restarted": 0,
        },
        "others": [],
    }
    assert json.loads(json.dumps(status)) == status


def test_the_keys_keep_the_order_of_the_contract_for_a_person_who_reads_them() -> None:
    cluster = Cluster()
    before = cluster.status()
    cluster.become_ready(1, Stats())
    for status in (before, cluster.status()):
        assert list(status) == ["primary", "workers", "bus", "totals", "others"]
        assert list(status["workers"][0])[:4] == ["slot", "id", "pid", "state"]


def test_candidates_and_workers_that_drain_stand_beside_the_slots() -> None:
    cluster = Cluster(2)
    for worker in (1, 2):
        cluster.become_ready(worker, Stats())
    cluster.fleet.handle(ReloadAsked(), 101.0)
    shown = [(one["slot"], one["id"], one["state"]) for one in cluster.status()["others"]]
    assert shown == [(0, 3, "candidate")]
    cluster.become_ready(3, Stats())
    shown = [(one["slot"], one["id"], one["state"]) for one in cluster.status()["others"]]
    assert shown == [(0, 1, "draining"), (1, 4, "candidate")]


# What is not known


def test_a_worker_that_has_not_beaten_yet_is_known_by_its_process_alone() -> None:
    cluster = Cluster(2)
    cluster.figures[1] = Figures(1001)
    starting, unseen = cluster.status()["workers"]
    known = {"slot": 0, "id": 1, "pid": 1001, "state": "starting", "phase": 1, "uptime_seconds": 10.0}
    assert starting == UNKNOWN | known
    assert unseen == UNKNOWN | {"slot": 1, "id": 2, "state": "starting", "phase": 1, "uptime_seconds": 10.0}
    assert cluster.status()["totals"]["connections"] == 0


def test_a_slot_without_a_worker_is_exited_and_one_that_gave_up_is_failed() -> None:
    cluster = Cluster(2)
    cluster.become_ready(1, Stats())
    cluster.exit(2)
    assert cluster.status()["workers"][1] == UNKNOWN | {"slot": 1, "state": "exited"}
    now = 200.0
    while not cluster.fleet.slots[1].failed:
        cluster.fleet.handle(Ticked(), now := now + 10)
        worker = cluster.fleet.slots[1].worker
        assert worker is not None
        if 1 in cluster.fleet.workers:
            cluster.exit(worker, now)
    assert cluster.status()["workers"][1] == UNKNOWN | {"slot": 1, "state": "failed"}


@pytest.mark.parametrize(("stop", "state"), [(StopAsked(), "draining"), (StopForced(), "killed")])
def test_the_state_is_that_of_the_worker(stop: StopAsked | StopForced, state: str) -> None:
    cluster = Cluster()
    cluster.become_ready(1, Stats())
    cluster.fleet.handle(stop, 102.0)
    assert cluster.status()["workers"][0]["state"] == state


def test_what_a_kind_of_target_cannot_know_stays_none() -> None:
    cluster = Cluster()
    cluster.become_ready(1, Stats(messages_in=None, messages_out=None, rooms=None, rss_bytes=1))
    (worker,) = cluster.status()["workers"]
    assert (worker["messages_in"], worker["messages_out"], worker["rooms"]) == (None, None, None)
    assert (worker["connections"], worker["adopted"], worker["loop_lag_seconds"]) == (0, 0, 0.0)


@pytest.mark.parametrize(
    ("seen", "connected"),
    [
        ([None, None], False),
        ([True, None], True),
        ([True, True], True),
        ([True, False], False),
        ([False, None], False),
    ],
)
def test_the_bus_is_connected_where_every_worker_that_uses_it_is(seen: list[bool | None], connected: bool) -> None:
    cluster = Cluster(len(seen))
    for worker, bus_connected in enumerate(seen, start=1):
        cluster.become_ready(worker, Stats(bus_connected=bus_connected))
    assert cluster.status()["bus"]["connected"] is connected


# CPU


def test_the_cpu_share_is_measured_over_a_window_and_unknown_before() -> None:
    figures = Figures(1)
    figures.update(Stats(cpu_seconds=1.0), 10.0)
    figures.update(Stats(cpu_seconds=1.1), 10.0 + CPU_WINDOW_SECONDS / 2)
    assert figures.cpu_cores is None
    figures.update(Stats(cpu_seconds=1.25), 10.5)
    assert figures.cpu_cores == 0.5
    figures.update(Stats(cpu_seconds=9.0), 10.6)  # too soon after: a Poll was answered
    assert figures.cpu_cores == 0.5
    figures.update(Stats(cpu_seconds=1.35), 11.5)
    assert figures.cpu_cores == 0.1


# Totals


def test_totals_do_not_fall_when_a_worker_exits_and_its_replacement_begins_at_nothing() -> None:
    cluster = Cluster(2)
    counted = Stats(connections=4, published=10, delivered=20, gaps=3, slow_closed=5)
    cluster.become_ready(1, counted)
    cluster.become_ready(2, Stats(published=1, delivered=1))
    before = cluster.status()
    cluster.exit(1)
    after = cluster.status()
    assert after["bus"] == before["bus"] | {"connected": False}
    assert after["bus"]["published"] == 11
    assert after["totals"]["slow_closed"] == 5
    assert after["totals"]["connections"] == 0
    cluster.fleet.handle(Ticked(), 106.0)
    cluster.become_ready(3, Stats(published=2), 107.0)
    assert cluster.status()["bus"]["published"] == 13
    assert cluster.status()["totals"]["workers_restarted"] == 1


def test_a_worker_that_never_beat_adds_nothing_when_it_exits() -> None:
    totals = Totals()
    totals.retire(Figures(1).stats)
    assert totals.sum([]) == dict.fromkeys((*SUMMED, *KNOWN), 0)


beats = st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.integers(0, 9), st.booleans()), max_size=40)


@given(beats)
def test_no_total_ever_falls(beats: list[tuple[int, int, bool]]) -> None:
    """Workers count upwards; now and then one exits, and its replacement counts from nothing."""
    live: dict[int, Figures] = {}
    totals, last = Totals(), dict.fromkeys(SUMMED, 0)
    for now, (worker, more, exits) in enumerate(beats):
        figures = live.setdefault(worker, Figures(worker))
        had = figures.stats or Stats()
        figures.update(Stats(published=had.published + more, slow_closed=had.slow_closed + more), float(now))
        if exits:
            totals.retire(live.pop(worker).stats)
        summed = totals.sum([known.stats for known in live.values() if known.stats is not None])
        assert all(summed[name] >= last[name] for name in SUMMED)
        last = summed
    assert last["published"] == last["slow_closed"] == sum(more for _, more, _ in beats)
