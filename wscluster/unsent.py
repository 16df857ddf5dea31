"""What is still to be said to the bus: commands that wait with a deadline, and the channels that are wanted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wscluster.errors import BusUnavailable

MAX_PIPELINE_COMMANDS = 256
MAX_PIPELINE_BYTES = 1 << 20
MAX_WAITING_COMMANDS = 65_536
MAX_WAITING_BYTES = 256 << 20
CHANNELS_PER_COMMAND = 512

Argument = bytes | str | int


@dataclass(slots=True)
class Command:
    """One command; whoever gave it waits for ``answer``."""

    arguments: Sequence[Argument]
    size: int
    deadline: float
    answer: asyncio.Future[Any]

    def fail(self, reason: str) -> None:
        """Answer with `BusUnavailable`, unless there is an answer already."""
        if not self.answer.done():
            self.answer.set_exception(BusUnavailable(f"the bus is unavailable: {reason}"))


class UnsentCommands:
    """Commands in the order in which they were given; their deadlines never fall, so the oldest is due first."""

    def __init__(self) -> None:
        self._commands: deque[Command] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._commands)

    @property
    def next_deadline(self) -> float | None:
        """When the oldest is due; None where nothing waits."""
        return self._commands[0].deadline if self._commands else None

    def add(self, arguments: Sequence[Argument], deadline: float, answer: asyncio.Future[Any]) -> None:
        """Queue a command, or fail it at once where too much waits already."""
        size = sum(len(argument) for argument in arguments if isinstance(argument, bytes))
        command = Command(arguments, size, deadline, answer)
        if len(self._commands) >= MAX_WAITING_COMMANDS or self._bytes + size > MAX_WAITING_BYTES:
            command.fail(f"not sent, because {len(self._commands)} commands wait already")
            return
        self._commands.append(command)
        self._bytes += size

    def take_batch(self) -> list[Command]:
        """Take what goes in the next pipeline: no more than its limits, but one command at least."""
        batch: list[Command] = []
        size = 0
        while self._commands and len(batch) < MAX_PIPELINE_COMMANDS and (size < MAX_PIPELINE_BYTES or not batch):
            command = self._take()
            if not command.answer.done():  # its caller may have been cancelled
                batch.append(command)
                size += command.size
        return batch

    def expire(self, now: float, reason: str) -> None:
        """Fail the commands that are due."""
        while self._commands and self._commands[0].deadline <= now:
            self._take().fail(reason)

    def fail_all(self, reason: str) -> None:
        """Fail every command."""
        while self._commands:
            self._take().fail(reason)

    def _take(self) -> Command:
        command = self._commands.popleft()
        self._bytes -= command.size
        return command


class WantedChannels:
    """The channels to hear, and which of them the server was not told of yet."""

    def __init__(self) -> None:
        self._wanted: set[bytes] = set()
        self._untold: dict[bytes, None] = {}

    def __contains__(self, channel: object) -> bool:
        return channel in self._wanted

    def add(self, channel: bytes) -> None:
        """Hear ``channel``."""
        self._wanted.add(channel)
        self._untold[channel] = None

    def discard(self, channel: bytes) -> None:
        """Hear ``channel`` no more."""
        self._wanted.discard(channel)
        self._untold[channel] = None

    def tell_again(self) -> None:
        """The server knows of none: the connection is new."""
        self._untold = dict.fromkeys(self._wanted)

    def take_untold(self) -> list[tuple[str | bytes, ...]]:
        """Return the commands that tell the server; of opposite wishes for one channel the last one counts."""
        told, self._untold = self._untold, {}
        commands: list[tuple[str | bytes, ...]] = []
        for verb, meant in (("SUBSCRIBE", True), ("UNSUBSCRIBE", False)):
            names = [name for name in told if (name in self._wanted) is meant]
            commands += [
                (verb, *names[at : at + CHANNELS_PER_COMMAND]) for at in range(0, len(names), CHANNELS_PER_COMMAND)
            ]
        return commands
