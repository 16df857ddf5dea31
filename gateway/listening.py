"""All that the primary listens on: what `serve` was told, or what programs ask for one after the other."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterable

from wscluster.gateway.binding import Bound, CannotBind
from wscluster.gateway.listener import Accepted, Listener
from wscluster.gateway.state import ListenerState


class Listening:
    """The listeners, each with its number: its place in the order in which they came.

    Args:
        backlog: Connections that the kernel queues for each, at the least.
        on_batch: As for `Listener`.
        on_shed: As for `Listener`.
    """

    def __init__(
        self,
        backlog: int,
        loop: asyncio.AbstractEventLoop,
        on_batch: Callable[[list[Accepted]], None],
        on_shed: Callable[[], None],
    ) -> None:
        self._backlog = backlog
        self._loop = loop
        self._on_batch = on_batch
        self._on_shed = on_shed
        self._listeners: list[Listener] = []
        self._started = False
        self._closed = False

    @property
    def started(self) -> bool:
        """Whether they accept."""
        return self._started

    @property
    def names(self) -> list[str]:
        """``host:port``, ``[v6]:port`` or ``unix:/path`` of each."""
        return [listener.name for listener in self._listeners]

    @property
    def port(self) -> int | None:
        """Port of the first TCP listener; None where there is none."""
        return next((int(name.rpartition(":")[2]) for name in self.names if not name.startswith("unix:")), None)

    def add(self, bound: Iterable[Bound], backlog: int = 0) -> None:
        """Own these too; once `start` was called they accept at once.

        Args:
            backlog: What the kernel shall queue, where that is more than the least.

        Raises:
            CannotBind: One cannot be listened on, or it is too late; none of them stays open, and none has a number.
        """
        if self._closed:
            for one in bound:
                one.close()
            raise CannotBind("the cluster stops, and listens on nothing more", errno.ECANCELED)
        first = len(self._listeners)
        new = [
            Listener(one, max(backlog, self._backlog), self._loop, self._on_batch, self._on_shed, number)
            for number, one in enumerate(bound, first)
        ]
        try:
            for listener in new if self._started else ():
                listener.start()
        except CannotBind:
            for listener in new:
                listener.close()
            raise
        self._listeners += new

    def start(self) -> None:
        """Begin to accept.

        Raises:
            CannotBind: Another socket has begun to listen on one of the addresses.
        """
        self._started = True
        for listener in self._listeners:
            listener.start()

    def carry(self) -> list[ListenerState]:
        """Return what the next process needs of each, in their order."""
        return [listener.carry() for listener in self._listeners]

    def resume(self, states: Iterable[ListenerState]) -> None:
        """Own the sockets of the process before, under the same numbers.

        Raises:
            CannotBind: One cannot be listened on any more.
        """
        for state in states:
            self.add([Bound.resume(state)], state.backlog)

    def close(self) -> None:
        """Accept what the kernel has queued, then nothing more. Does nothing the second time."""
        self._closed = True
        for listener in self._listeners:
            listener.close()
