"""Reads the logs of rooms: their end after a subscription, until it is read; and what who comes back missed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wscluster.commands import Commands
from wscluster.envelope import (
    FIELD,
    Envelope,
    Position,
    begin_arguments,
    decode_message,
    parse_position,
)
from wscluster.errors import BusUnavailable

MAX_READING = 16
"""Logs read at a time: each answer may hold 6 MiB."""
RETRY_SECONDS = 1.0
PAGE_ENTRIES = 128
"""Entries of one answer to a member that comes back: 8 MiB at the most."""

logger = logging.getLogger("wscluster.bus")


@dataclass(frozen=True, slots=True)
class LogTail:
    """The end of a room's log.

    Attributes:
        newest: Position of its last entry; None where there is none.
        entries: What came after the position that was asked for; None for a payload that is not kept.
        whole: False where more entries follow.
        unkept: The first entry without payload among all that follow.
    """

    newest: Position | None
    entries: Sequence[tuple[Position, Envelope | None]]
    whole: bool = True
    unkept: Position | None = None


class LogReader:
    """Reads each log once; a later `read` of the same channel replaces an earlier one.

    Args:
        ttl: Seconds that a log lives which is begun here.
        on_read: Called with channel and result.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ttl: float, on_read: Callable[[bytes, LogTail], None]) -> None:
        self._loop = loop
        self._ttl = ttl
        self._on_read = on_read
        self._waiting: dict[bytes, tuple[Commands, Position | None]] = {}
        self._reading: dict[bytes, asyncio.Task[None]] = {}
        self._retries: dict[bytes, asyncio.TimerHandle] = {}

    def read(self, commands: Commands, channel: bytes, after: Position | None) -> None:
        """Read the log of ``channel`` after ``after`` (None: only where it ends; it is begun where there is none)."""
        self.forget(channel)
        self._waiting[channel] = (commands, after)
        self._start()

    def cancel(self) -> None:
        """Read nothing that was asked for."""
        for channel in [*self._waiting, *self._reading, *self._retries]:
            self.forget(channel)

    def close(self) -> None:
        """Stop for good."""
        self.cancel()

    def forget(self, channel: bytes) -> None:
        self._waiting.pop(channel, None)
        if (task := self._reading.pop(channel, None)) is not None:
            task.cancel()
        if (retry := self._retries.pop(channel, None)) is not None:
            retry.cancel()

    def _start(self) -> None:
        while self._waiting and len(self._reading) < MAX_READING:
            channel = next(iter(self._waiting))
            commands, after = self._waiting.pop(channel)
            task = self._loop.create_task(self._read(commands, channel, after))
            self._reading[channel] = task
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error("the log of a room could not be read", exc_info=exc)
        self._start()

    async def _read(self, commands: Commands, channel: bytes, after: Position | None) -> None:
        try:
            if after is None:
                begun = await commands.send(*begin_arguments(channel, self._ttl))
                tail = LogTail(None if begun is None else parse_position(bytes(begun)), [])
            else:
                tail = await read_page(commands, channel, after)
        except BusUnavailable as exc:
            logger.warning("the log of %r cannot be read: %s", channel.decode(errors="replace"), exc)
            del self._reading[channel]
            self._retries[channel] = self._loop.call_later(RETRY_SECONDS, self.read, commands, channel, after)
            return
        del self._reading[channel]
        self._on_read(channel, tail)


async def read_page(commands: Commands, channel: bytes, after: Position, count: int = 0) -> LogTail:
    """Return the log of ``channel`` after ``after``, at most ``count`` entries of it (0: all).

    Raises:
        BusUnavailable: The bus does not answer in time.
    """
    limit = ("COUNT", count) if count else ()
    # The newest first: what is published in between is then in the second answer.
    last, answer = await asyncio.gather(
        commands.send("XREVRANGE", channel, "+", "-", "COUNT", 1),
        commands.send("XRANGE", channel, f"({after}", "+", *limit),
    )
    entries = [read_entry(entry) for entry in answer]
    found = [entry for entry in entries if entry[0].seq]  # 0 is where a log begins: no message
    unkept = next((position for position, envelope in found if envelope is None), None)
    return LogTail(read_entry(last[0])[0] if last else None, found, not count or len(entries) < count, unkept)


async def read_missed(commands: Commands, channel: bytes, after: Position, max_bytes: int, *, scan: bool) -> LogTail:
    """Return the log of ``channel`` after ``after``, up to about ``max_bytes`` of payloads.

    Args:
        scan: Read on to the end for `LogTail.unkept`, and forget what is more than ``max_bytes``.

    Raises:
        BusUnavailable: The bus does not answer in time.
    """
    tail = page = await read_page(commands, channel, after, PAGE_ENTRIES)
    found, size, unkept = list(tail.entries), _size(tail), tail.unkept
    whole = True
    while not page.whole and (scan or size <= max_bytes):
        page = await read_page(commands, channel, page.entries[-1][0], PAGE_ENTRIES)
        unkept = unkept or page.unkept
        whole = whole and size <= max_bytes
        if whole:
            found += page.entries
            size += _size(page)
    return LogTail(tail.newest, found, whole and page.whole, unkept)


def _size(tail: LogTail) -> int:
    return sum(len(envelope.payload) for _, envelope in tail.entries if envelope is not None)


def read_entry(entry: Any) -> tuple[Position, Envelope | None]:
    """Return position and message of one entry of a log; None for a payload that is not kept.

    Raises:
        ValueError: It is no entry of a stream.
    """
    position = parse_position(bytes(entry[0]))
    if position is None:
        raise ValueError(f"{entry[0]!r} is no id of a stream's entry")
    fields = entry[1]
    payload = next((fields[at + 1] for at in range(0, len(fields) - 1, 2) if fields[at] == FIELD), b"")
    return position, decode_message(bytes(payload)) if payload else None
