"""The rooms of one worker: who joins, who publishes, and what each member gets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from wscluster import config
from wscluster.api import Joined
from wscluster.envelope import Position, check_room, encode_message, key_of, parse_since, publish_arguments
from wscluster.workers.fanout import Fanout
from wscluster.workers.feed import Delivery, Told
from wscluster.workers.gaps import Gaps, OnGap
from wscluster.workers.hub import Hub
from wscluster.workers.recovery import Recovery, Replayer
from wscluster.workers.subscribed import Room, SubscribedRooms
from wscluster.workers.subscription import Subscription

if TYPE_CHECKING:
    import uuid

    from wscluster.api import DataLike
    from wscluster.workers.connection import Connection


class Bus:
    """What `Connection`, `wscluster.publish` and `wscluster.subscribe` do with rooms.

    Args:
        bus: Where the bus is and how long it may take.
        max_send_queue: Unsent bytes of a member above which the next message closes it.
        want_bus: Asks the primary for the private server; `at` gets the answer.

    Attributes:
        published: Messages that this worker published.
    """

    def __init__(
        self, bus: config.Bus, max_send_queue: int, loop: asyncio.AbstractEventLoop, want_bus: Callable[[], None]
    ) -> None:
        self._config = bus
        self._loop = loop
        self._hub: Hub[Connection] = Hub()
        self._fanout = Fanout(self._hub, max_send_queue, loop)
        self._gaps = Gaps(self._hub, loop)
        self._rooms = SubscribedRooms(bus, loop, want_bus, self._in_use, self._follow)
        self._finder = self._rooms.finder
        self._replayer = Replayer(self._fanout, max_send_queue, bus.bus_timeout)
        self._recoveries: dict[Connection, dict[str, Recovery]] = {}
        self._subscriptions: dict[Subscription, None] = {}
        # Of members that are amid a fragmented message: what rooms say waits until it is whole.
        self._held_at: dict[Connection, dict[str, Position | None]] = {}
        self.at = self._finder.at
        self.published = 0

    @property
    def delivered(self) -> int:
        """Messages written to members, once for each."""
        return self._fanout.delivered

    @property
    def slow_closed(self) -> int:
        """Members closed because they did not read."""
        return self._fanout.slow_closed

    @property
    def gaps(self) -> int:
        """How often messages of a room were lost on their way here."""
        return self._gaps.count

    @property
    def ignored(self) -> int:
        """What came on the channels and was no message."""
        return self._rooms.ignored

    @property
    def losses(self) -> int:
        """How often the connection to the bus was lost."""
        return self._rooms.losses

    @property
    def probe_seconds(self) -> float | None:
        """What the last PING took that the bus has answered; None before the first."""
        return self._rooms.probe_seconds

    @property
    def rooms(self) -> int:
        """Number of rooms that have members here."""
        return len(self._hub)

    @property
    def connected(self) -> bool | None:
        """Whether the bus is heard; None where no room was used yet."""
        return self._rooms.connected

    # Members

    async def join(
        self, member: Connection, room: str, since: str | None = None, on_gap: OnGap | None = None
    ) -> Joined:
        """Make ``member`` one of ``room``, after the replay of what came after ``since``.

        Raises:
            TypeError, ValueError: The name is none, or ``since`` is no position.
            BusUnavailable: Not within the bus's timeout.
            ConnectionClosed: The connection closed meanwhile.
        """
        key = self._key(room)
        position = None if since is None else parse_since(since)
        if on_gap is not None and not callable(on_gap):
            raise TypeError(f"on_gap is called with each Gap: {type(on_gap).__name__} cannot be")
        while True:
            known = await self._rooms.wait_live(room, key)
            if not member.is_open:
                raise await member.wait_closed_exception()
            earlier = self._recoveries.get(member, {}).get(room)
            if earlier is None:
                break
            await asyncio.shield(earlier.ended)
        if position is None or self._hub.is_member(member, room):
            joined = self._become_member(member, known, on_gap)
            if position is not None:
                joined = Joined(joined.position, recovered=since == joined.position)
            return joined
        return await self._recover(member, known, position, on_gap)

    def _become_member(self, member: Connection, room: Room, on_gap: OnGap | None) -> Joined:
        self._fanout.flush(room.name)
        self._hub.join(member, room.name)
        self._gaps.expect(member, room.name, on_gap)
        self._rooms.taken(room)
        if member in self._held_at:
            self._held_at[member].setdefault(room.name, room.feed.last)
        return Joined(str(room.feed.last))

    async def _recover(self, member: Connection, room: Room, since: Position, on_gap: OnGap | None) -> Joined:
        recovery = Recovery(member, room, since)
        self._recoveries.setdefault(member, {})[room.name] = recovery
        self._rooms.taken(room)
        try:
            assert self._finder.commands is not None
            recovered = await self._replayer.replay(recovery, self._finder.commands)
            if recovery.ended.done():
                return Joined(str(recovery.lineup.last), recovered=False, missed=recovery.missed)
            position = self._become_member(member, room, on_gap).position
            return Joined(position, recovered, recovery.missed)
        finally:
            self._end_recovery(recovery)
            self._rooms.released(room)

    def _end_recovery(self, recovery: Recovery) -> None:
        """End it, and forget it at once: a join that waits for its end goes on before its replay notices."""
        recovery.end()
        mine = self._recoveries.get(recovery.member, {})
        if mine.get(recovery.room.name) is recovery:
            del mine[recovery.room.name]
            if not mine:
                del self._recoveries[recovery.member]

    async def leave(self, member: Connection, room: str) -> None:
        """Take ``member`` out of ``room``; a join that still replays ends."""
        key = self._key(room)
        self._gaps.leave(member, room)
        recovery = self._recoveries.get(member, {}).get(room)
        if recovery is not None:
            self._end_recovery(recovery)
        self._fanout.flush(room)
        if member in self._held_at:
            self._held_at[member].pop(room, None)
        if self._hub.leave(member, room):
            self._rooms.released(self._rooms[key])

    def forget(self, member: Connection) -> None:
        """Take ``member``, which has closed, out of every room."""
        self._gaps.forget(member)
        for recovery in self._recoveries.pop(member, {}).values():
            recovery.end()
        for room in self._hub.forget(member):
            self._rooms.released(self._rooms[self._key(room)])

    def rooms_of(self, member: Connection) -> frozenset[str]:
        """Return the rooms of ``member``."""
        return self._hub.rooms_of(member)

    def positions_of(self, member: Connection) -> Mapping[str, str]:
        """Return, for each room of ``member``, the position of the last message that was delivered to it.

        A room whose messages are still replayed to it is among them.
        """
        held_at = self._held_at.get(member)
        positions = {}
        for room in sorted(self._hub.rooms_of(member)):
            if held_at is not None:
                positions[room] = str(held_at[room])
                continue
            self._fanout.flush(room)
            positions[room] = str(self._rooms[self._key(room)].feed.last)
        for room, recovery in self._recoveries.get(member, {}).items():
            positions.setdefault(room, str(recovery.lineup.last))
        return positions

    def hold_positions(self, member: Connection) -> None:
        """A fragmented message of ``member`` begins: what its rooms say from now on waits for the message's end."""
        held_at: dict[str, Position | None] = {}
        for room in self._hub.rooms_of(member):
            self._fanout.flush(room)
            held_at[room] = self._rooms[self._key(room)].feed.last
        self._held_at[member] = held_at

    def release_positions(self, member: Connection) -> None:
        """The fragmented message of ``member`` has ended."""
        self._held_at.pop(member, None)

    # Everybody

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

    def subscribe(self, rooms: tuple[str, ...], max_queue: int) -> Subscription:
        """Return what `wscluster.subscribe` enters.

        Raises:
            TypeError, ValueError: A name is none, there is none, or the queue's bound is no whole number from 1 on.
        """
        if not rooms:
            raise TypeError("wscluster.subscribe wants the name of at least one room")
        if isinstance(max_queue, bool) or not isinstance(max_queue, int):
            raise TypeError(f"max_queue is a whole number, not {type(max_queue).__name__}")
        if max_queue < 1:
            raise ValueError(f"max_queue is at least 1, not {max_queue}")
        channels = {room: self._key(room) for room in rooms}
        return Subscription(self._rooms, channels, max_queue, self._loop, self._subscriptions)

    def end_subscriptions(self) -> None:
        """The worker drains: whoever iterates over rooms, or is about to, gets what waits, and then the end."""
        for subscription in tuple(self._subscriptions):
            subscription.end()

    async def close(self) -> None:
        """Close the connections to the bus."""
        self.end_subscriptions()
        self._gaps.close()
        await self._rooms.close()

    def _key(self, room: object) -> bytes:
        return key_of(self._config.redis_prefix, check_room(room))

    def _in_use(self, room: Room) -> bool:
        return bool(room.taps or self._hub.members(room.name))

    def _follow(self, room: Room, told: Told) -> None:
        if room.taps:
            for tap in tuple(room.taps):
                tap.take(room.name, told)
        if isinstance(told, Delivery):
            self._fanout.deliver(room.name, told.envelope)
        else:
            # What came before it is written before it is told.
            self._fanout.flush(room.name)
            self._gaps.tell(room.name, told)
