"""The event loop of every process: uvloop where it is installed, else asyncio's own."""

from __future__ import annotations

import asyncio

try:
    import uvloop
except ImportError:  # Windows, and interpreters that uvloop has no wheel for
    uvloop = None  # type: ignore[assignment]


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop; it is not set as the current one."""
    return asyncio.new_event_loop() if uvloop is None else uvloop.new_event_loop()


def loop_name() -> str:
    """Return ``uvloop`` or ``asyncio``."""
    return "asyncio" if uvloop is None else "uvloop"
