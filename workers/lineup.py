"""Lines up what one member missed, which the log has, with what comes meanwhile: each message once and in order."""

from __future__ import annotations

from collections.abc import Sequence

from wscluster.envelope import START, Envelope, Position
from wscluster.workers.feed import MAX_HELD, Delivery, Lost, Told


class Lineup:
    """What a member that comes back is to get before it hears its room like the others.

    The log is read after `last`, and what comes live meanwhile is held, so that the two overlap. What does not fit is
    forgotten: the log has it, and is read once more.

    Attributes:
        last: The member has everything until this position.
        lost: True where the bus lost messages meanwhile.
        spilled: True where more came live than is held.
    """

    __slots__ = ("_held", "_held_bytes", "_max_bytes", "last", "lost", "spilled")

    def __init__(self, since: Position, max_bytes: int) -> None:
        self.last = since
        self.lost = False
        self.spilled = False
        self._max_bytes = max_bytes
        self._held: list[Delivery] = []
        self._held_bytes = 0

    def hold(self, told: Told) -> None:
        """The room says something: hold it."""
        if isinstance(told, Lost):
            self.lost = True
        elif not self.spilled:
            self._held.append(told)
            self._held_bytes += len(told.envelope.payload)
            if len(self._held) > MAX_HELD or self._held_bytes > self._max_bytes:
                self.spilled = True
                self._forget_held()

    def begin_reading(self) -> None:
        """The log is to be read after `last`: what comes from now on overlaps with it."""
        if self.spilled:
            self.spilled = False
        else:
            kept = [delivery for delivery in self._held if not _covers(self.last, delivery.position)]
            self._forget_held()
            for delivery in kept:
                self.hold(delivery)

    def follow(self, entries: Sequence[tuple[Position, Envelope | None]], *, whole: bool) -> list[Delivery] | None:
        """Return what comes next for the member, oldest first; None where something of it is gone.

        What the log no longer has, because others published much meanwhile, may be held.

        Args:
            entries: The log after `last`; None where it does not hold the payload.
            whole: Whether they are all that there was.
        """
        held = {delivery.position: delivery for delivery in self._held}
        found: list[Delivery] = []
        at = self.last
        first = entries[0][0] if entries else None
        begun = 0
        for delivery in self._held:
            if not _covers(at, delivery.position):
                if delivery.position == first or not _is_next(at, delivery.position):
                    break
                found.append(delivery)
                at = delivery.position
            begun += 1
        for position, logged in entries:
            live = held.get(position)
            envelope = logged or (None if live is None else live.envelope)
            if envelope is None or not _is_next(at, position):
                return None
            found.append(Delivery(position, envelope))
            at = position
        if whole and not self.spilled:
            for delivery in self._held[begun:]:
                if _covers(at, delivery.position):
                    continue
                if not _is_next(at, delivery.position):
                    return None
                found.append(delivery)
                at = delivery.position
        return found

    def has(self, position: Position | None) -> bool:
        """Say whether ``position`` is held."""
        return any(delivery.position == position for delivery in self._held)

    def _forget_held(self) -> None:
        self._held, self._held_bytes = [], 0


def reaches_back(
    since: Position, newest: Position | None, first: Position | None, heard: Position | None, previous: Position | None
) -> bool:
    """Say whether a log, with what is held since before it was read, tells everything that came after ``since``.

    What this worker knew of the room before bridges a log that expired because nothing was said.

    Args:
        newest: The log's last position; None where there is no log.
        first: The first position after ``since`` that it has.
        heard: The room's last position before the log was read.
        previous: `Feed.previous` at that time.
    """
    if since.epoch == START.epoch:
        return False  # no log was there that could say anything
    if first is None:
        return since == newest or ((newest is None or newest.seq == 0) and since == heard)
    if first.epoch == since.epoch:
        return first.seq == since.seq + 1
    if heard is None or first.seq != 1:
        return False
    return since == heard or (since == previous and heard.epoch == first.epoch)


def _is_next(last: Position, position: Position) -> bool:
    return position.seq == (last.seq + 1 if position.epoch == last.epoch else 1)


def _covers(last: Position, position: Position) -> bool:
    """Say whether who has ``last`` has ``position`` too, of two positions of a room in its present epoch."""
    return position.epoch == last.epoch and position.seq <= last.seq
