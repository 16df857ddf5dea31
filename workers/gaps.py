"""Tells what a room lost on its way here: to the log, to the counter, and to the members that asked for it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from websockets.exceptions import ConnectionClosed

from wscluster.api import Gap
from wscluster.workers.feed import Lost

if TYPE_CHECKING:
    from wscluster.workers.connection import Connection
    from wscluster.workers.hub import Hub

OnGap = Callable[[Gap], Any]

GAP_LOG_SECONDS = 1.0

logger = logging.getLogger("wscluster.bus")


@dataclass(slots=True, eq=False)
class _Wish:
    """What a member wants to be called for the losses of one room.

    A coroutine function is called once at a time; what is lost meanwhile is told by one more call, as one gap.
    """

    on_gap: OnGap
    task: asyncio.Task[None] | None = None
    waiting: Gap | None = None


class Gaps:
    """The losses of all rooms, and who wants to know of them.

    Attributes:
        count: How often messages of a room were lost.
    """

    def __init__(self, hub: Hub[Connection], loop: asyncio.AbstractEventLoop) -> None:
        self._hub = hub
        self._loop = loop
        self._wishes: dict[Connection, dict[str, _Wish]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._logged_at = -GAP_LOG_SECONDS
        self._unlogged = 0
        self.count = 0

    def expect(self, member: Connection, room: str, on_gap: OnGap | None) -> None:
        """Call ``on_gap`` for each loss of ``room`` while ``member`` is in it; None leaves what was said before."""
        if on_gap is not None:
            self._wishes.setdefault(member, {})[room] = _Wish(on_gap)

    def leave(self, member: Connection, room: str) -> None:
        """``member`` has left ``room``."""
        if member in self._wishes:
            self._wishes[member].pop(room, None)

    def forget(self, member: Connection) -> None:
        """``member`` has closed."""
        self._wishes.pop(member, None)

    def tell(self, room: str, lost: Lost) -> None:
        """Messages of ``room`` were lost."""
        self.count += 1
        self._log(room, lost)
        if not self._wishes:
            return
        gap = Gap(room, str(lost.after), "" if lost.before is None else str(lost.before))
        for member in tuple(self._hub.members(room)):
            wish = self._wishes.get(member, {}).get(room)
            if wish is not None:
                self._call(member, wish, gap)

    def close(self) -> None:
        """Cancel the asynchronous ones that are still under way."""
        for task in self._tasks:
            task.cancel()

    def _call(self, member: Connection, wish: _Wish, gap: Gap) -> None:
        if not member.is_open:
            return
        if wish.task is not None:
            wish.waiting = gap if wish.waiting is None else Gap(gap.room, wish.waiting.after, gap.before)
            return
        try:
            result = wish.on_gap(gap)
        except Exception:
            member.logger.exception("on_gap of room %r failed", gap.room)
            return
        if inspect.isawaitable(result):
            wish.task = self._loop.create_task(_await(member, result, gap))
            self._tasks.add(wish.task)
            wish.task.add_done_callback(functools.partial(self._called, member, gap.room, wish))

    def _called(self, member: Connection, room: str, wish: _Wish, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        wish.task = None
        waiting, wish.waiting = wish.waiting, None
        if waiting is not None and self._wishes.get(member, {}).get(room) is wish:
            self._call(member, wish, waiting)

    def _log(self, room: str, lost: Lost) -> None:
        now = self._loop.time()
        if now - self._logged_at < GAP_LOG_SECONDS:
            self._unlogged += 1
            return
        logger.warning(
            "room %r: messages were lost after %s, before %s%s",
            room,
            lost.after,
            lost.before or "the next",
            f" (and {self._unlogged} gaps more since the last such line)" if self._unlogged else "",
        )
        self._logged_at, self._unlogged = now, 0


async def _await(member: Connection, result: Awaitable[Any], gap: Gap) -> None:
    try:
        await result
    except ConnectionClosed:
        pass  # as where it ends a handler: there is nobody to tell
    except Exception:
        member.logger.exception("on_gap of room %r failed", gap.room)
