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


def loop_classes() -> tuple[type[asyncio.AbstractEventLoop], ...]:
    """Return the classes of the loops that programs run on: asyncio's own, and uvloop's where it is installed."""
    return (asyncio.SelectorEventLoop,) if uvloop is None else (asyncio.SelectorEventLoop, uvloop.Loop)


def loop_name() -> str:
    """Return ``uvloop`` or ``asyncio``."""
    return "asyncio" if uvloop is None else "uvloop"
