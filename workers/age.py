"""How much of its time to become ready a worker has left."""

from __future__ import annotations

import os
import time

WORD_SECONDS = 0.5
"""So long before the primary kills it a worker that is late says why."""


def ready_within(limit: float) -> float:
    """Return in how many seconds a worker must be ready or say why not, where it gets ``limit`` from its start."""
    return max(0.5, limit - _age_seconds() - WORD_SECONDS)


def _age_seconds() -> float:
    """Return how long ago this process began, to the hundredth; 0 where the system has no procfs."""
    try:
        with open("/proc/self/stat") as stat:
            ticks = int(stat.read().rpartition(")")[2].split()[19])
    except OSError:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
