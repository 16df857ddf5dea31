"""What a worker answers when the primary asks for its connections, or for the end of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

MAX_ROOMS = 20
"""Rooms that are named of one connection; `rooms_count` says how many there are."""
MAX_CHARS = 200


@dataclass(frozen=True, slots=True)
class Described:
    """One connection. None is what this kind of service cannot know.

    Attributes:
        id: Names it in the whole cluster, and never another one.
        client: Host and port of the true client; None on a Unix socket.
        rooms: Those it is a member of.
    """

    id: str
    client: tuple[str, int] | None
    path: str | None = None
    rooms: frozenset[str] | None = None
    unsent_bytes: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it in the shape that programs rely on, bounded in size."""
        return {
            "id": self.id,
            "client": None if self.client is None else list(self.client),
            "path": None if self.path is None else self.path[:MAX_CHARS],
            "rooms": None if self.rooms is None else sorted(self.rooms)[:MAX_ROOMS],
            "rooms_count": None if self.rooms is None else len(self.rooms),
            "unsent_bytes": self.unsent_bytes,
        }


def make_page(
    described: Iterable[Described], begin: int, count: int, room: str | None, host: str | None
) -> dict[str, Any]:
    """Return up to ``count`` of the connections that fit, looked for from the one with the index ``begin`` on.

    ``seen`` is how many were looked at, and ``more`` whether there are others.
    """
    page: list[dict[str, Any]] = []
    seen = 0
    rest: Iterator[Described] = islice(iter(described), begin, None)
    for one in rest:
        if len(page) >= count:
            return {"connections": page, "seen": seen, "more": True}
        seen += 1
        in_room = room is None or (one.rooms is not None and room in one.rooms)
        if in_room and (host is None or (one.client is not None and one.client[0] == host)):
            page.append(one.as_json())
    return {"connections": page, "seen": seen, "more": False}
