"""Who waits for a reload, and what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

Tell = Callable[[dict[str, Any]], object]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a reload.

    Attributes:
        phase: Its number; 0 where it did not begin.
        reason: Why it went no further, one line; empty where every slot has a worker of it.
        traceback: What the worker that failed has shown, or empty.
        switched: Slots that have a worker of it.
        kept: One line for each value of the configuration that cannot change while the cluster runs.
    """

    phase: int
    reason: str = ""
    traceback: str = ""
    switched: tuple[int, ...] = ()
    kept: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return what goes over the control socket."""
        return asdict(self)


@dataclass(slots=True)
class _Waiter:
    phase: int
    kept: tuple[str, ...]
    outcome: asyncio.Future[Outcome]
    tell: Tell | None


class Reloads:
    """Tells those who have asked for a reload how far it has come, and its outcome."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiters: list[_Waiter] = []

    @property
    def waited_for(self) -> bool:
        """Somebody waits."""
        return bool(self._waiters)

    def wait(self, phase: int, kept: tuple[str, ...], tell: Tell | None) -> asyncio.Future[Outcome]:
        """Return what is done with the outcome of the reload ``phase``.

        Args:
            kept: As in `Outcome`: what this caller is told.
            tell: Gets the progress.
        """
        waiter = _Waiter(phase, kept, self._loop.create_future(), tell)
        self._waiters.append(waiter)
        return waiter.outcome

    def progress(self, phase: int, slot: int, slots: int) -> None:
        """A worker of ``phase`` has taken ``slot``."""
        for waiter in self._waiters:
            if waiter.tell is not None and waiter.phase == phase:
                waiter.tell({"phase": phase, "slot": slot, "slots": slots})

    def ended(self, outcome: Outcome) -> None:
        """The reload of this phase, and so every one before, is over."""
        over = [waiter for waiter in self._waiters if waiter.phase <= outcome.phase]
        self._waiters = [waiter for waiter in self._waiters if waiter.phase > outcome.phase]
        _answer(over, outcome)

    def end_all(self, reason: str) -> None:
        """No reload goes on."""
        over, self._waiters = self._waiters, []
        _answer(over, Outcome(0, reason))


def _answer(waiters: list[_Waiter], outcome: Outcome) -> None:
    for waiter in waiters:
        if not waiter.outcome.done():  # else whoever asked is gone
            waiter.outcome.set_result(replace(outcome, kept=waiter.kept))
