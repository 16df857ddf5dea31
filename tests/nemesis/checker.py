"""Judges what publishers did and subscribers heard: nothing lost unsaid, nothing twice, one order for all.

Everything here is pure: histories go in, sentences about what must not have happened come out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Place = tuple[int, int]
"""A position as the document of the bus writes it: epoch and count. A later epoch is a larger one."""

NOWHERE: Place = (0, 0)
"""Where a room stands that has no log: before everything that is to come."""


def place(position: str) -> Place:
    """Return the epoch and the count of a position."""
    epoch, count = position.split("-")
    return int(epoch), int(count)


@dataclass(frozen=True, slots=True)
class Published:
    """A publish that was tried. ``position`` is None where its outcome is unknown: it may have arrived, once."""

    room: str
    text: str
    position: str | None


@dataclass(frozen=True, slots=True)
class Heard:
    """A message; its position is None where the subscriber is not told it."""

    text: str
    position: str | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """A gap was told: what stands between the two positions may be lost. ``before`` is empty: until what comes next."""

    after: str
    before: str


@dataclass(frozen=True, slots=True)
class Mark:
    """The subscriber was told how far it is: everything until here was delivered."""

    position: str


@dataclass(frozen=True, slots=True)
class Began:
    """The subscription is live, from ``position`` on, or from ``since`` on where that was recovered."""

    position: str
    recovered: bool


@dataclass(slots=True)
class Session:
    """One subscription from its beginning to its end, in the order in which things came.

    ``since`` is a mark of an earlier session of the same subscriber, or None.
    """

    subscriber: str
    room: str
    since: str | None = None
    items: list[Heard | Told | Mark | Began] = field(default_factory=list)

    def heard(self) -> list[str]:
        """Return the messages."""
        return [item.text for item in self.items if isinstance(item, Heard)]

    def last_mark(self) -> str | None:
        """Return the position with which the subscriber would come back."""
        if not any(isinstance(item, Began) for item in self.items):
            return self.since
        for item in reversed(self.items):
            if isinstance(item, Mark):
                return item.position
        return self.since or next(item.position for item in self.items if isinstance(item, Began))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was judged, and what must not have happened."""

    published: int
    heard: int
    sessions: int
    recovered: int
    gaps: int
    faults: tuple[str, ...]

    def __str__(self) -> str:
        figures = (
            f"{self.published} published, {self.heard} heard in {self.sessions} sessions, "
            f"{self.recovered} of them recovered, {self.gaps} gaps told"
        )
        return "\n".join([f"{figures}: {len(self.faults)} faults", *self.faults[:50]])


def judge(publishes: Sequence[Published], sessions: Sequence[Session], finals: Mapping[str, str]) -> Verdict:
    """Return the verdict.

    Args:
        publishes: Every publish that was tried, each with a text of its own.
        sessions: What each subscriber heard, its sessions in the order of time.
        finals: For each room, a message that was published after the last trouble: whoever was there last has it.
    """
    faults: list[str] = []
    places = _agree_on_places(publishes, sessions, faults)
    known = {published.text: published for published in publishes}
    for session in sessions:
        _check_session(session, known, faults)
        _check_losses(session, places, faults)
    _check_returns(sessions, faults)
    for room in sorted({session.room for session in sessions}):
        _check_order(room, [session for session in sessions if session.room == room], places, faults)
    latest = {(session.subscriber, session.room): session for session in sessions}
    for session in latest.values():
        if finals[session.room] not in session.heard():
            faults.append(f"{_name(session)}: never heard the last message {finals[session.room]!r}")
    returned = [item for session in sessions if session.since for item in session.items if isinstance(item, Began)]
    return Verdict(
        published=len(publishes),
        heard=sum(len(session.heard()) for session in sessions),
        sessions=len(sessions),
        recovered=sum(item.recovered for item in returned),
        gaps=sum(isinstance(item, Told) for session in sessions for item in session.items),
        faults=tuple(faults),
    )


def _name(session: Session) -> str:
    return f"{session.subscriber} in {session.room} since {session.since}"


def _agree_on_places(
    publishes: Iterable[Published], sessions: Iterable[Session], faults: list[str]
) -> dict[str, dict[str, Place]]:
    """Return, for each room, where its messages stand: all who were told must have been told the same."""
    places: dict[str, dict[str, Place]] = defaultdict(dict)
    owners: dict[tuple[str, Place], str] = {}

    def learn(room: str, text: str, position: str) -> None:
        at = place(position)
        if places[room].setdefault(text, at) != at:
            faults.append(f"{text!r} in {room} stands at {places[room][text]} and at {at}: it was sent twice")
        if owners.setdefault((room, at), text) != text:
            faults.append(f"{owners[room, at]!r} and {text!r} both stand at {at} in {room}")

    for published in publishes:
        if published.position is not None:
            learn(published.room, published.text, published.position)
    for session in sessions:
        for item in session.items:
            if isinstance(item, Heard) and item.position is not None:
                learn(session.room, item.text, item.position)
    return places


def _check_session(session: Session, known: Mapping[str, Published], faults: list[str]) -> None:
    seen: set[str] = set()
    for text in session.heard():
        if text not in known or known[text].room != session.room:
            faults.append(f"{_name(session)}: heard {text!r}, which nobody published there")
        if text in seen:
            faults.append(f"{_name(session)}: heard {text!r} twice")
        seen.add(text)


def _check_losses(session: Session, places: Mapping[str, Mapping[str, Place]], faults: list[str]) -> None:
    """Between the first and the last that a session is known to cover, each message was heard, or a gap was told."""
    began = next((item for item in session.items if isinstance(item, Began)), None)
    if began is None:
        return
    standing = places.get(session.room, {})
    first = _first_covered(session, began, standing)
    reached = [standing[text] for text in session.heard() if text in standing]
    reached += [place(item.position) for item in session.items if isinstance(item, Mark)]
    if not reached or first == NOWHERE:
        return
    last = max(reached, default=first)
    heard = set(session.heard())
    gaps = list(_gaps(session, standing))
    for text, at in standing.items():
        if first < at <= last and text not in heard and not any(after < at < before for after, before in gaps):
            faults.append(f"{_name(session)}: {text!r} at {at} was neither heard nor told as lost")


def _first_covered(session: Session, began: Began, standing: Mapping[str, Place]) -> Place:
    """Return the position after which the session covers everything."""
    if session.since and began.recovered:
        return place(session.since)
    first = place(began.position)
    if first == NOWHERE:  # the room had no log: it covers the whole of the one that it hears first
        first = next(((standing[text][0], 0) for text in session.heard() if text in standing), first)
    return first


def _gaps(session: Session, standing: Mapping[str, Place]) -> Iterable[tuple[Place, Place]]:
    reached = sorted(standing[text] for text in session.heard() if text in standing)
    for item in session.items:
        if isinstance(item, Told):
            after = place(item.after)
            before = place(item.before) if item.before else next((at for at in reached if at > after), (1 << 80, 0))
            yield after, before


def _check_returns(sessions: Iterable[Session], faults: list[str]) -> None:
    """Nothing that a subscriber had until its mark comes again after its return with that mark."""
    kept: dict[tuple[str, str], set[str]] = defaultdict(set)
    for session in sessions:
        mine = kept[session.subscriber, session.room]
        if session.since is None:
            mine.clear()
        for text in session.heard():
            if text in mine:
                faults.append(f"{_name(session)}: heard {text!r} again after its return")
        marks = [number for number, item in enumerate(session.items) if isinstance(item, Mark)]
        mine |= {item.text for item in session.items[: marks[-1] if marks else 0] if isinstance(item, Heard)}


def _check_order(room: str, sessions: Iterable[Session], places: Mapping[str, Mapping[str, Place]],
                 faults: list[str]) -> None:  # fmt: skip
    """There is one order of the room's messages that every session and every known position agrees with."""
    followers: dict[str, set[str]] = defaultdict(set)
    ahead: dict[str, int] = defaultdict(int)
    standing = places.get(room, {})
    chains = [session.heard() for session in sessions]
    chains.append(sorted(standing, key=lambda text: standing[text]))
    for chain in chains:
        for one, other in pairwise(chain):
            ahead[one] += 0
            if other not in followers[one]:
                followers[one].add(other)
                ahead[other] += 1
    free = [text for text, count in ahead.items() if not count]
    while free:
        text = free.pop()
        del ahead[text]
        for other in followers[text]:
            ahead[other] -= 1
            if not ahead[other]:
                free.append(other)
    if ahead:
        some = ", ".join(sorted(ahead)[:5])
        faults.append(f"{room}: no one order fits what was heard of {len(ahead)} messages, among them {some}")
