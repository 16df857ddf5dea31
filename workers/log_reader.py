"""Reads the end of rooms' logs after their subscription, a few at a time, until it is read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wscluster.commands import Commands
from wscluster.envelope import FIELD, Envelope, Position, decode_message, parse_position
from wscluster.errors import BusUnavailable

MAX_READING = 16
"""Logs read at a time: each answer may hold 6 MiB."""
RETRY_SECONDS = 1.0

logger = logging.getLogger("wscluster.bus")


@dataclass(frozen=True, slots=True)
class LogTail:
    """The end of a room's log.

    Attributes:
        newest: Position of its last entry; None where there is none.
        entries: What came after the position that was asked for; None for a payload that is not kept.
    """

    newest: Position | None
    entries: Sequence[tuple[Position, Envelope | None]]


class LogReader:
    """Reads each log once; a later `read` of the same channel replaces an earlier one.

    Args:
        on_read: Called with channel and result.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_read: Callable[[bytes, LogTail], None]) -> None:
        self._loop = loop
        self._on_read = on_read
        self._waiting: dict[bytes, tuple[Commands, Position | None]] = {}
        self._reading: dict[bytes, asyncio.Task[None]] = {}
        self._retries: dict[bytes, asyncio.TimerHandle] = {}

    def read(self, commands: Commands, channel: bytes, after: Position | None) -> None:
        """Read the log of ``channel`` after ``after`` (None: only where it ends)."""
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
            # The newest first: what is published in between is then in the second answer.
            asked = [commands.send("XREVRANGE", channel, "+", "-", "COUNT", 1)]
            if after is not None:
                asked.append(commands.send("XRANGE", channel, f"({after}", "+"))
            answers = await asyncio.gather(*asked)
        except BusUnavailable as exc:
            logger.warning("the log of %r cannot be read: %s", channel.decode(errors="replace"), exc)
            del self._reading[channel]
            self._retries[channel] = self._loop.call_later(RETRY_SECONDS, self.read, commands, channel, after)
            return
        del self._reading[channel]
        newest = read_entry(answers[0][0])[0] if answers[0] else None
        entries = [read_entry(entry) for entry in answers[1]] if after is not None else []
        self._on_read(channel, LogTail(newest, entries))


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
