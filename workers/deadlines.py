"""One timer for many connections that all wait equally long."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")

_AT_ONCE = 512
"""Items handled in one turn of the loop; the others follow in the next, so that 10,000 pings never stall it."""


class Deadlines(Generic[Item]):
    """Calls ``expire(item)`` once ``delay`` seconds after `add`, unless it was discarded.

    The delay is the same for every item, so they come due in the order in which they were added and one timer of the
    loop serves them all. A delay of 0 means never.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, delay: float, expire: Callable[[Item], None]) -> None:
        self.delay = delay
        self._loop = loop
        self._expire = expire
        self._due: dict[Item, float] = {}
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, item: Item) -> bool:
        return item in self._due

    def add(self, item: Item) -> None:
        """Let ``item`` come due ``delay`` seconds from now; an earlier deadline of it is forgotten."""
        if not self.delay:
            return
        self._due.pop(item, None)
        due = self._due[item] = self._loop.time() + self.delay
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._fire)

    def discard(self, item: Item) -> None:
        """Forget ``item``, if it is there."""
        self._due.pop(item, None)

    def stop(self) -> None:
        """Forget everything."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        # Until the end _timer is the one that fired, so that an item added by an expiry makes no timer of its own.
        fired = self._timer
        # The loop may wake a timer up to one tick of its clock early; what is due then is due now.
        now = self._loop.time() + 0.001
        expired: list[Item] = []
        for item, due in self._due.items():
            if due > now or len(expired) == _AT_ONCE:
                break
            expired.append(item)
        try:
            for item in expired:
                # An expiry may have discarded this one, or added it anew.
                if self._due.get(item, math.inf) <= now:
                    del self._due[item]
                    self._expire(item)
        finally:
            if self._timer is fired:
                self._timer = None
            self._schedule(now)

    def _schedule(self, now: float) -> None:
        if self._timer is not None or not self._due:
            return
        first = next(iter(self._due.values()))
        if first <= now:
            self._timer = self._loop.call_soon(self._fire)
        else:
            self._timer = self._loop.call_at(first, self._fire)
