"""Logging of the primary and the workers: one line on standard error for each decision."""

from __future__ import annotations

import logging
import sys
from typing import Any


class _Formatter(logging.Formatter):
    """``2026-01-31 12:00:00.123 INFO  primary | text``; control characters never reach the terminal raw."""

    def __init__(self, who: str) -> None:
        super().__init__(f"%(asctime)s.%(msecs)03d %(levelname)-7s {who} | %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return escape_controls(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        # The line breaks that are left are those of a traceback; set in, none of its lines looks like one of the log,
        # whatever a client may have put into the text of an exception.
        return "\n  ".join(escape_controls(line) for line in super().format(record).split("\n"))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return "\n".join(map(escape_controls, super().formatException(ei).split("\n")))


def escape_controls(text: str) -> str:
    """Return ``text`` in one line, with control characters (CR, LF, ESC, …) written as ``\\xNN``."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def set_up(level: str, who: str) -> None:
    """Log to standard error from ``level`` on; ``who`` (``primary``, ``worker 3 slot 0``) signs every line.

    Only the loggers below ``wscluster`` are set up: the root logger belongs to the program that is served.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(who))
    ours = logging.getLogger("wscluster")
    ours.handlers[:] = [handler]
    ours.propagate = False
    ours.setLevel(level.upper())
