"""Who is in which room on this worker."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

Member = TypeVar("Member", bound=Hashable)


class Hub(Generic[Member]):
    """Rooms and their local members, looked up from both sides."""

    def __init__(self) -> None:
        self._members: dict[str, dict[Member, None]] = {}
        self._rooms: dict[Member, set[str]] = {}

    def __len__(self) -> int:
        """Return the number of rooms that have members."""
        return len(self._members)

    def join(self, member: Member, room: str) -> bool:
        """Add ``member`` to ``room``; True where it is the first."""
        members = self._members.get(room)
        first = members is None
        if members is None:
            members = self._members[room] = {}
        members[member] = None
        self._rooms.setdefault(member, set()).add(room)
        return first

    def leave(self, member: Member, room: str) -> bool:
        """Take ``member`` out of ``room``; True where it was the last."""
        rooms = self._rooms.get(member)
        if rooms is None or room not in rooms:
            return False
        rooms.discard(room)
        if not rooms:
            del self._rooms[member]
        members = self._members[room]
        del members[member]
        if members:
            return False
        del self._members[room]
        return True

    def forget(self, member: Member) -> list[str]:
        """Take ``member`` out of every room; returns the rooms that are empty now."""
        return [room for room in tuple(self._rooms.get(member, ())) if self.leave(member, room)]

    def is_member(self, member: Member, room: str) -> bool:
        """Say whether ``member`` is in ``room``."""
        return room in self._rooms.get(member, ())

    def members(self, room: str) -> Collection[Member]:
        """Return the members of ``room``, in the order in which they came."""
        return self._members.get(room, {})

    def rooms_of(self, member: Member) -> frozenset[str]:
        """Return the rooms of ``member``."""
        return frozenset(self._rooms.get(member, ()))
