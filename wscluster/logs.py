"""Logging of the primary and the workers: one line on standard error for each decision."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import Any, Protocol

from wscluster.escaping import escape_controls, escape_lines
from wscluster.log_text import json_time

__all__ = [
    "LineFormatter",
    "escape_controls",
    "guard_root",
    "make_formatter",
    "set_level",
    "set_up",
    "use_colour",
]

_DATE = "%Y-%m-%d %H:%M:%S"
_LEVEL_AT = 24
"""Where the level stands in a line: behind date and time."""
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m", "DEBUG": "\x1b[2m"}
_WORKER = re.compile(r"worker (\d+) slot (\d+) phase (\d+)")


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
    """One JSON object a line: ``time`` (ISO 8601, UTC), ``level``, ``role``, of a worker ``worker``, ``slot`` and
    ``phase``, ``message``, and ``exception`` where there is one."""

    def __init__(self, who: str) -> None:
        super().__init__()
        match = _WORKER.fullmatch(who)
        self._facts: dict[str, Any] = {"role": who}
        if match is not None:
            self._facts = {"role": "worker", "worker": int(match[1]), "slot": int(match[2]), "phase": int(match[3])}

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": json_time(record.created), "level": record.levelname.lower(), **self._facts}
        line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def make_formatter(who: str, kind: type[LineFormatter] = LineFormatter) -> logging.Formatter:
    """Return what formats the lines that ``who`` signs, as `set_up` was told; as text it is of ``kind``."""
    if _form == "json":
        return JsonFormatter(who)
    return kind(who, colour=_colour)


def use_colour() -> bool:
    """Say whether standard error is a terminal that shows colours; NO_COLOR says no (no-color.org)."""
    terminal = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return terminal and not os.environ.get("NO_COLOR")


_form = "text"
_colour = False


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


class Writer(Protocol):
    """Takes the lines of a log."""

    def write(self, text: str, /) -> Any:
        """Take ``text``, which ends with a line feed."""

    def flush(self) -> Any:
        """Let nothing wait."""


def set_up(
    level: str, who: str, form: str = "text", *, stream: Writer | None = None, colour: bool | None = None
) -> None:
    """Log to ``stream``, by default standard error, from ``level`` on; ``who`` signs: ``primary``, or `sign_worker`.

    As text the level is coloured where ``colour`` or, by default, `use_colour` says so; ``form`` may be ``json``.
    Only the loggers below ``wscluster`` are set up: the root logger belongs to the program that is served.
    """
    global _form, _colour
    _form = form
    _colour = use_colour() if colour is None else colour
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
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
