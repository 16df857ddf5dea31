"""The order of one room's messages as this worker hears them: what to deliver, what came twice, and what was lost.

A position is an epoch and a count without holes, so a hole shows by arithmetic. While the subscription is (again) new,
live messages are held until the log has said what came before them. So is a live message that does not follow the last
one: the log says what came between, or that nobody published it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wscluster.envelope import START, Envelope, Position

MAX_HELD = 4096
"""Live messages held while the log is read; later ones are left to the log, or lost, which their positions show."""
MAX_HELD_BYTES = 8 * 1024 * 1024
"""Bytes of their payloads; a first message is held whatever its size."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """This message is the next."""

    position: Position
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Lost:
    """What stood between two positions is lost, or may be; ``before`` is None where nothing newer is known."""

    after: Position
    before: Position | None


@dataclass(frozen=True, slots=True)
class Forged:
    """A message with a position that the log does not know, and that does not follow it: ignored."""

    position: Position


Told = Delivery | Lost
Outcome = Told | Forged


@dataclass(slots=True)
class Feed:
    """One room on one worker.

    Attributes:
        last: Position of the last message that was delivered; None before the first synchronisation.
        previous: The last position of the epoch before, where no message was lost between the two; else None.
        doubts: True when the log is to be read, because a live message does not follow the last one.
    """

    last: Position | None = None
    previous: Position | None = None
    doubts: bool = False
    _held: list[Delivery] | None = None
    # Bytes that may still be held; below 0 nothing more is, lest a smaller message take the place of a larger one.
    _bytes_left: int = 0
    # Set while the log is read: where a hole begins whose end is not known yet.
    _hole: Position | None = None
    # The last live message that was held when the connection broke off before the log was read: only a log of the same
    # epoch can still have it.
    _dropped: Position | None = None

    @property
    def syncing(self) -> bool:
        """True while live messages are held, or nothing is known yet."""
        return self._held is not None or self.last is None

    def begin_sync(self) -> None:
        """The subscription is live: hold what comes until the log was read."""
        self.doubts = False
        if self._held:
            self._dropped = self._held[-1].position
        self._held, self._bytes_left = [], MAX_HELD_BYTES

    def receive(self, position: Position, envelope: Envelope) -> Sequence[Told]:
        """A live message; returns what follows. Where that is nothing, `doubts` may have become true."""
        if self._held is not None:
            self._bytes_left -= len(envelope.payload)
            if not self._held or (len(self._held) < MAX_HELD and self._bytes_left >= 0):
                self._held.append(Delivery(position, envelope))
            return []
        last = self.last
        if last is None:
            return []
        if position.epoch == last.epoch:
            if position.seq <= last.seq:
                return []  # heard already
            follows = position.seq == last.seq + 1
        else:
            follows = position.seq == 1 and position.epoch > last.epoch
        if not follows:
            self._held, self._bytes_left = [Delivery(position, envelope)], MAX_HELD_BYTES - len(envelope.payload)
            self.doubts = True
            return []
        if position.epoch != last.epoch:
            self.previous = last
        self.last = position
        return [Delivery(position, envelope)]

    def synced_first(self, newest: Position | None) -> list[Outcome]:
        """The first subscription: the room begins after ``newest``, the last message of its log, if it has one."""
        self.last = newest or START
        return self._release(newest)

    def synced_again(
        self, entries: Sequence[tuple[Position, Envelope | None]], newest: Position | None, *, log_kept: bool
    ) -> list[Outcome]:
        """The log was read after an interruption, or a doubt.

        Args:
            entries: The log after `last`; None where it does not hold the payload.
            newest: Last position of the log; None where there is no log.
            log_kept: False where a log could have been lost: another server, or away for longer than it is kept.
        """
        last = self.last
        assert last is not None
        if newest is not None and newest.seq == 0 and newest.epoch != last.epoch:
            newest = None  # another worker began a log, after the room's own had expired
        dropped, self._dropped = self._dropped, None
        if not log_kept or (dropped is not None and (newest is None or newest.epoch != dropped.epoch)):
            self._open_hole(last if newest is not None else START)
        if newest is None:
            pass  # a quiet room's log expires
        elif newest.epoch == last.epoch:
            if newest.seq < last.seq:  # the server came back with an older memory
                self._open_hole(newest)
        elif last.seq != 0:
            self._open_hole_until_known(newest, [position for position, _ in entries])
        # The log does not keep a large payload; if it came while the log was read, it is here.
        held = {delivery.position: delivery.envelope for delivery in self._held or ()}
        outcomes: list[Outcome] = []
        self.doubts = False
        for position, logged in entries:
            envelope = logged or held.get(position)
            if envelope is not None:
                outcomes += self._advance(position, envelope)
            else:
                self._open_hole(position)
        if newest is not None and newest > (self.last or START):
            self._open_hole_until_known(newest, [])  # trimmed before it was read
        outcomes += self._release(newest)
        if self._hole is not None:
            outcomes.append(Lost(self._hole, None))
            self._hole = None
        return outcomes

    def _open_hole_until_known(self, newest: Position, known: Sequence[Position]) -> None:
        """What came until ``newest`` is lost, but for what is ``known`` of its epoch, or held."""
        assert self.last is not None
        at = self.last
        held = [delivery.position for delivery in self._held or ()]
        heard = at.seq if at.epoch == newest.epoch else -1
        there = (position for position in (*known, *held) if position.epoch == newest.epoch and position.seq > heard)
        first = next(there, None)
        last = newest if first is None or first > newest else Position(first.epoch, first.seq - 1)
        if last != at:
            self._open_hole(last)

    def _open_hole(self, last: Position) -> None:
        """What came until ``last``, that one included, is lost."""
        assert self.last is not None
        self._hole = self._hole or self.last
        if last.epoch != self.last.epoch:
            self.previous = None
        self.last = last

    def _release(self, newest: Position | None) -> list[Outcome]:
        """Go on with what was held; ``newest`` is the log's last position."""
        held, self._held = self._held, None
        outcomes: list[Outcome] = []
        for delivery in held or ():
            # The log was read after the subscription, so what was published since follows it without a hole. Only
            # where there is no log can nothing be said.
            if newest is not None and (self._skips(delivery.position) or self._is_of_the_past(delivery.position)):
                outcomes.append(Forged(delivery.position))
            else:
                outcomes += self._advance(delivery.position, delivery.envelope)
        return outcomes

    def _skips(self, position: Position) -> bool:
        """Say whether something is missing before ``position``, which was not heard yet."""
        assert self.last is not None
        if position.epoch == self.last.epoch:
            return position.seq > self.last.seq + 1
        return position.seq != 1

    def _is_of_the_past(self, position: Position) -> bool:
        """Say whether ``position`` is of an epoch before the present one."""
        assert self.last is not None
        return position.epoch < self.last.epoch

    def _advance(self, position: Position, envelope: Envelope) -> list[Outcome]:
        last = self.last
        assert last is not None
        if position.epoch == last.epoch and position.seq <= last.seq:
            return []  # heard already
        after = self._hole or (last if self._skips(position) else None)
        if position.epoch != last.epoch:
            self.previous = last if after is None else None
        self.last, self._hole = position, None
        delivery = Delivery(position, envelope)
        return [delivery] if after is None else [Lost(after, position), delivery]
