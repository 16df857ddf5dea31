"""More slots or fewer, while the fleet runs.

A new slot takes connections once its first worker is ready, and then only the keys that hash to it move, for new
connections. The last slots are the ones that go: their workers take nothing new and are drained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wscluster.gateway import rolling
from wscluster.gateway.fleet_words import Command, Resize, State, Unroute
from wscluster.gateway.rolling import RELOAD_CODE, Slot

if TYPE_CHECKING:
    from wscluster.gateway.fleet import Fleet

MAX_SLOTS = 1024


def refuse_scale(fleet: Fleet, size: int) -> str:
    """Return why there cannot be ``size`` slots now, one line; empty where there can."""
    if size < 1:
        return f"{size} slots are none to serve with: 1 is the least, and `wscluster stop` ends the cluster"
    if size > MAX_SLOTS:
        return f"{size} slots are too many: {MAX_SLOTS} is the most"
    if fleet.exit_code is not None:
        return "the cluster is about to end"
    if size < len(fleet.slots) and not any(slot < size for slot in fleet.ready_slots()):
        return f"no worker of the first {size} slots is ready: nobody would be left to serve"
    return ""


def scale(fleet: Fleet, size: int, now: float, commands: list[Command]) -> None:
    """Have ``size`` slots; nothing is done where `refuse_scale` says why not."""
    if refuse_scale(fleet, size) or size == len(fleet.slots):
        return
    before, fleet.size = len(fleet.slots), size
    if size > before:
        fleet.slots += [Slot(respawn_at=now) for _ in range(size - before)]
        commands.append(Resize(size))
        return
    going = [worker for worker in fleet.workers.values() if worker.slot >= size and fleet.slot_of(worker) is not None]
    commands.extend(Unroute(worker.slot, worker.id) for worker in going if worker.state is State.READY)
    fleet.retired_restarts += sum(max(0, slot.spawns - 1) for slot in fleet.slots[size:])
    del fleet.slots[size:]
    commands.append(Resize(size))
    for worker in sorted(going, key=lambda one: one.slot, reverse=True):
        if worker.state is State.READY:
            fleet.drain(worker, RELOAD_CODE, now, commands)
        else:
            fleet.kill(worker, "its slot is no more", commands)
    rolling.shrink(fleet, size, now, commands)
