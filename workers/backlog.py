"""What waits for one subscriber of rooms: bounded, and what falls out of it is told as a gap in its place."""

from __future__ import annotations

from collections import deque

from wscluster.api import Gap, Message
from wscluster.envelope import Position
from wscluster.workers.feed import Delivery, Told


class Backlog:
    """The messages and gaps of some rooms, oldest first.

    Args:
        max_queue: How many are kept, at least 1; more push out the oldest.
    """

    def __init__(self, max_queue: int) -> None:
        self._max_queue = max_queue
        self._waiting: deque[tuple[str, Told]] = deque()
        # Room -> the last message that its subscriber has.
        self._taken: dict[str, Position] = {}
        # Rooms of which something fell out that is not told yet: a gap that stands before everything that waits.
        self._fallen: dict[str, None] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting or self._fallen)

    def begin(self, room: str, position: Position) -> None:
        """``room`` is heard after ``position``."""
        self._taken[room] = position

    def add(self, room: str, told: Told) -> None:
        """``room`` says something."""
        if len(self._waiting) >= self._max_queue:
            self._push_out()
        self._waiting.append((room, told))

    def take(self) -> Message | Gap:
        """Return the oldest.

        Raises:
            IndexError: Nothing waits.
        """
        if self._fallen:
            room = next(iter(self._fallen))
            del self._fallen[room]
            return Gap(room, str(self._taken[room]), self._end_of_gap(room))
        room, told = self._waiting.popleft()
        if isinstance(told, Delivery):
            self._taken[room] = told.position
            envelope = told.envelope
            data = envelope.payload.decode() if envelope.text else envelope.payload
            return Message(room, data, str(told.position))
        return Gap(room, str(self._taken[room]), self._end_of_gap(room))

    def _push_out(self) -> None:
        room, _ = self._waiting.popleft()
        self._fallen.setdefault(room)

    def _end_of_gap(self, room: str) -> str:
        """Return the position of the next message of ``room`` that waits; what is lost before it is the same gap."""
        at = 0
        while at < len(self._waiting):
            its_room, told = self._waiting[at]
            if its_room != room:
                at += 1
            elif isinstance(told, Delivery):
                return str(told.position)
            else:
                del self._waiting[at]
        return ""
