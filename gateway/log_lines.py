"""Lines of the log: what comes through a worker's pipes becomes signed lines, and the last of all lines are kept."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from wscluster.escaping import escape_controls
from wscluster.log_text import COLOUR_CODES, json_time, sign_worker, text_time

MAX_LINE_BYTES = 16 * 1024
"""A longer line becomes several."""
MAX_KEPT_LINES = 5000
MAX_KEPT_CHARS = 2 * 1024 * 1024
MAX_PAGE_CHARS = 128 * 1024

HELPER = "on-event"
"""Who signs the lines of the process of ``--on-event``."""
_COLOUR = re.compile(f"({COLOUR_CODES.pattern})")
_SET_IN = "  "
"""How a line begins that goes on with the one before (`logs.LineFormatter`)."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The worker that wrote a line."""

    worker: int
    slot: int
    phase: int


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the log.

    Args:
        at: When it came, in seconds since the epoch.
        origin: None for the primary's own, and for those of its process of ``--on-event``.
        stream: ``stdout``, ``stderr``, or ``log`` where wscluster itself has logged it, as the primary does always.
        text: As it was written, without colours.
    """

    at: float
    origin: Origin | None
    stream: str
    text: str

    def as_json(self) -> dict[str, Any]:
        """Return what `wscluster logs --json` prints."""
        origin = self.origin
        nobody = "primary" if self.stream == "log" else HELPER
        return {
            "time": json_time(self.at),
            "role": nobody if origin is None else "worker",
            "worker": None if origin is None else origin.worker,
            "slot": None if origin is None else origin.slot,
            "phase": None if origin is None else origin.phase,
            "stream": self.stream,
            "line": self.text,
        }


class Splitter:
    """Cuts what a pipe delivers into lines, at line feeds and where one is longer than 16 KiB.

    Args:
        part: What another splitter has had of the first line.
    """

    def __init__(self, part: bytes = b"") -> None:
        self._part = part

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the lines that ``data`` completes, without their ends."""
        *lines, self._part = (self._part + data).split(b"\n")
        for line in lines:
            yield from _cut(line.removesuffix(b"\r"))
        if len(self._part) > MAX_LINE_BYTES:
            *pieces, self._part = _cut(self._part)
            yield from pieces

    @property
    def part(self) -> bytes:
        """What has no line feed behind it yet."""
        return self._part

    def end(self) -> Iterator[bytes]:
        """Yield what came last, if no line feed has followed it."""
        rest, self._part = self._part, b""
        if rest:
            yield rest


def _cut(line: bytes) -> Iterator[bytes]:
    while len(line) > MAX_LINE_BYTES:
        end = MAX_LINE_BYTES
        while end > MAX_LINE_BYTES - 4 and line[end] & 0xC0 == 0x80:  # in the middle of a character of UTF-8
            end -= 1
        yield line[:end]
        line = line[end:]
    yield line


class Signer:
    """Signs what a worker writes to one of its streams with time, stream, worker, slot and phase.

    A line that wscluster itself has logged in the worker is signed already, and so are the lines after it that are set
    in; they stay as they are.

    Args:
        origin: None for the process of ``--on-event``.
        form: ``text`` or ``json``, as ``--log-format`` says.
        goes_on: The line before was signed already.

    Attributes:
        origin, stream, goes_on: As given; ``goes_on`` changes with each line.
    """

    def __init__(self, origin: Origin | None, stream: str, form: str, *, goes_on: bool = False) -> None:
        self.origin = origin
        self.stream = stream
        self.goes_on = goes_on
        self._form = form
        self._facts: dict[str, Any] = {"role": HELPER} if origin is None else {"role": "worker", **asdict(origin)}
        self._who = HELPER if origin is None else sign_worker(origin.worker, origin.slot, origin.phase)
        facts = json.dumps(self._facts)[1:-1]
        colour = "(?:\x1b\\[[0-9;]*m)?"
        own = {
            "text": rf"[-0-9]{{10}} [:0-9]{{8}}\.\d{{3}} {colour}[A-Z]+{colour} +{re.escape(self._who)} \| ",
            "json": rf'\{{"time": "[^"]*", "level": "[a-z]+", {re.escape(facts)}, ',
        }
        self._own = re.compile(own[form])

    def sign(self, raw: bytes, at: float) -> tuple[str, Line]:
        """Return the line to write, and the one to keep."""
        text = raw.decode("utf-8", "backslashreplace")
        self.goes_on = self.stream == "stderr" and (
            self._own.match(text) is not None or (self.goes_on and text.startswith(_SET_IN))
        )
        if self.goes_on:
            return text, Line(at, self.origin, "log", COLOUR_CODES.sub("", text))
        plain = _escape(COLOUR_CODES.sub("", text))
        if self._form == "json":
            facts = {"time": json_time(at), "level": "info", **self._facts, "stream": self.stream, "message": plain}
            signed = json.dumps(facts)
            return signed, Line(at, self.origin, self.stream, signed)
        head = f"{text_time(at)} {self.stream:<7} {self._who} | "
        coloured = "".join(part if _COLOUR.fullmatch(part) else _escape(part) for part in _COLOUR.split(text))
        end = "\x1b[0m" if coloured != plain else ""
        return f"{head}{coloured}{end}", Line(at, self.origin, self.stream, head + plain)


def _escape(text: str) -> str:
    """Tabs stay: they are what programs set their lines out with."""
    return "\t".join(map(escape_controls, text.split("\t")))


class Ring:
    """Keeps the last lines of the log, 5,000 of them and 2 MiB at most; older ones make room.

    Args:
        first: Number of the first line; they are counted on from it.
    """

    def __init__(self, first: int = 1) -> None:
        self._lines: deque[Line] = deque()
        self._chars = 0
        self.next = first
        """Number of the line that will come."""
        self.on_line: Callable[[], None] = lambda: None
        """Called after each line that has come."""

    def add(self, line: Line) -> None:
        """Keep ``line``."""
        self._lines.append(line)
        self._chars += len(line.text)
        while len(self._lines) > MAX_KEPT_LINES or self._chars > MAX_KEPT_CHARS:
            self._chars -= len(self._lines.popleft().text)
        self.next += 1
        self.on_line()

    def carry(self) -> str:
        """Return the lines as JSON, for the ring of the next process; thousands of them are quickly written so."""
        return json.dumps([
            (line.at, None if (by := line.origin) is None else (by.worker, by.slot, by.phase), line.stream, line.text)
            for line in self._lines
        ])  # fmt: skip

    def resume(self, lines: str, following: int) -> None:
        """Keep the lines of the process before too; ``following`` is the number that was to come."""
        later = list(self._lines)
        earlier = [
            Line(at, None if by is None else Origin(*by), stream, text) for at, by, stream, text in json.loads(lines)
        ]
        self._lines.clear()
        self._chars = 0
        self.next = following - len(earlier)
        for line in (*earlier, *later):
            self.add(line)

    def slots(self) -> set[int]:
        """Return the slots of which there are lines."""
        return {line.origin.slot for line in self._lines if line.origin is not None}

    def page(self, after: int | None, slot: int | None, last: int | None) -> dict[str, Any]:
        """Return lines in their order, at most some 128 KiB of them.

        Args:
            after: Number of the line after which to begin; None begins with the oldest.
            slot: Only lines of this slot's workers.
            last: Only so many, the last ones.

        Returns:
            ``lines``; ``next``, the ``after`` of the page that follows; ``more`` lines are there already; ``lost``,
            how many of those asked for were not kept so long.
        """
        oldest = self.next - len(self._lines)
        begin = oldest if after is None or after >= self.next else max(oldest, after + 1)
        lost = 0 if after is None else max(0, oldest - after - 1)
        fitting = [
            (number, line)
            for number, line in enumerate(islice(self._lines, begin - oldest, None), begin)
            if slot is None or (line.origin is not None and line.origin.slot == slot)
        ]
        if last is not None:
            fitting = fitting[len(fitting) - min(last, len(fitting)) :]
        found: list[dict[str, Any]] = []
        chars = 0
        for number, line in fitting:
            if chars > MAX_PAGE_CHARS:
                return {"lines": found, "next": number - 1, "more": True, "lost": lost}
            found.append(line.as_json())
            chars += len(line.text)
        return {"lines": found, "next": self.next - 1, "more": False, "lost": lost}
