"""How often something took how long."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

EDGES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Seconds: the upper bounds of the buckets."""


@dataclass(slots=True)
class Durations:
    """A histogram of seconds; the last count is of what took longer than every bound."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(EDGES) + 1))
    sum: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(EDGES, seconds)] += 1
        self.sum += seconds

    def shown(self) -> tuple[list[int], tuple[float, ...], float]:
        """Return counts, bounds and sum."""
        return self.counts, EDGES, self.sum
