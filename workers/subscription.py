"""`wscluster.subscribe`: rooms as an iterator, for whoever is no connection."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Self

from wscluster.api import Gap, Message
from wscluster.workers.backlog import Backlog
from wscluster.workers.feed import Told
from wscluster.workers.subscribed import Room, SubscribedRooms


class Subscription:
    """Hears rooms while its context is entered, and yields what they say.

    Args:
        channels: The rooms' names and channels.
        max_queue: Messages that wait for the iteration; more push out the oldest, for which a `Gap` comes.
        open_ones: Where it is listed while it is entered.
    """

    def __init__(
        self,
        subscribed: SubscribedRooms,
        channels: Mapping[str, bytes],
        max_queue: int,
        loop: asyncio.AbstractEventLoop,
        open_ones: dict[Subscription, None],
    ) -> None:
        self._subscribed = subscribed
        self._channels = channels
        self._loop = loop
        self._open_ones = open_ones
        self._backlog = Backlog(max_queue)
        self._rooms: list[Room] = []
        self._entered = self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("a subscription is entered once: call wscluster.subscribe again")
        self._entered = True
        self._open_ones[self] = None
        try:
            async with asyncio.TaskGroup() as group:
                for name, channel in self._channels.items():
                    group.create_task(self._hear(name, channel))
        except BaseExceptionGroup as failed:
            self._close()
            raise failed.exceptions[0] from None
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message | Gap:
        if self._waiter is not None:
            raise RuntimeError("another task waits for this subscription already")
        if not self._rooms and not self._ended:
            raise RuntimeError("a subscription is iterated within `async with`")
        if not self._backlog and not self._ended:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if not self._backlog:
            raise StopAsyncIteration
        return self._backlog.take()

    def take(self, room: str, told: Told) -> None:
        """A room says something."""
        self._backlog.add(room, told)
        self._wake()

    def end(self) -> None:
        """Yield what waits, and then no more."""
        self._leave()
        self._ended = True
        self._wake()

    def _close(self) -> None:
        self._open_ones.pop(self, None)
        self.end()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _hear(self, name: str, channel: bytes) -> None:
        room = await self._subscribed.wait_live(name, channel)
        if self._ended:
            return
        assert room.feed.last is not None
        self._backlog.begin(name, room.feed.last)
        room.taps[self] = None
        self._rooms.append(room)
        self._subscribed.taken(room)

    def _leave(self) -> None:
        rooms, self._rooms = self._rooms, []
        for room in rooms:
            del room.taps[self]
            self._subscribed.released(room)
