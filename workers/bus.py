"""The rooms of one worker: what it subscribes to, who joins, and every room's messages in their one order."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wscluster import config
from wscluster.api import Joined
from wscluster.commands import Commands
from wscluster.envelope import (
    check_room,
    decode_message,
    encode_message,
    key_of,
    publish_arguments,
    split_published,
)
from wscluster.errors import BusUnavailable
from wscluster.subscriber import PING_SECONDS, PONG_SECONDS, Subscriber
from wscluster.workers.fanout import Fanout
from wscluster.workers.feed import Delivery, Feed, Outcome
from wscluster.workers.hub import Hub
from wscluster.workers.log_reader import LogReader, LogTail

if TYPE_CHECKING:
    import uuid

    from wscluster.api import DataLike
    from wscluster.workers.connection import Connection

LINGER_SECONDS = 5.0
"""A room without members stays subscribed for this long: whoever comes back needs no round trip."""
ASK_AGAIN_SECONDS = 5.0
GAP_LOG_SECONDS = 1.0
EXPIRY_MARGIN_SECONDS = 1.0
"""A log gone this long before its time was evicted. The server counts from the publishing, we from the hearing."""

logger = logging.getLogger("wscluster.bus")


@dataclass(slots=True, eq=False)
class _Room:
    name: str
    channel: bytes
    feed: Feed = field(default_factory=Feed)
    live: bool = False
    # When its last message came: its log lives for a while from then on.
    heard_at: float = -math.inf
    joining: int = 0
    # Set while somebody waits for the room to be live.
    waiter: asyncio.Future[None] | None = None
    linger: asyncio.TimerHandle | None = None


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
        self._want_bus = want_bus
        self._hub: Hub[Connection] = Hub()
        self._fanout = Fanout(self._hub, max_send_queue, loop)
        self._rooms: dict[bytes, _Room] = {}
        self._commands: Commands | None = None
        self._subscriber: Subscriber | None = None
        self._address: asyncio.Future[str] | None = None
        self._refusal = ""
        self._asked_at = 0.0
        self._run_id: str | None = None
        self._lost_at = 0.0
        self._log_kept = True
        self._logs = LogReader(loop, self._log_read)
        self._gap_logged_at = -GAP_LOG_SECONDS
        self._gaps_unlogged = 0
        self._malformed = False
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
        return None if self._subscriber is None else self._subscriber.connected

    # What a connection does

    async def join(self, member: Connection, room: str) -> Joined:
        """Make ``member`` one of ``room``; returns when the subscription is live.

        Raises:
            TypeError, ValueError: The name is none.
            BusUnavailable: Not within the bus's timeout.
            ConnectionClosed: The connection closed meanwhile.
        """
        channel = key_of(self._config.redis_prefix, check_room(room))
        known = self._rooms.get(channel)
        if known is None or not known.live:
            known = await self._wait_live(room, channel)
            if not member.is_open:
                await member.wait_lost()
                raise member.closed_exception()
        self._fanout.flush(room)
        self._hub.join(member, room)
        if known.linger is not None:
            known.linger.cancel()
            known.linger = None
        return Joined(str(known.feed.last))

    async def leave(self, member: Connection, room: str) -> None:
        """Take ``member`` out of ``room``."""
        channel = key_of(self._config.redis_prefix, check_room(room))
        self._fanout.flush(room)
        if self._hub.leave(member, room):
            self._released(self._rooms[channel])

    def forget(self, member: Connection) -> None:
        """Take ``member``, which has closed, out of every room."""
        for room in self._hub.forget(member):
            self._released(self._rooms[key_of(self._config.redis_prefix, room.encode())])

    def rooms_of(self, member: Connection) -> frozenset[str]:
        """Return the rooms of ``member``."""
        return self._hub.rooms_of(member)

    def positions_of(self, member: Connection) -> Mapping[str, str]:
        """Return, for each room of ``member``, the position of the last message that was delivered to it."""
        positions = {}
        for room in sorted(self._hub.rooms_of(member)):
            self._fanout.flush(room)
            positions[room] = str(self._rooms[key_of(self._config.redis_prefix, room.encode())].feed.last)
        return positions

    async def publish(self, room: str, message: DataLike, exclude: uuid.UUID | None = None) -> str:
        """Send ``message`` to every member of ``room``, except the connection ``exclude``; returns its position.

        Raises:
            TypeError: The message is neither `str` nor bytes-like.
            ValueError: The room's name is none.
            BusUnavailable: Not within the bus's timeout; whether the message arrived is unknown.
        """
        bus = self._config
        key = key_of(bus.redis_prefix, check_room(room))
        envelope = encode_message(message, None if exclude is None else exclude.bytes)
        commands = self._commands or await self._wait_commands()
        position = await commands.send(*publish_arguments(key, envelope, bus.room_log, bus.room_log_ttl))
        self.published += 1
        return bytes(position).decode("ascii")

    # Where the bus is

    def at(self, url: str | None, reason: str) -> None:
        """The primary says where the private server is, or why there is none."""
        self._refusal = reason
        waiting, self._address = self._address, None
        if url is not None and self._commands is None:
            self._open(url)
        if waiting is None or waiting.done():
            return
        if url is not None:
            waiting.set_result(url)
        else:
            waiting.set_exception(BusUnavailable(reason))
            waiting.exception()  # whoever waited may have given up

    async def close(self) -> None:
        """Close the connections to the bus."""
        for room in self._rooms.values():
            if room.linger is not None:
                room.linger.cancel()
        self._logs.close()
        if self._subscriber is not None:
            await self._subscriber.close()
        if self._commands is not None:
            await self._commands.close()

    def _open(self, url: str) -> None:
        self._commands = Commands(url, self._config.bus_timeout, self._loop)
        self._subscriber = Subscriber(
            url, self._loop, self._message_came, self._subscribed, self._connected, self._disconnected
        )
        for channel in self._rooms:
            self._subscriber.subscribe(channel)

    async def _wait_commands(self) -> Commands:
        """Find the bus at its first use."""
        if self._commands is None and self._config.redis_url is not None:
            self._open(self._config.redis_url)
        if self._commands is None:
            await self._wait_address()
        assert self._commands is not None
        return self._commands

    async def _wait_address(self) -> None:
        now = self._loop.time()
        if not self._asked_at or now - self._asked_at >= ASK_AGAIN_SECONDS:
            # Asked again after a while, because what was missing may have been installed.
            self._asked_at = now
            self._refusal = ""
            self._want_bus()
        if self._refusal:
            raise BusUnavailable(self._refusal)
        if self._address is None:
            self._address = self._loop.create_future()
        try:
            async with asyncio.timeout(self._config.bus_timeout):
                await asyncio.shield(self._address)
        except TimeoutError:
            raise BusUnavailable(f"no private Valkey within {self._config.bus_timeout:g} s") from None

    # Rooms that come and go

    async def _wait_live(self, name: str, channel: bytes) -> _Room:
        timeout = self._config.bus_timeout
        room = self._rooms.get(channel)
        if room is None:
            room = self._rooms[channel] = _Room(name, channel)
            if self._subscriber is not None:
                self._subscriber.subscribe(channel)
        room.joining += 1
        try:
            async with asyncio.timeout(timeout):
                await self._wait_commands()
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
            self._released(room)
        return room

    def _released(self, room: _Room) -> None:
        """Nobody may be left in ``room``: unsubscribe, after a while in which somebody may come back."""
        if room.linger is None and not room.joining and not self._hub.members(room.name):
            room.linger = self._loop.call_later(LINGER_SECONDS, self._unsubscribe, room)

    def _unsubscribe(self, room: _Room) -> None:
        room.linger = None
        if not room.joining and not self._hub.members(room.name):
            del self._rooms[room.channel]
            self._logs.forget(room.channel)
            if self._subscriber is not None:
                self._subscriber.unsubscribe(room.channel)

    # What the bus says

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
        self._logs.cancel()
        for room in self._rooms.values():
            room.live = False

    def _subscribed(self, channel: bytes) -> None:
        room = self._rooms.get(channel)
        if room is not None:
            room.live = False
            room.feed.begin_sync()
            assert self._commands is not None
            self._logs.read(self._commands, channel, room.feed.last)

    def _message_came(self, channel: bytes, data: bytes) -> None:
        room = self._rooms.get(channel)
        if room is None:
            return
        published = split_published(data)
        envelope = None if published is None else decode_message(published[1])
        if published is None or envelope is None:
            if not self._malformed:
                self._malformed = True
                logger.warning("room %r: what came on its channel is no message: ignored, as later ones", room.name)
            return
        room.heard_at = self._loop.time()
        for outcome in room.feed.receive(published[0], envelope):
            self._follow(room, outcome)

    def _log_read(self, channel: bytes, tail: LogTail) -> None:
        room = self._rooms.get(channel)
        if room is None:
            return
        if room.feed.last is None:
            outcomes = room.feed.synced_first(tail.newest)
        else:
            young = self._loop.time() - room.heard_at < self._config.room_log_ttl - EXPIRY_MARGIN_SECONDS
            evicted = tail.newest is None and young
            outcomes = room.feed.synced_again(tail.entries, tail.newest, log_kept=self._log_kept and not evicted)
        for outcome in outcomes:
            self._follow(room, outcome)
        room.live = True
        waiter, room.waiter = room.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _follow(self, room: _Room, outcome: Outcome) -> None:
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
