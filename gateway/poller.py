"""Asks the workers for fresh figures, for `status`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from wscluster.link import Link
from wscluster.packets import Poll

POLL_SECONDS = 0.5
"""What the workers get to answer before `status` says what they said last: a stuck one delays it by no more."""


class Poller:
    """Sends a `Poll` to each worker and waits for the beats that carry its serial."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.last_serial = 0
        self._polls: dict[int, tuple[set[int], asyncio.Future[None]]] = {}

    async def poll(self, links: Mapping[int, Link]) -> None:
        """Wait until every worker of ``links`` has answered, or `POLL_SECONDS`."""
        asked = {worker for worker, link in links.items() if not link.closed and not link.outbox}
        if not asked:
            return
        self.last_serial += 1
        serial = self.last_serial
        answered: asyncio.Future[None] = self._loop.create_future()
        self._polls[serial] = (asked, answered)
        for worker in sorted(asked):
            links[worker].send(Poll(serial))
        await asyncio.wait([answered], timeout=POLL_SECONDS)
        del self._polls[serial]

    def answered(self, worker: int, serial: int) -> None:
        """``worker`` has sent a beat with ``serial``."""
        if serial in self._polls:
            asked, future = self._polls[serial]
            asked.discard(worker)
            if not asked and not future.done():
                future.set_result(None)

    def forget(self, worker: int) -> None:
        """``worker`` is gone: nobody waits for it."""
        for serial in self._polls:
            self.answered(worker, serial)
