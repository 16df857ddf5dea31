"""A rolling reload, of all slots or of one: how far it has come, and what follows from what happens to its workers.

The rule stands in `gateway/fleet.py`, and so does the table that names these transitions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wscluster.gateway.fleet_words import (
    BecameReady,
    Command,
    Exited,
    Reloaded,
    ReloadFailed,
    Reloading,
    ReplaceAsked,
    Replaced,
    ReplaceFailed,
    Replacing,
    SpawnFailed,
    State,
    Unroute,
)

if TYPE_CHECKING:
    from wscluster.gateway.fleet import Fleet

RELOAD_CODE = 1012
NO_REASON = "its worker ended before it was ready"
RESPAWN_SECONDS = 0.1
"""A slot that a failed reload leaves without a worker gets one after this time."""


@dataclass(slots=True)
class Worker:
    """What the fleet knows of one worker."""

    id: int
    slot: int
    phase: int
    spawned_at: float
    state: State = State.STARTING
    ready_at: float | None = None
    deadline: float | None = None
    boot_error: str = ""


@dataclass(slots=True)
class Slot:
    """What the fleet knows of one slot; ``worker`` is the one that it belongs to, draining ones of before aside."""

    worker: int | None = None
    failed: bool = False
    settled: bool = False
    boot_failures: int = 0
    crashes: int = 0
    respawn_at: float | None = None
    spawns: int = 0


@dataclass(slots=True)
class Rolling:
    """A reload that is under way, or the replacement of one worker, which is a reload of its slot without a new phase.

    Attributes:
        phase: Of the workers that it brings.
        left: Slots that are still to come.
        slot: The one whose turn it is; None between two.
        candidate: The worker that starts there.
        again: Another reload was asked for meanwhile.
        replaces: The worker that is to be replaced, where it is no reload of all.
    """

    phase: int
    left: list[int]
    slot: int | None = None
    candidate: int | None = None
    again: bool = False
    replaces: int | None = None

    def take_turn(self, slots: Sequence[Slot], workers: Mapping[int, Worker]) -> int | None:
        """Return the next slot that needs a worker of this phase; None where no slot does.

        A worker that came up in place of a crashed one since the reload began has the new code already; and there is
        nothing to replace where the worker that was meant is gone.
        """
        self.slot = self.candidate = None
        while self.left:
            number = self.left.pop(0)
            worker = workers.get(slots[number].worker or 0)
            if self.replaces is not None:
                wanted = worker is not None and worker.state is State.READY and worker.id == self.replaces
            else:
                wanted = worker is None or worker.state is not State.READY or worker.phase != self.phase
            if wanted:
                self.slot = number
                return number
        return None


def reload(fleet: Fleet, now: float, commands: list[Command]) -> None:
    """Begin. While one is under way another follows it, with the newest code, however often it is asked for."""
    if fleet.exit_code is not None:
        return
    if fleet.rolling is not None:
        fleet.rolling.again = True
        return
    fleet.newest_phase += 1
    fleet.rolling = Rolling(fleet.newest_phase, list(range(fleet.size)))
    commands.append(Reloading(fleet.newest_phase))
    roll_on(fleet, fleet.rolling, now, commands)


def replace(fleet: Fleet, event: ReplaceAsked, now: float, commands: list[Command]) -> None:
    """Replace one worker as soon as nothing else is under way."""
    if fleet.exit_code is None and event not in fleet.to_replace:
        fleet.to_replace.append(event)
        _replace_next(fleet, now, commands)


def _replace_next(fleet: Fleet, now: float, commands: list[Command]) -> None:
    while fleet.rolling is None and fleet.to_replace:
        event = fleet.to_replace.pop(0)
        worker = fleet.workers.get(event.worker)
        if worker is not None and worker.state is State.READY:
            fleet.rolling = Rolling(fleet.newest_phase, [worker.slot], replaces=worker.id)
            commands.append(Replacing(worker.slot, worker.id, event.why))
            roll_on(fleet, fleet.rolling, now, commands)


def roll_on(fleet: Fleet, rolling: Rolling, now: float, commands: list[Command]) -> None:
    """Go on with the next slot, or be done."""
    number = rolling.take_turn(fleet.slots, fleet.workers)
    if number is None:
        if rolling.replaces is None:
            fleet.phase = rolling.phase
            commands.append(Reloaded(rolling.phase))
        _end(fleet, rolling, now, commands)
        return
    slot = fleet.slots[number]
    worker = fleet.workers.get(slot.worker or 0)
    if worker is not None and worker.state is State.STARTING and worker.phase == rolling.phase:
        # It starts in place of one that has crashed meanwhile, and has the new code: a second one is not needed.
        slot.worker = None
        worker.state = State.CANDIDATE
    else:
        worker = fleet.spawn(number, State.CANDIDATE, now, commands)
    rolling.candidate = worker.id


def take_over(fleet: Fleet, worker: Worker, event: BecameReady, now: float, commands: list[Command]) -> None:
    """The candidate is ready: the slot is its own, and the next one's turn comes."""
    assert fleet.rolling is not None
    slot = fleet.slots[worker.slot]
    old = fleet.workers.get(slot.worker or 0)
    was_ready = old is not None and old.state is State.READY
    if old is not None and was_ready:
        commands.append(Unroute(worker.slot, old.id))
    slot.worker, slot.failed, slot.respawn_at, slot.crashes = worker.id, False, None, 0
    fleet.became_ready(worker, event, now, commands)
    if old is not None and was_ready:
        fleet.drain(old, RELOAD_CODE, now, commands)
    elif old is not None:
        fleet.kill(old, "another worker has its slot by now", commands)
    if fleet.rolling.replaces is not None:
        commands.append(Replaced(worker.slot, fleet.rolling.replaces))
    roll_on(fleet, fleet.rolling, now, commands)


def candidate_exited(
    fleet: Fleet, worker: Worker, event: Exited | SpawnFailed, now: float, commands: list[Command]
) -> None:
    """The candidate ended before it was ready."""
    why = "its process cannot be started" if isinstance(event, SpawnFailed) else worker.boot_error or NO_REASON
    fleet.exited(worker, event, now, commands)
    abort(fleet, worker, why, now, commands)


def lose(fleet: Fleet, worker: Worker, why: str, now: float, commands: list[Command]) -> None:
    """A worker that was ready is gone; where the reload under way has brought it, the others are not put at risk."""
    rolling = fleet.rolling
    if rolling is not None and rolling.replaces is None and rolling.phase == worker.phase:
        abort(fleet, worker, why, now, commands)


def abort(fleet: Fleet, worker: Worker, why: str, now: float, commands: list[Command]) -> None:
    """Go no further, because of ``worker``; what is switched stays so."""
    rolling = fleet.rolling
    if rolling is None:  # everything ends
        return
    candidate = fleet.workers.get(rolling.candidate or 0)
    if candidate is not None:
        fleet.kill(candidate, "its reload has failed", commands)
    slot = fleet.slots[rolling.slot or 0]
    if slot.worker is None and not slot.failed and slot.respawn_at is None:
        slot.respawn_at = now + RESPAWN_SECONDS
    reason = f"worker {worker.id} of slot {worker.slot}: {why}"
    if rolling.replaces is not None:
        commands.append(ReplaceFailed(worker.slot, rolling.replaces, reason))
    else:
        ready = (one for one in fleet.workers.values() if one.state is State.READY and one.phase == rolling.phase)
        commands.append(ReloadFailed(rolling.phase, reason, tuple(sorted(one.slot for one in ready))))
    _end(fleet, rolling, now, commands)


def shrink(fleet: Fleet, size: int, now: float, commands: list[Command]) -> None:
    """The slots from ``size`` on are no more: what is under way goes on without them."""
    rolling = fleet.rolling
    if rolling is None:
        return
    rolling.left = [number for number in rolling.left if number < size]
    if rolling.slot is not None and rolling.slot >= size:
        candidate = fleet.workers.get(rolling.candidate or 0)
        if candidate is not None:
            fleet.kill(candidate, "its slot is no more", commands)
        if rolling.replaces is not None:
            commands.append(ReplaceFailed(rolling.slot, rolling.replaces, "its slot is no more"))
        roll_on(fleet, rolling, now, commands)


def _end(fleet: Fleet, rolling: Rolling, now: float, commands: list[Command]) -> None:
    fleet.rolling = None
    if rolling.again:
        reload(fleet, now, commands)
    else:
        _replace_next(fleet, now, commands)
