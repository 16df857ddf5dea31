"""Tells what a room lost on its way here: to the log, to the counter, and to the members that asked for it."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
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


class Gaps:
    """The losses of all rooms, and who wants to know of them.

    Attributes:
        count: How often messages of a room were lost.
    """

    def __init__(self, hub: Hub[Connection], loop: asyncio.AbstractEventLoop) -> None:
        self._hub = hub
        self._loop = loop
        self._calls: dict[Connection, dict[str, OnGap]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._logged_at = -GAP_LOG_SECONDS
        self._unlogged = 0
        self.count = 0

    def expect(self, member: Connection, room: str, on_gap: OnGap | None) -> None:
        """Call ``on_gap`` for each loss of ``room`` while ``member`` is in it; None leaves what was said before."""
        if on_gap is not None:
            self._calls.setdefault(member, {})[room] = on_gap

    def leave(self, member: Connection, room: str) -> None:
        """``member`` has left ``room``."""
        if member in self._calls:
            self._calls[member].pop(room, None)

    def forget(self, member: Connection) -> None:
        """``member`` has closed."""
        self._calls.pop(member, None)

    def tell(self, room: str, lost: Lost) -> None:
        """Messages of ``room`` were lost."""
        self.count += 1
        self._log(room, lost)
        if not self._calls:
            return
        gap = Gap(room, str(lost.after), "" if lost.before is None else str(lost.before))
        for member in tuple(self._hub.members(room)):
            on_gap = self._calls.get(member, {}).get(room)
            if on_gap is not None and member.is_open:
                self._call(member, on_gap, gap)

    def close(self) -> None:
        """Cancel the asynchronous ones that are still under way."""
        for task in self._tasks:
            task.cancel()

    def _call(self, member: Connection, on_gap: OnGap, gap: Gap) -> None:
        try:
            result = on_gap(gap)
        except Exception:
            member.logger.exception("on_gap of room %r failed", gap.room)
            return
        if inspect.isawaitable(result):
            task = self._loop.create_task(_await(member, result, gap))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

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
