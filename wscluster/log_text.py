"""What the lines of the log have in common, whoever writes them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

COLOUR_CODES = re.compile("\x1b\\[[0-9;]*m")
"""Escape sequences that set a colour or a weight (ECMA-48, SGR)."""


def sign_worker(worker: int, slot: int, phase: int) -> str:
    """Return who signs the lines of a worker: ``worker 3 slot 0 phase 1``."""
    return f"worker {worker} slot {slot} phase {phase}"


def text_time(at: float) -> str:
    """Return how a line of text begins: ``at``, seconds since the epoch, as ``2026-01-31 12:00:00.123`` here."""
    return datetime.fromtimestamp(at).isoformat(" ", "milliseconds")


def json_time(at: float) -> str:
    """Return ``at``, in seconds since the epoch, as ISO 8601 in UTC, with milliseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
