"""The private Valkey, and the workers that want to know where it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from wscluster.gateway.redis_server import RedisServer
from wscluster.packets import BusAt


class WorkersBus:
    """Starts the server when the first worker wants it, and tells each that does where it is.

    Args:
        send: Sends a packet to a worker.

    Attributes:
        server: The server.
        at: Where it is, or why there is none; None while nobody knows.
        wanted_by: The workers that are told.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[int, BusAt], None]) -> None:
        self.server = RedisServer(loop, self._moved)
        self.at: BusAt | None = None
        self.wanted_by: set[int] = set()
        self._send = send

    def want(self, worker: int) -> None:
        """``worker`` wants to know, from now on."""
        known = self.at
        self.wanted_by.add(worker)
        self.server.start()  # says at once where it cannot: a program may have been installed since the last refusal
        if known is not None and self.at is known:
            self._send(worker, known)

    def forget(self, worker: int) -> None:
        """``worker`` has exited."""
        self.wanted_by.discard(worker)

    def _moved(self, url: str | None, reason: str) -> None:
        self.at = BusAt(url, reason)
        for worker in self.wanted_by:
            self._send(worker, self.at)
