"""Tells the primary which connections have ended, where it limits how many are open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from wscluster.packets import Ended

if TYPE_CHECKING:
    from wscluster.link import Link
    from wscluster.workers.connection import Connection
    from wscluster.workers.wire import Wire

TELL_SECONDS = 0.02
"""Ends of so long go in one packet."""
MAX_NUMBERS = 10_000
"""In one packet; its bytes are eight for each."""


class Endings:
    """Keeps the primary's number of each connection until its end was told.

    Whoever knows the numbers of its connections itself calls `tell` alone.
    """

    def __init__(self, link: Link, loop: asyncio.AbstractEventLoop) -> None:
        self._link = link
        self._loop = loop
        self._numbers: dict[Wire, int] = {}
        self._beginning: dict[int, Wire] = {}
        self._untold: list[int] = []
        self._timer: asyncio.TimerHandle | None = None

    def follow(self, make: Callable[[], Connection], number: int) -> Callable[[], Connection]:
        """Return a factory like ``make`` whose connection is known by ``number``."""

        def make_known() -> Connection:
            connection = make()
            self._numbers[connection] = number
            self._beginning[number] = connection
            return connection

        return make_known

    def began(self, number: int, *, failed: bool) -> None:
        """The transport of this connection was made, or could not be: then nobody else tells its end."""
        connection = self._beginning.pop(number, None)
        if failed:
            if connection is not None:
                self._numbers.pop(connection, None)
            self.tell(number)

    def ended(self, connection: Wire) -> None:
        """The transport of ``connection`` has ended."""
        number = self._numbers.pop(connection, None)
        if number is not None:
            self.tell(number)

    def tell(self, number: int) -> None:
        """The connection with this number has ended."""
        self._untold.append(number)
        if self._timer is None:
            self._timer = self._loop.call_later(TELL_SECONDS, self._flush)

    def _flush(self) -> None:
        self._timer = None
        if not self._link.outbox:  # else the primary does not read now, and would find one packet after the other
            self._link.send(Ended(tuple(self._untold[:MAX_NUMBERS])))
            del self._untold[:MAX_NUMBERS]
        if self._untold and not self._link.closed:
            self._timer = self._loop.call_later(TELL_SECONDS, self._flush)
