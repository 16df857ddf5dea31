"""Shares each turn of the event loop among the connections whose frames take long to read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")

TURN_SECONDS = 0.0002
"""What a turn of the loop spends on frames for the parser (control frames, fragments, compressed messages).

200 clients that send a compressed megabyte at once, or one that sends 40,000 pings in a segment, then delay the others
by this and one frame, not by all that they sent.
"""


class Turns(Generic[Item]):
    """Says when a turn's time is over, and calls ``go_on(item)`` for each one that waits, in the turns after it.

    Args:
        seconds: Time of a turn; what is under way when it ends is finished.

    Attributes:
        begun: Whether something costly was read in this turn of the loop, or waits: then the clock is looked at.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        go_on: Callable[[Item], None],
        *,
        seconds: float = TURN_SECONDS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._loop = loop
        self._go_on = go_on
        self._seconds = seconds
        self._clock = clock
        self._over = 0.0
        self.begun = False
        self._waiting: dict[Item, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def is_over(self) -> bool:
        """Say whether this turn's time is over; the first who asks begins it."""
        if self.begun:
            return self._clock() >= self._over
        self.begin()
        return False

    def begin(self) -> None:
        """Begin the turn, unless it has begun: something costly is read, or was."""
        if not self.begun:
            self.begun = True
            self._over = self._clock() + self._seconds
            # The loop calls this before it reads from sockets again: that is the next turn.
            self._loop.call_soon(self._next)

    def wait(self, item: Item) -> None:
        """Let ``item`` go on in a later turn, behind all that wait already; only where `is_over` was true."""
        self._waiting[item] = None

    def discard(self, item: Item) -> None:
        """Forget ``item``, if it waits."""
        self._waiting.pop(item, None)

    def _next(self) -> None:
        self.begun = False
        for item in tuple(self._waiting):
            if self.begun and self._clock() >= self._over:
                break
            if item in self._waiting:
                del self._waiting[item]
                self._go_on(item)
