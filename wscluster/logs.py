"""Logging of the primary and the workers: one line on standard error for each decision."""

from __future__ import annotations

import logging
import sys
from typing import Any

from wscluster.escaping import escape_controls, escape_lines

__all__ = ["LineFormatter", "escape_controls", "guard_root", "set_level", "set_up"]

_DATE = "%Y-%m-%d %H:%M:%S"


class LineFormatter(logging.Formatter):
    """``2026-01-31 12:00:00.123 INFO  primary | text``; control characters never reach the terminal raw."""

    def __init__(self, who: str) -> None:
        super().__init__(f"%(asctime)s.%(msecs)03d %(levelname)-7s {who} | %(message)s", _DATE)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return escape_controls(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        return _set_in(super().format(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return escape_lines(super().formatException(ei))


class _Guard(logging.Formatter):
    """A program's own format, colours and all; what it fills in has no control characters but line breaks."""

    def __init__(self, guarded: logging.Formatter) -> None:
        super().__init__()
        self._style = guarded._style
        self._fmt = guarded._fmt
        self.datefmt = guarded.datefmt

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = escape_lines(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", "\n  ")

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return escape_lines(super().formatException(ei))


def _escape_record(record: logging.LogRecord) -> bool:
    """Escape what a handler logs with ``ws.logger``, for handlers that are not ours: JSON, files, a collector."""
    if isinstance(record.msg, str):
        record.msg = escape_controls(record.msg)
    if isinstance(record.args, tuple):
        record.args = tuple(escape_controls(value) if isinstance(value, str) else value for value in record.args)
    return True


def _set_in(text: str) -> str:
    # The line breaks that are left are those of a traceback; set in, none of its lines looks like one of the log,
    # whatever a client may have put into the text of an exception.
    return escape_lines(text).replace("\n", "\n  ")


def set_up(level: str, who: str) -> None:
    """Log to standard error from ``level`` on; ``who`` (``primary``, ``worker 3 slot 0``) signs every line.

    Only the loggers below ``wscluster`` are set up: the root logger belongs to the program that is served.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(who))
    ours = logging.getLogger("wscluster")
    ours.handlers[:] = [handler]
    ours.propagate = False
    ours.setLevel(level.upper())
    logging.getLogger("wscluster.connection").addFilter(_escape_record)


def set_level(level: str) -> None:
    """Log from ``level`` on, from now on."""
    logging.getLogger("wscluster").setLevel(level.upper())


def guard_root(who: str) -> None:
    """Let no line that the served program logs look like two, or move the terminal's cursor.

    What it logs without having set up logging (warnings and errors) is signed by ``who``. Its own handlers of the root
    logger keep their format; line breaks in a message stay, and the lines after the first are set in. A formatter of a
    class of its own is left alone.
    """
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(LineFormatter(who))
    for handler in logging.getLogger().handlers:
        formatter = handler.formatter or logging.Formatter()
        if type(formatter) is logging.Formatter:
            handler.setFormatter(_Guard(formatter))
