"""Logging of the primary and the workers: one line on standard error for each decision."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from typing import Any

from wscluster.escaping import escape_controls, escape_lines

__all__ = ["LineFormatter", "escape_controls", "guard_root", "make_formatter", "set_level", "set_up"]

_DATE = "%Y-%m-%d %H:%M:%S"
_LEVEL_AT = 24
"""Where the level stands in a line: behind date and time."""
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m", "DEBUG": "\x1b[2m"}
_WORKER = re.compile(r"worker (\d+) slot (\d+)")


class LineFormatter(logging.Formatter):
    """``2026-01-31 12:00:00.123 INFO  primary | text``; control characters never reach the terminal raw.

    Args:
        colour: The level has one.
    """

    def __init__(self, who: str, *, colour: bool = False) -> None:
        super().__init__(f"%(asctime)s.%(msecs)03d %(levelname)-7s {who} | %(message)s", _DATE)
        self._colour = colour

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return escape_controls(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        text = _set_in(super().format(record))
        colour = _COLOURS.get(record.levelname, "") if self._colour else ""
        if not colour:
            return text
        end = _LEVEL_AT + len(record.levelname)
        return f"{text[:_LEVEL_AT]}{colour}{text[_LEVEL_AT:end]}\x1b[0m{text[end:]}"

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return escape_lines(super().formatException(ei))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (ISO 8601, UTC), ``level``, ``role``, of a worker ``worker`` and ``slot``,
    ``message``, and ``exception`` where there is one."""

    def __init__(self, who: str) -> None:
        super().__init__()
        match = _WORKER.fullmatch(who)
        self._facts: dict[str, Any] = {"role": who}
        if match is not None:
            self._facts = {"role": "worker", "worker": int(match[1]), "slot": int(match[2])}

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{at}.{int(record.msecs):03}Z", "level": record.levelname.lower(), **self._facts}
        line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def make_formatter(who: str, kind: type[LineFormatter] = LineFormatter) -> logging.Formatter:
    """Return what formats the lines that ``who`` signs, as `set_up` was told; as text it is of ``kind``."""
    if _form == "json":
        return JsonFormatter(who)
    terminal = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return kind(who, colour=terminal and not os.environ.get("NO_COLOR"))


_form = "text"


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


def set_up(level: str, who: str, form: str = "text") -> None:
    """Log to standard error from ``level`` on; ``who`` (``primary``, ``worker 3 slot 0``) signs every line.

    As text the level is coloured on a terminal, unless NO_COLOR is set (no-color.org); ``form`` may be ``json``.
    Only the loggers below ``wscluster`` are set up: the root logger belongs to the program that is served.
    """
    global _form
    _form = form
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(make_formatter(who))
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
        logging.lastResort.setFormatter(make_formatter(who))
    for handler in logging.getLogger().handlers:
        formatter = handler.formatter or logging.Formatter()
        if type(formatter) is logging.Formatter:
            handler.setFormatter(_Guard(formatter))
