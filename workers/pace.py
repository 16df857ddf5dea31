"""The pace of a drain: connections one after the other, at a rate, so that their return is no thundering herd."""

from __future__ import annotations

import random
from asyncio import AbstractEventLoop, sleep
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")

SHARE = 0.8
"""Of the drain's time: all have had their turn by then, however low the rate; the rest is for how they end."""
LEAST_SECONDS = 0.001
"""What is due within so short a time is due now."""


def gap_seconds(count: int, rate: float, timeout: float) -> float:
    """Return the seconds between two of ``count`` items at ``rate`` a second (0: no limit) within ``timeout`` seconds.

    Where the time does not suffice for the rate, it is raised.
    """
    if rate <= 0 or not count:
        return 0.0
    return min(1 / rate, timeout * SHARE / count)


async def paced(items: Sequence[Item], rate: float, timeout: float, loop: AbstractEventLoop) -> AsyncIterator[Item]:
    """Yield ``items`` at ``rate`` a second, each up to half of the gap earlier or later; all at once where it is 0."""
    gap = gap_seconds(len(items), rate, timeout)
    begin = loop.time()
    for number, item in enumerate(items):
        if gap:
            wait = begin + gap * (number + random.random() - 0.5) - loop.time()
            if wait > LEAST_SECONDS:
                await sleep(wait)
        yield item
