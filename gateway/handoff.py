"""The ledger of the handoff: every connection that was accepted and is not adopted yet.

The rule: a connection is released when its worker has adopted it, and placed again when that worker has refused it or
its link has ended, **never on a deadline**, because an offered socket cannot be recalled from a worker that is only
slow. A slot's queue and a worker's window are bounded; beyond them a connection is rejected.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from wscluster.gateway.placement import Chooser
from wscluster.packets import Offered

WINDOW = 32
"""Connections that one worker may have been offered and not yet adopted."""

MAX_QUEUE = 1024
"""Connections that wait for one slot; one more, and the newest is rejected."""


@dataclass(frozen=True, slots=True)
class HandOff:
    """Command: send these to ``worker`` in one packet; keep the sockets."""

    worker: int
    connections: tuple[Offered, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """Command: these are adopted, close the primary's copies."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reject:
    """Command: nobody can serve these, tell the clients."""

    numbers: tuple[int, ...]


Command = HandOff | Release | Reject


@dataclass(slots=True)
class _Pending:
    offered: Offered
    refused_by: frozenset[int] = frozenset()
    number: int = field(init=False)
    """The connection's number, and its age: numbers grow."""

    def __post_init__(self) -> None:
        self.number = self.offered.number


_number_of = attrgetter("number")


@dataclass(slots=True)
class _Slot:
    worker: int | None = None
    down_since: float = 0.0
    failed: bool = False
    queue: list[_Pending] = field(default_factory=list)


@dataclass(slots=True)
class _Worker:
    slot: int
    offered: dict[int, _Pending] = field(default_factory=dict)
    adopted: int = 0
    reported: tuple[int, int] = (0, 0)

    def open_connections(self) -> int:
        """Connections at the last beat, and those adopted since."""
        connections, adopted = self.reported
        return connections + self.adopted - adopted


@dataclass(slots=True)
class Books:
    """All that a ledger remembers."""

    slots: list[_Slot]
    workers: dict[int, _Worker] = field(default_factory=dict)
    stopping: bool = False
    accepted: int = 0
    adopted: int = 0
    rejected: int = 0
    placed_again: int = 0
    refused: int = 0
    returned: int = 0
    """Of those that were adopted: they are adopted once more, or rejected."""


class Ledger:
    """Places connections and keeps account of them. Each method is an event and returns the commands that follow.

    Args:
        slots: Number of slots.
        chooser: Orders the slots for a connection.
        slot_wait: Seconds for which connections wait for a slot that has no worker.
        now: Seconds on the caller's clock.

    Attributes:
        books: What it remembers; another ledger may go on with it.
    """

    def __init__(self, slots: int, chooser: Chooser, slot_wait: float, now: float) -> None:
        self.books = Books([_Slot(down_since=now) for _ in range(slots)])
        self._chooser = chooser
        self.slot_wait = slot_wait

    def resume(self, books: Books, chooser: Chooser) -> None:
        """Go on with what another ledger remembers, of as many slots as ``chooser`` orders."""
        self.books = books
        self._chooser = chooser

    # Events

    def accept(self, connections: Iterable[Offered], now: float) -> list[Command]:
        """New connections, oldest first."""
        touched: set[int] = set()
        rejected: list[int] = []
        for offered in connections:
            self.books.accepted += 1
            self._place(_Pending(offered), now, touched, rejected)
        return self._commands(touched, rejected)

    def route(self, slot: int, worker: int) -> list[Command]:
        """From now on the slot's connections go to ``worker``, which is ready; a slot that was given up is one again.

        What another worker of the slot was offered stays that one's own until it answers or its link ends.
        """
        state = self.books.slots[slot]
        state.worker, state.failed = worker, False
        self.books.workers.setdefault(worker, _Worker(slot))
        return self._commands({slot}, [])

    def unroute(self, slot: int, worker: int, now: float) -> list[Command]:
        """``worker`` takes nothing new; what it was offered is still its own until it answers or its link ends."""
        state = self.books.slots[slot] if slot < len(self.books.slots) else None  # else it was scaled away
        if state is not None and state.worker == worker:
            state.worker = None
            state.down_since = now
        return []

    def adopt(self, worker: int, numbers: Iterable[int]) -> list[Command]:
        """``worker`` has adopted these; what it was not offered, or has answered before, changes nothing."""
        state = self.books.workers[worker]
        released = tuple(number for number in numbers if state.offered.pop(number, None) is not None)
        state.adopted += len(released)
        self.books.adopted += len(released)
        commands = self._commands({state.slot}, [])
        return [Release(released), *commands] if released else commands

    def refuse(self, worker: int, numbers: Iterable[int], now: float) -> list[Command]:
        """``worker`` gives these back, unread."""
        state = self.books.workers[worker]
        refused = [state.offered.pop(number) for number in numbers if number in state.offered]
        self.books.refused += len(refused)
        for pending in refused:
            pending.refused_by |= {worker}
        return self._place_again(refused, {state.slot}, now)

    def give_back(self, worker: int, connections: Iterable[Offered], now: float) -> list[Command]:
        """``worker`` had adopted these, under other numbers, and they are unread: place them again, elsewhere."""
        returned = [_Pending(offered, frozenset({worker})) for offered in connections]
        self.books.returned += len(returned)
        return self._place_again(returned, set(), now)

    def end(self, worker: int, now: float) -> list[Command]:
        """The link of ``worker`` has ended, and its last packet was read: what it did not adopt is unread."""
        state = self.books.workers.pop(worker, None)
        if state is None:
            return []
        self.unroute(state.slot, worker, now)
        return self._place_again(list(state.offered.values()), set(), now)

    def fail_slot(self, slot: int, now: float) -> list[Command]:
        """The slot was given up: nobody waits for it any more."""
        self.books.slots[slot].failed = True
        return self._empty([slot], now)

    def resize(self, slots: int, chooser: Chooser, now: float) -> list[Command]:
        """There are ``slots`` slots from now on, ordered by ``chooser``.

        A new slot is passed over until its first `route`. What waits for one that is gone is placed again; what the
        worker of one was offered stays that one's own until it answers or its link ends.
        """
        self._chooser = chooser
        waiting = [pending for slot in self.books.slots[slots:] for pending in slot.queue]
        del self.books.slots[slots:]
        self.books.slots += [_Slot(failed=True, down_since=now) for _ in range(slots - len(self.books.slots))]
        touched: set[int] = set()
        rejected: list[int] = []
        for pending in waiting:
            self._place(pending, now, touched, rejected)
        return self._commands(touched, rejected)

    def report(self, worker: int, connections: int, adopted: int) -> None:
        """A beat of ``worker``: its open connections, and how many it has adopted in all."""
        if worker in self.books.workers:  # else it is not ready yet, or its link has ended
            self.books.workers[worker].reported = (connections, adopted)

    def stop(self, now: float) -> list[Command]:
        """Nothing is placed any more: what waits is rejected, and what comes back too."""
        self.books.stopping = True
        return self._empty(range(len(self.books.slots)), now)

    def tick(self, now: float) -> list[Command]:
        """Send on what has waited `slot_wait` for a slot without a worker."""
        due = [
            number
            for number, slot in enumerate(self.books.slots)
            if slot.worker is None and slot.queue and slot.down_since + self.slot_wait <= now
        ]
        return self._empty(due, now) if due else []

    def next_deadline(self) -> float | None:
        """When `tick` has something to do; None where nothing waits for a slot without a worker."""
        return min(
            (slot.down_since + self.slot_wait for slot in self.books.slots if slot.worker is None and slot.queue),
            default=None,
        )

    def order(self, host: str) -> Sequence[int]:
        """Return the slots in the order of the client ``host``, where clients belong to slots."""
        return self._chooser(0, host, self.loads())

    def loads(self) -> list[int]:
        """Connections of each slot: open, offered and waiting."""
        return [self._load(slot) for slot in self.books.slots]

    def waiting(self) -> list[int]:
        """Connections that wait for each slot."""
        return [len(slot.queue) for slot in self.books.slots]

    def offered(self) -> int:
        """Connections that workers were offered and have not answered for."""
        return sum(len(worker.offered) for worker in self.books.workers.values())

    def pending(self) -> int:
        """Number of connections that are neither adopted nor rejected."""
        return sum(self.waiting()) + self.offered()

    # Decisions

    def _load(self, slot: _Slot) -> int:
        load = len(slot.queue)
        if slot.worker is not None:
            worker = self.books.workers[slot.worker]
            load += len(worker.offered) + worker.open_connections()
        return load

    def _choose(self, pending: _Pending, now: float) -> int | None:
        """Return the first slot of the connection's order that serves it, or will soon enough.

        A full slot is passed over only where no client belongs to one.
        """
        sticky = self._chooser.sticky
        offered = pending.offered
        order = self._chooser(offered.number, offered.host, () if sticky else self.loads())
        soon: int | None = None
        for number in order:
            slot = self.books.slots[number]
            if slot.failed or (not sticky and len(slot.queue) >= MAX_QUEUE):
                continue
            if slot.worker is not None:
                if slot.worker not in pending.refused_by:
                    return number
            elif now < slot.down_since + self.slot_wait:
                if sticky:
                    return number
                if soon is None:
                    soon = number
        return soon

    def _place(self, pending: _Pending, now: float, touched: set[int], rejected: list[int]) -> None:
        number = None if self.books.stopping else self._choose(pending, now)
        if number is not None:
            queue = self.books.slots[number].queue
            # Oldest first, also where a connection comes back from a worker or from another slot.
            insort(queue, pending, key=_number_of)
            touched.add(number)
            if len(queue) <= MAX_QUEUE:
                return
            pending = queue.pop()
        self.books.rejected += 1
        rejected.append(pending.number)

    def _place_again(self, returned: list[_Pending], touched: set[int], now: float) -> list[Command]:
        """Place what came back, ahead of everything newer."""
        rejected: list[int] = []
        for pending in returned:
            self._place(pending, now, touched, rejected)
        self.books.placed_again += sum(pending.number not in rejected for pending in returned)
        return self._commands(touched, rejected)

    def _empty(self, slots: Iterable[int], now: float) -> list[Command]:
        touched: set[int] = set()
        rejected: list[int] = []
        for number in slots:
            waiting, self.books.slots[number].queue = self.books.slots[number].queue, []
            for pending in waiting:
                self._place(pending, now, touched, rejected)
        return self._commands(touched, rejected)

    def _commands(self, touched: Iterable[int], rejected: list[int]) -> list[Command]:
        """Offer what waits for the ``touched`` slots as far as the windows reach."""
        commands: list[Command] = []
        for number in sorted(touched):
            if number >= len(self.books.slots):  # of a worker whose slot was scaled away
                continue
            slot = self.books.slots[number]
            if slot.worker is None or not slot.queue:
                continue
            worker = self.books.workers[slot.worker]
            batch = slot.queue[: WINDOW - len(worker.offered)]
            if batch:
                del slot.queue[: len(batch)]
                worker.offered.update((pending.number, pending) for pending in batch)
                commands.append(HandOff(slot.worker, tuple(pending.offered for pending in batch)))
        if rejected:
            commands.append(Reject(tuple(rejected)))
        return commands
