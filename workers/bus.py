"""The rooms of one worker: who joins, who publishes, and what each member gets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from wscluster import config
from wscluster.api import Joined
from wscluster.envelope import check_room, encode_message, key_of, publish_arguments
from wscluster.workers.fanout import Fanout
from wscluster.workers.feed import Delivery, Outcome
from wscluster.workers.hub import Hub
from wscluster.workers.subscribed import Room, SubscribedRooms

if TYPE_CHECKING:
    import uuid

    from wscluster.api import DataLike
    from wscluster.workers.connection import Connection

GAP_LOG_SECONDS = 1.0

logger = logging.getLogger("wscluster.bus")


class Bus:
    """What `Connection` and `wscluster.publish` do with rooms.

    Args:
        bus: Where the bus is and how long it may take.
        max_send_queue: Unsent bytes of a member above which the next message closes it.
        want_bus: Asks the primary for the private server; `at` gets the answer.

    Attributes:
        published: Messages that this worker published.
        gaps: How often messages of a room were lost on their way here.
    """

    def __init__(
        self, bus: config.Bus, max_send_queue: int, loop: asyncio.AbstractEventLoop, want_bus: Callable[[], None]
    ) -> None:
        self._config = bus
        self._loop = loop
        self._hub: Hub[Connection] = Hub()
        self._fanout = Fanout(self._hub, max_send_queue, loop)
        self._rooms = SubscribedRooms(bus, loop, want_bus, self._in_use, self._follow)
        self._finder = self._rooms.finder
        self.at = self._finder.at
        self._gap_logged_at = -GAP_LOG_SECONDS
        self._gaps_unlogged = 0
        self.published = 0
        self.gaps = 0

    @property
    def delivered(self) -> int:
        """Messages written to members, once for each."""
        return self._fanout.delivered

    @property
    def slow_closed(self) -> int:
        """Members closed because they did not read."""
        return self._fanout.slow_closed

    @property
    def rooms(self) -> int:
        """Number of rooms that have members here."""
        return len(self._hub)

    @property
    def connected(self) -> bool | None:
        """Whether the bus is heard; None where no room was used yet."""
        return self._rooms.connected

    async def join(self, member: Connection, room: str) -> Joined:
        """Make ``member`` one of ``room``; returns when the subscription is live.

        Raises:
            TypeError, ValueError: The name is none.
            BusUnavailable: Not within the bus's timeout.
            ConnectionClosed: The connection closed meanwhile.
        """
        known = await self._rooms.wait_live(room, self._key(room))
        if not member.is_open:
            await member.wait_lost()
            raise member.closed_exception()
        self._fanout.flush(room)
        self._hub.join(member, room)
        self._rooms.taken(known)
        return Joined(str(known.feed.last))

    async def leave(self, member: Connection, room: str) -> None:
        """Take ``member`` out of ``room``."""
        key = self._key(room)
        self._fanout.flush(room)
        if self._hub.leave(member, room):
            self._rooms.released(self._rooms[key])

    def forget(self, member: Connection) -> None:
        """Take ``member``, which has closed, out of every room."""
        for room in self._hub.forget(member):
            self._rooms.released(self._rooms[self._key(room)])

    def rooms_of(self, member: Connection) -> frozenset[str]:
        """Return the rooms of ``member``."""
        return self._hub.rooms_of(member)

    def positions_of(self, member: Connection) -> Mapping[str, str]:
        """Return, for each room of ``member``, the position of the last message that was delivered to it."""
        positions = {}
        for room in sorted(self._hub.rooms_of(member)):
            self._fanout.flush(room)
            positions[room] = str(self._rooms[self._key(room)].feed.last)
        return positions

    async def publish(self, room: str, message: DataLike, exclude: uuid.UUID | None = None) -> str:
        """Send ``message`` to every member of ``room``, except the connection ``exclude``; returns its position.

        Raises:
            TypeError: The message is neither `str` nor bytes-like.
            ValueError: The room's name is none.
            BusUnavailable: Not within the bus's timeout; whether the message arrived is unknown.
        """
        bus = self._config
        key = self._key(room)
        envelope = encode_message(message, None if exclude is None else exclude.bytes)
        commands = self._finder.commands or await self._finder.wait_commands()
        position = await commands.send(*publish_arguments(key, envelope, bus.room_log, bus.room_log_ttl))
        self.published += 1
        return bytes(position).decode("ascii")

    async def close(self) -> None:
        """Close the connections to the bus."""
        await self._rooms.close()

    def _key(self, room: object) -> bytes:
        return key_of(self._config.redis_prefix, check_room(room))

    def _in_use(self, room: Room) -> bool:
        return bool(self._hub.members(room.name))

    def _follow(self, room: Room, outcome: Outcome) -> None:
        if isinstance(outcome, Delivery):
            self._fanout.deliver(room.name, outcome.envelope)
            return
        self.gaps += 1
        now = self._loop.time()
        if now - self._gap_logged_at < GAP_LOG_SECONDS:
            self._gaps_unlogged += 1
            return
        logger.warning(
            "room %r: messages were lost after %s, before %s%s",
            room.name,
            outcome.after,
            outcome.before or "the next",
            f" (and {self._gaps_unlogged} gaps more since the last such line)" if self._gaps_unlogged else "",
        )
        self._gap_logged_at, self._gaps_unlogged = now, 0
