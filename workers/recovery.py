"""A member that comes back: it gets what it missed from the log, and then hears its room like the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wscluster.errors import BusUnavailable
from wscluster.workers.fanout import MAX_TURN_BYTES, Fanout
from wscluster.workers.feed import Delivery, Told
from wscluster.workers.lineup import Lineup, reaches_back
from wscluster.workers.log_reader import MAX_READING, LogTail, read_missed

if TYPE_CHECKING:
    from wscluster.commands import Commands
    from wscluster.envelope import Position
    from wscluster.workers.connection import Connection
    from wscluster.workers.subscribed import Room


MAX_HELD_BYTES = 1024 * 1024
"""Payloads that are held for one member while the log is read; with more the log is read again."""


class Recovery:
    """One member of one room that is live, from the moment at which what comes is held for it.

    Attributes:
        missed: Messages that the member got.
        ended: Set when this is over, or is to be, because the member left or closed.
    """

    def __init__(self, member: Connection, room: Room, since: Position) -> None:
        self.member = member
        self.room = room
        self.lineup = Lineup(since, MAX_HELD_BYTES)
        self.missed = 0
        self.ended: asyncio.Future[None] = member.server.loop.create_future()
        self._news: asyncio.Future[None] | None = None
        room.taps[self] = None

    @property
    def is_level(self) -> bool:
        """Whether the member has exactly what its room has delivered."""
        return self.lineup.last == self.room.feed.last

    def take(self, _room: str, told: Told) -> None:
        """The room says something."""
        self.lineup.hold(told)
        self._wake()

    def end(self) -> None:
        """Be over; whoever waits goes on."""
        self.room.taps.pop(self, None)
        if not self.ended.done():
            self.ended.set_result(None)
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def wait_news(self) -> None:
        """Wait until the room says something, or this has ended."""
        self._news = self.member.server.loop.create_future()
        if not self.ended.done():
            await self._news

    async def wait_clear(self) -> None:
        """Wait until the member has read enough and is not amid a fragmented message, or until this has ended."""
        member = self.member
        while member.is_open and not self.ended.done() and not member.is_clear:
            if member.send_in_progress is None:
                await member.wait_writable()
            else:
                await asyncio.wait([member.send_in_progress, self.ended], return_when=asyncio.FIRST_COMPLETED)

    async def is_over(self) -> bool:
        """Say whether the member left.

        Raises:
            ConnectionClosed: It closed.
        """
        if not self.member.is_open:
            raise await self.member.wait_closed_exception()
        return self.ended.done()


class Replayer:
    """Replays logs to members.

    Args:
        max_send_queue: Bytes that are read, and written at a time, for one member.
        timeout: Seconds within which a log is read.
    """

    def __init__(self, fanout: Fanout, max_send_queue: int, timeout: float) -> None:
        self._fanout = fanout
        self._max_bytes = max_send_queue
        self._timeout = timeout
        self._reading = asyncio.Semaphore(MAX_READING)

    async def replay(self, recovery: Recovery, commands: Commands) -> bool:
        """Write what the member missed; when this returns True, it has exactly what its room has delivered.

        Returns:
            False where the log no longer reaches back, and nothing was written; or where the member left meanwhile.

        Raises:
            BusUnavailable: The bus does not answer in time, or lost messages meanwhile.
            ConnectionClosed: The connection closed; or its client reads so slowly that the log no longer has what is
                next for it, and it was closed like every slow member.
        """
        lineup, feed = recovery.lineup, recovery.room.feed
        begun = False
        while True:
            await recovery.wait_clear()
            if await recovery.is_over():
                return False
            lineup.begin_reading()
            heard, previous = feed.last, feed.previous
            tail = await self._read(recovery, commands, scan=not begun)
            if await recovery.is_over():
                return False
            if not begun:
                first = tail.entries[0][0] if tail.entries else None
                if lineup.lost or not reaches_back(lineup.last, tail.newest, first, heard, previous):
                    return False
                if tail.unkept is not None and not lineup.has(tail.unkept):
                    return False
                if first is None and heard is not None and (tail.newest is None or tail.newest.seq == 0):
                    lineup.last = heard  # of a room in which nothing was said: another log has begun, or none
                begun = True
            following = lineup.follow(tail.entries, whole=tail.whole)
            if following is None:
                self._fanout.close_slow(recovery.member)
            elif self._write(recovery, following) and tail.whole and await self._wait_level(recovery):
                return True

    async def _read(self, recovery: Recovery, commands: Commands, *, scan: bool) -> LogTail:
        room = recovery.room
        try:
            async with asyncio.timeout(self._timeout), self._reading:
                return await read_missed(commands, room.channel, recovery.lineup.last, self._max_bytes, scan=scan)
        except TimeoutError:
            raise BusUnavailable(f"the log of room {room.name!r} was not read within {self._timeout:g} s") from None

    def _write(self, recovery: Recovery, following: Sequence[Delivery]) -> bool:
        """Write what follows while the client reads; True where that was all."""
        limit = min(MAX_TURN_BYTES, self._max_bytes)
        at = 0
        while at < len(following):
            if not recovery.member.is_clear:
                return False
            size, end = 0, at
            while end < len(following) and (end == at or size + len(following[end].envelope.payload) <= limit):
                size += len(following[end].envelope.payload)
                end += 1
            chunk = [delivery.envelope for delivery in following[at:end]]
            recovery.missed += self._fanout.write_to(recovery.member, chunk)
            recovery.lineup.last = following[end - 1].position
            at = end
        return True

    async def _wait_level(self, recovery: Recovery) -> bool:
        """Wait until the room has come as far as its log; False where the log is to be read again.

        Raises:
            BusUnavailable: Not in time; or messages were lost.
        """
        lineup = recovery.lineup
        try:
            async with asyncio.timeout(self._timeout):
                while not recovery.is_level and not lineup.lost:
                    if lineup.spilled:
                        return False
                    await recovery.wait_news()
                    if recovery.ended.done():
                        return False
                    following = lineup.follow([], whole=True)
                    if following is None or not self._write(recovery, following):
                        return False
        except TimeoutError:
            raise BusUnavailable(f"room {recovery.room.name!r} was not heard within {self._timeout:g} s") from None
        if lineup.lost:
            raise BusUnavailable(f"room {recovery.room.name!r}: the bus lost messages while they were replayed")
        return True
