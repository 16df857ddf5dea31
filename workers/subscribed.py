"""The rooms that this worker hears: subscribed while somebody is in them, in their one order over interruptions."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from wscluster import config
from wscluster.envelope import decode_message, split_published
from wscluster.errors import BusUnavailable
from wscluster.subscriber import PING_SECONDS, PONG_SECONDS, Subscriber
from wscluster.workers.bus_finder import BusFinder
from wscluster.workers.feed import Feed, Forged, Outcome, Told
from wscluster.workers.log_reader import LogReader, LogTail

LINGER_SECONDS = 5.0
"""A room without members stays subscribed for this long: whoever comes back needs no round trip."""
EXPIRY_MARGIN_SECONDS = 1.0
"""A log gone this long before its time was evicted. The server counts from the publishing, we from the hearing."""

logger = logging.getLogger("wscluster.bus")


class Tap(Protocol):
    """Somebody who gets each message and loss of a room at once, beside its members."""

    def take(self, room: str, told: Told) -> None: ...


@dataclass(slots=True, eq=False)
class Room:
    """One room that is, or is to be, subscribed.

    Attributes:
        live: Whether a member may join: its subscription is confirmed and its log was read.
        taps: While there is one, the room stays subscribed.
    """

    name: str
    channel: bytes
    feed: Feed = field(default_factory=Feed)
    live: bool = False
    taps: dict[Tap, None] = field(default_factory=dict)
    # When its last message came: its log lives for a while from then on.
    heard_at: float = -math.inf
    joining: int = 0
    # Set while somebody waits for the room to be live.
    waiter: asyncio.Future[None] | None = None
    linger: asyncio.TimerHandle | None = None
    # Whether the log is read because of a new subscription, not because of a doubt.
    resubscribed: bool = False


class SubscribedRooms:
    """Subscribes rooms, and says what comes in them in their one order.

    Args:
        in_use: Says whether somebody is in a room.
        follow: Called with each message of a room, and each loss.

    Attributes:
        ignored: What came on the channels and was no message, or one that nobody published.
    """

    def __init__(
        self,
        bus: config.Bus,
        loop: asyncio.AbstractEventLoop,
        want_bus: Callable[[], None],
        in_use: Callable[[Room], bool],
        follow: Callable[[Room, Told], None],
    ) -> None:
        self._config = bus
        self._loop = loop
        self._in_use = in_use
        self._follow = follow
        self.finder = BusFinder(bus, loop, want_bus, self._found)
        self._rooms: dict[bytes, Room] = {}
        self._subscriber: Subscriber | None = None
        self._run_id: str | None = None
        self._lost_at = 0.0
        self._log_kept = True
        self._logs = LogReader(loop, bus.room_log_ttl, self._log_read)
        self.ignored = 0
        self.losses = 0

    @property
    def connected(self) -> bool | None:
        """Whether the bus is heard; None where no room was used yet."""
        return None if self._subscriber is None else self._subscriber.connected

    @property
    def probe_seconds(self) -> float | None:
        """What the last PING took that the bus has answered; None before the first."""
        return None if self._subscriber is None else self._subscriber.probe_seconds

    def __getitem__(self, channel: bytes) -> Room:
        return self._rooms[channel]

    async def close(self) -> None:
        """Close the connections to the bus."""
        for room in self._rooms.values():
            if room.linger is not None:
                room.linger.cancel()
        self._logs.close()
        if self._subscriber is not None:
            await self._subscriber.close()
        await self.finder.close()

    # Rooms that come and go

    async def wait_live(self, name: str, channel: bytes) -> Room:
        """Return the room ``name``, whose subscription is live.

        Raises:
            BusUnavailable: Not within the bus's timeout.
        """
        room = self._rooms.get(channel)
        if room is not None and room.live:
            return room
        timeout = self._config.bus_timeout
        if room is None:
            room = self._rooms[channel] = Room(name, channel)
            if self._subscriber is not None:
                self._subscriber.subscribe(channel)
        room.joining += 1
        try:
            async with asyncio.timeout(timeout):
                await self.finder.wait_commands()
                while not room.live:
                    if room.waiter is None:
                        room.waiter = self._loop.create_future()
                    await asyncio.shield(room.waiter)
        except TimeoutError:
            raise BusUnavailable(
                f"room {name!r} cannot be joined: no answer from the bus within {timeout:g} s"
            ) from None
        finally:
            room.joining -= 1
            # Whatever happened: a join that was cancelled in the moment of its success must not keep the room either.
            self.released(room)
        return room

    def taken(self, room: Room) -> None:
        """Somebody is in ``room``: it stays subscribed."""
        if room.linger is not None:
            room.linger.cancel()
            room.linger = None

    def released(self, room: Room) -> None:
        """Nobody may be left in ``room``: unsubscribe, after a while in which somebody may come back."""
        if room.linger is None and not room.joining and not self._in_use(room):
            room.linger = self._loop.call_later(LINGER_SECONDS, self._unsubscribe, room)

    def _unsubscribe(self, room: Room) -> None:
        room.linger = None
        if not room.joining and not self._in_use(room):
            del self._rooms[room.channel]
            self._logs.forget(room.channel)
            if self._subscriber is not None:
                self._subscriber.unsubscribe(room.channel)

    # What the bus says

    def _found(self, url: str) -> None:
        self._subscriber = Subscriber(
            url, self._loop, self._message_came, self._subscribed, self._connected, self._disconnected
        )
        for channel in self._rooms:
            self._subscriber.subscribe(channel)

    def _connected(self, run_id: str | None) -> None:
        """The bus is heard (again). Whether the logs still hold what was missed: the same server, and not too late."""
        away = self._loop.time() - self._lost_at
        unheard = away + PING_SECONDS + PONG_SECONDS  # it may have been gone for so long when that was noticed
        self._log_kept = run_id is not None and run_id == self._run_id and unheard < self._config.room_log_ttl
        if self._run_id is not None or self._lost_at:
            logger.info("the bus is back after %.1f s", away)
        self._run_id = run_id

    def _disconnected(self, reason: str) -> None:
        logger.warning("the bus is gone: %s; connections stay, rooms wait", reason)
        self._lost_at = self._loop.time()
        self.losses += 1
        self._logs.cancel()
        for room in self._rooms.values():
            room.live = False

    def _subscribed(self, channel: bytes) -> None:
        room = self._rooms.get(channel)
        if room is not None:
            room.live = False
            room.resubscribed = True
            room.feed.begin_sync()
            self._read_log(room)

    def _read_log(self, room: Room) -> None:
        assert self.finder.commands is not None
        self._logs.read(self.finder.commands, room.channel, room.feed.last)

    def _message_came(self, channel: bytes, data: bytes) -> None:
        room = self._rooms.get(channel)
        if room is None:
            return
        published = split_published(data)
        envelope = None if published is None else decode_message(published[1])
        if published is None or envelope is None:
            self._ignore(room, "what came on its channel is no message")
            return
        room.heard_at = self._loop.time()
        told = room.feed.receive(published[0], envelope)
        if told:
            for each in told:
                self._follow(room, each)
        elif room.feed.doubts:
            room.feed.doubts = False
            self._read_log(room)

    def _ignore(self, room: Room, why: str) -> None:
        if not self.ignored:
            logger.warning("room %r: %s: ignored, as later ones are without a word", room.name, why)
        self.ignored += 1

    def _log_read(self, channel: bytes, tail: LogTail) -> None:
        room = self._rooms.get(channel)
        if room is None:
            return
        if room.feed.last is None:
            outcomes = room.feed.synced_first(tail.newest)
        else:
            outcomes = room.feed.synced_again(tail.entries, tail.newest, log_kept=self._is_log_kept(room, tail))
        room.resubscribed = False
        self._follow_all(room, outcomes)
        room.live = True
        waiter, room.waiter = room.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _is_log_kept(self, room: Room, tail: LogTail) -> bool:
        """Say whether what came while the room was not heard is in its log, or would be."""
        if not room.resubscribed:
            return True
        young = self._loop.time() - room.heard_at < self._config.room_log_ttl - EXPIRY_MARGIN_SECONDS
        evicted = young and (tail.newest is None or tail.newest.seq == 0)
        return self._log_kept and not evicted

    def _follow_all(self, room: Room, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Forged):
                self._ignore(room, f"a message with the position {outcome.position}, which its log does not know")
            else:
                self._follow(room, outcome)
