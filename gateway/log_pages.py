"""Answers who asks for lines of the log over the control socket, at once or when there are more."""

from __future__ import annotations

import asyncio
from typing import Any

from wscluster.gateway.control import InvalidRequest, Request
from wscluster.gateway.log_lines import Ring

WAIT_SECONDS = 20.0
"""Then who follows the log is told that there is nothing new: one that has gone is not kept any longer."""


class LogPages:
    """Gives out the log page by page.

    Args:
        finished: Done when the primary ends; who waits then is told.
    """

    def __init__(self, ring: Ring, finished: asyncio.Future[int]) -> None:
        self._ring = ring
        self._finished = finished
        self._hurried = False
        self._news: asyncio.Future[None] | None = None
        ring.on_line = self._line_came

    def hurry(self, *, on: bool) -> None:
        """Give whoever waits for more an empty page, and let nobody wait, while it is ``on``: they ask again."""
        self._hurried = on
        self._line_came()

    async def page(self, request: Request, slots: int) -> dict[str, Any]:
        """Return a page, as `Ring.page` does, and with it whether the primary has ``ended``.

        Args:
            request: ``slot``, ``after`` and ``last`` are those of `Ring.page`, or absent. With ``wait`` there is no
                page without a line for 20 s.
            slots: How many slots there are.

        Raises:
            InvalidRequest: One of them makes no sense, or there is no such slot.
        """
        slot, after, last = (_number(request, name) for name in ("slot", "after", "last"))
        if slot is not None and slot >= slots and slot not in self._ring.slots():
            raise InvalidRequest(f"there is no slot {slot}: there are slots 0 to {slots - 1}")
        loop = asyncio.get_running_loop()
        until = loop.time() + WAIT_SECONDS
        while True:
            page = self._ring.page(after, slot, last)
            done = self._finished.done()
            waits = request.get("wait") and loop.time() < until and not self._hurried
            if page["lines"] or page["lost"] or done or not waits:
                return {**page, "ended": done}
            # What came before was looked at: of a busy log that is of other slots, it is not looked at again.
            after, last = page["next"], None
            if self._news is None:
                self._news = loop.create_future()
            either: list[asyncio.Future[Any]] = [self._news, self._finished]
            await asyncio.wait(either, timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED)

    def _line_came(self) -> None:
        if self._news is not None:
            self._news.set_result(None)
            self._news = None


def _number(request: Request, name: str) -> int | None:
    number = request.get(name)
    if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 0):
        raise InvalidRequest(f"{name} {number!r} is no number from 0 on")
    return number
