"""Random lives of the ledger: no connection is lost or handed twice under any interleaving of events."""

import json
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from wscluster.gateway import handoff
from wscluster.gateway.carried import decode, encode
from wscluster.gateway.handoff import Books, Command, HandOff, Ledger, Reject, Release
from wscluster.gateway.placement import Chooser, make_chooser
from wscluster.packets import Offered

SLOTS, WAIT = 3, 2.0
WINDOW, MAX_QUEUE = 4, 6
"""Small, so that a short life reaches the bounds."""

HOSTS = [f"198.51.100.{number}" for number in range(6)]
QUEUED, RELEASED, REJECTED = "queued", "released", "rejected"
picks = st.integers(0, 99)


class LedgerLives(RuleBasedStateMachine):
    """Plays the workers, and keeps its own account of each connection from the commands alone."""

    def __init__(self) -> None:
        super().__init__()
        self.bounds = mock.patch.multiple(handoff, WINDOW=WINDOW, MAX_QUEUE=MAX_QUEUE)
        self.bounds.start()
        self.now = 0.0
        self.where: dict[int, str | int] = {}  # what has become of each number; a worker's id: offered to it
        self.refused: set[tuple[int, int]] = set()
        self.last_worker = 100
        self.slot_of: dict[int, int] = {}  # of each worker with a link
        self.routed: dict[int, int] = {}
        self.slots = SLOTS
        self.down_since = dict.fromkeys(range(self.slots), 0.0)
        self.failed: set[int] = set()
        self.adopted_by: dict[int, int] = {}
        self.stopped = False
        self.returned = 0
        self.released_by: dict[int, list[int]] = {}

    @initialize(kind=st.sampled_from(["ip", "ip", "least-connections", "round-robin", "random"]))
    def begin(self, kind: str) -> None:
        self.kind: tuple[str, str | None] = ("ip", None) if kind == "ip" else ("none", kind)
        sticky, balance = self.kind
        self.chooser: Chooser = make_chooser(sticky, balance, self.slots)
        self.ledger = Ledger(self.slots, self.chooser, WAIT, 0.0)

    @rule()
    def upgrade(self) -> None:
        """Another process goes on with what this one has written down; nobody can tell."""
        before, chooser = self.ledger, self.ledger._chooser
        self.ledger = Ledger(1, chooser, WAIT, 0.0)
        self.ledger.resume(decode(Books, json.loads(json.dumps(encode(before.books)))), chooser)
        assert self.ledger.books == before.books

    def teardown(self) -> None:
        """At the end of all links everything is accounted for."""
        try:
            if hasattr(self, "ledger"):
                self.stop()
                for worker in list(self.slot_of):
                    self.end(worker)
                assert set(self.where.values()) <= {RELEASED, REJECTED}
                assert self.ledger.pending() == 0
        finally:
            self.bounds.stop()

    # Commands

    def take(self, commands: list[Command]) -> None:
        touched = set()
        for command in commands:
            match command:
                case HandOff(worker, connections):
                    slot = self.slot_of[worker]
                    assert self.routed.get(slot) == worker, "handed to a worker that is not routed to"
                    assert connections
                    assert slot not in touched, "two packets where one does"
                    touched.add(slot)
                    numbers = tuple(offered.number for offered in connections)
                    waiting = [pending.offered.number for pending in self.ledger.books.slots[slot].queue]
                    assert list(numbers) == sorted(numbers)
                    assert not waiting or numbers[-1] < min(waiting), "a younger one was handed off first"
                    for number in numbers:
                        assert self.where[number] == QUEUED
                        assert (worker, number) not in self.refused
                        self.where[number] = worker
                case Release(numbers):
                    assert numbers
                    for number in numbers:
                        assert isinstance(self.where[number], int)
                        self.where[number] = RELEASED
                case Reject(numbers):
                    assert numbers
                    for number in numbers:
                        assert self.where[number] == QUEUED
                        self.where[number] = REJECTED
                    self.check_reason(numbers, commands)

    def candidates(self, number: int) -> list[int]:
        """The slots that may serve the connection now or soon, in no order."""
        return [
            slot
            for slot in range(self.slots)
            if slot not in self.failed
            and (
                (self.routed[slot], number) not in self.refused
                if slot in self.routed
                else self.now < self.down_since[slot] + WAIT
            )
        ]

    def check_reason(self, numbers: tuple[int, ...], commands: list[Command]) -> None:
        full = any(len(slot.queue) == MAX_QUEUE for slot in self.ledger.books.slots)
        handed = any(isinstance(command, HandOff) for command in commands)
        for number in numbers:
            assert self.stopped or full or handed or not self.candidates(number), "rejected for no reason"

    def offered_to(self, worker: int) -> list[int]:
        return [number for number, where in self.where.items() if where == worker]

    # Events

    @rule(hosts=st.lists(st.sampled_from(HOSTS), min_size=1, max_size=MAX_QUEUE))
    def accept(self, hosts: list[str]) -> None:
        first = len(self.where) + 1
        batch = [Offered(number, host, 1) for number, host in enumerate(hosts, first)]
        for offered in batch:
            self.where[offered.number] = QUEUED
        self.take(self.ledger.accept(batch, self.now))
        for offered in batch if self.chooser.sticky else ():
            if self.where[offered.number] != REJECTED:
                able = self.candidates(offered.number)
                order = self.chooser(offered.number, offered.host, ())
                assert self.slot_that_has(offered.number) == next(slot for slot in order if slot in able)

    def slot_that_has(self, number: int) -> int:
        where = self.where[number]
        if isinstance(where, int):
            return self.slot_of[where]
        (slot,) = (
            slot
            for slot, state in enumerate(self.ledger.books.slots)
            if number in [pending.offered.number for pending in state.queue]
        )
        return slot

    @rule(pick=picks)
    def route(self, pick: int) -> None:
        """Also over a worker that is still there, and to a slot that was given up, as a reload does it."""
        slot = pick % self.slots
        self.failed.discard(slot)
        self.last_worker += 1
        self.slot_of[self.last_worker] = slot
        self.routed[slot] = self.last_worker
        self.adopted_by[self.last_worker] = 0
        self.take(self.ledger.route(slot, self.last_worker))

    @precondition(lambda self: self.routed)
    @rule(pick=picks)
    def unroute(self, pick: int) -> None:
        slot = sorted(self.routed)[pick % len(self.routed)]
        worker = self.routed.pop(slot)
        self.down_since[slot] = self.now
        self.take(self.ledger.unroute(slot, worker, self.now))

    @precondition(lambda self: self.slot_of)
    @rule(pick=picks, which=st.lists(picks, max_size=6), foreign=st.booleans())
    def adopt(self, pick: int, which: list[int], foreign: bool) -> None:
        worker = list(self.slot_of)[pick % len(self.slot_of)]
        numbers = self.some(worker, which)
        self.adopted_by[worker] += len(set(numbers))
        self.take(self.ledger.adopt(worker, [*numbers, *([10_000] if foreign else [])]))
        assert all(self.where[number] == RELEASED for number in numbers)
        self.released_by.setdefault(worker, []).extend(set(numbers))

    @precondition(lambda self: any(self.released_by.get(worker) for worker in self.slot_of))
    @rule(pick=picks, count=st.integers(1, 4))
    def give_back(self, pick: int, count: int) -> None:
        """What it had adopted comes back under new numbers."""
        able = [worker for worker in self.slot_of if self.released_by.get(worker)]
        worker = able[pick % len(able)]
        back = [self.released_by[worker].pop() for _ in range(min(count, len(self.released_by[worker])))]
        new = [Offered(number, HOSTS[0], 1) for number in range(len(self.where) + 1, len(self.where) + 1 + len(back))]
        for offered in new:
            self.where[offered.number] = QUEUED
            self.refused.add((worker, offered.number))
        self.returned += len(new)
        self.take(self.ledger.give_back(worker, new, self.now))

    @precondition(lambda self: self.slot_of)
    @rule(pick=picks, which=st.lists(picks, min_size=1, max_size=6))
    def refuse(self, pick: int, which: list[int]) -> None:
        worker = list(self.slot_of)[pick % len(self.slot_of)]
        numbers = self.some(worker, which)
        for number in numbers:
            self.where[number] = QUEUED
            self.refused.add((worker, number))
        self.take(self.ledger.refuse(worker, numbers, self.now))

    def some(self, worker: int, which: list[int]) -> list[int]:
        """Some of what the worker was offered, in any order and perhaps twice."""
        offered = self.offered_to(worker)
        return [offered[pick % len(offered)] for pick in which] if offered else []

    @precondition(lambda self: self.slot_of)
    @rule(pick=picks)
    def end_of_link(self, pick: int) -> None:
        self.end(list(self.slot_of)[pick % len(self.slot_of)])

    def end(self, worker: int) -> None:
        for number in self.offered_to(worker):
            self.where[number] = QUEUED
        slot = self.slot_of.pop(worker)
        if self.routed.get(slot) == worker:
            del self.routed[slot]
            self.down_since[slot] = self.now
        self.take(self.ledger.end(worker, self.now))

    @precondition(lambda self: len(self.failed | self.routed.keys()) < self.slots and len(self.failed) < self.slots - 1)
    @rule(pick=picks)
    def fail_slot(self, pick: int) -> None:
        able = sorted(set(range(self.slots)) - self.failed - self.routed.keys())
        slot = able[pick % len(able)]
        self.failed.add(slot)
        self.take(self.ledger.fail_slot(slot, self.now))

    @rule(slots=st.integers(1, 5))
    def resize(self, slots: int) -> None:
        """As a fleet does it: what goes takes nothing new any more, and one that stays can serve."""
        gone = [slot for slot in self.routed if slot >= slots]
        if not any(slot < slots for slot in self.routed):
            return
        for slot in gone:
            self.take(self.ledger.unroute(slot, self.routed.pop(slot), self.now))
        new = range(self.slots, slots)
        self.failed = {slot for slot in self.failed if slot < slots} | set(new)
        self.down_since = {slot: self.down_since.get(slot, self.now) for slot in range(slots)}
        self.slots = slots
        self.chooser = make_chooser(*self.kind, slots)
        self.take(self.ledger.resize(slots, self.chooser, self.now))

    @precondition(lambda self: self.slot_of)
    @rule(pick=picks, connections=st.integers(0, 50), unread=st.integers(0, 3))
    def report(self, pick: int, connections: int, unread: int) -> None:
        """A beat tells of no more adoptions than the worker has told before: packets keep their order."""
        worker = list(self.slot_of)[pick % len(self.slot_of)]
        told = max(0, self.adopted_by[worker] - unread)
        self.ledger.report(worker, connections, told)

    @precondition(lambda self: len(self.where) > 30)
    @rule()
    def stop(self) -> None:
        self.stopped = True
        self.take(self.ledger.stop(self.now))

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.9, 2.0, 5.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.ledger.tick(self.now))

    @precondition(lambda self: self.ledger.next_deadline() is not None)
    @rule()
    def reach_the_deadline(self) -> None:
        self.now = max(self.now, self.ledger.next_deadline() or 0.0)
        self.take(self.ledger.tick(self.now))
        due = self.ledger.next_deadline()
        assert due is None or due > self.now, "the primary would spin"

    # What always holds

    @invariant()
    def every_connection_is_in_one_place(self) -> None:
        if not hasattr(self, "ledger"):
            return
        ledger, values = self.ledger, list(self.where.values())
        assert ledger.books.accepted == len(values) - self.returned
        assert ledger.books.returned == self.returned
        assert ledger.books.adopted == values.count(RELEASED)
        assert ledger.books.rejected == values.count(REJECTED)
        assert (
            ledger.pending()
            == ledger.books.accepted + ledger.books.returned - ledger.books.adopted - ledger.books.rejected
        )
        queued = [pending.offered.number for slot in ledger.books.slots for pending in slot.queue]
        assert sorted(queued) == sorted(number for number, where in self.where.items() if where == QUEUED)
        assert ledger.books.workers.keys() == self.slot_of.keys()
        for worker, state in ledger.books.workers.items():
            assert sorted(state.offered) == self.offered_to(worker)
            assert len(state.offered) <= WINDOW
        assert all(load >= 0 for load in ledger.loads())

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        if not hasattr(self, "ledger"):
            return
        for number, slot in enumerate(self.ledger.books.slots):
            waiting = [pending.offered.number for pending in slot.queue]
            assert waiting == sorted(waiting)
            assert len(waiting) <= MAX_QUEUE
            assert not waiting or not (self.stopped or number in self.failed)
            if waiting and number in self.routed:
                assert len(self.offered_to(self.routed[number])) == WINDOW
                assert not any((self.routed[number], one) in self.refused for one in waiting)


TestLedgerLives = LedgerLives.TestCase
TestLedgerLives.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
