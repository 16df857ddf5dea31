"""What the program of this worker listens on: asked of the primary, which binds it once for all workers."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wscluster.packets import Bind, BoundAt
from wscluster.workers.fed_server import FedSocket

if TYPE_CHECKING:
    from wscluster.workers.worker import Worker


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program wants to listen: TCP, or a Unix socket where ``path`` is not empty.

    Attributes:
        name: What ``getsockname()`` says of a Unix socket: its path as the program gave it, in bytes in the abstract
            namespace.
    """

    host: str = ""
    port: int = 0
    family: int = 0
    path: str = ""
    name: str | bytes = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Taken:
    """What one server of a program has: its sockets, and the places that it asked for."""

    sockets: tuple[FedSocket, ...]
    places: tuple[tuple[Place, int], ...]

    @property
    def numbers(self) -> set[int]:
        """Numbers of its listeners."""
        return {sock.listener for sock in self.sockets if sock.listener is not None}


class Listening:
    """Asks the primary for listeners, and knows which this worker has.

    Attributes:
        known: Address of each listener that a program of this cluster has asked for, as far as it is known here.
        served: Numbers of those that this worker has served at some time.
        asked: Addresses that were given to this worker, served or not.
        error: The last one that `take` raised.
        on_answer: Called after each answer of the primary.
    """

    def __init__(self) -> None:
        self.known: dict[int, Any] = {}
        self.served: set[int] = set()
        self.asked: list[Any] = []
        self.error: OSError | None = None
        self.on_answer: Callable[[], None] | None = None
        self._held: set[int] = set()
        self._places: set[tuple[Place, int]] = set()
        self._serial = 0
        self._waiting: dict[int, asyncio.Future[BoundAt]] = {}

    @property
    def asks(self) -> bool:
        """Whether an answer of the primary is awaited."""
        return bool(self._waiting)

    async def take(self, worker: Worker, wanted: Iterable[Place], backlog: int) -> Taken:
        """Return sockets for all places of ``wanted``; they are this caller's until `release`.

        Raises:
            OSError: The primary cannot bind one of them, or this worker already has it.
        """
        places: list[tuple[Place, int]] = []
        sockets: dict[int, FedSocket] = {}
        try:
            for place in dict.fromkeys(wanted):
                places.append(self._reserve(place))
                answer = await self._ask(worker, places[-1], backlog)
                if answer.errno:
                    raise _error(answer)
                for number, address in zip(answer.listeners, answer.addresses, strict=True):
                    if number in sockets:
                        continue  # two names of one address
                    if number in self._held:
                        raise _in_use(place)
                    sockets[number] = _stand_in(number, place, address)
                    self._held.add(number)
        except BaseException as exc:
            self.release(Taken(tuple(sockets.values()), tuple(places)))
            if isinstance(exc, OSError):
                self.error = exc
            raise
        self.error = None
        self.asked += [sock.getsockname() for sock in sockets.values()]
        return Taken(tuple(sockets.values()), tuple(places))

    def release(self, taken: Taken) -> None:
        """Close the sockets; the same places may be taken again."""
        for sock in taken.sockets:
            sock.close()
        self._held -= taken.numbers
        self._places.difference_update(taken.places)

    def answered(self, answer: BoundAt) -> None:
        """Take an answer of the primary."""
        self.known = dict.fromkeys(answer.known) | dict(zip(answer.known, answer.known_addresses, strict=False))
        waiter = self._waiting.pop(answer.serial, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(answer)
        if self.on_answer is not None:
            self.on_answer()

    def _reserve(self, place: Place) -> tuple[Place, int]:
        """Return ``place`` with its number among equal ones: with port 0 there may be several."""
        nth = 0
        while (place, nth) in self._places:
            if place.port or place.path:
                raise _in_use(place)
            nth += 1
        self._places.add((place, nth))
        return place, nth

    async def _ask(self, worker: Worker, asked: tuple[Place, int], backlog: int) -> BoundAt:
        place, nth = asked
        self._serial += 1
        waiter: asyncio.Future[BoundAt] = worker.loop.create_future()
        self._waiting[self._serial] = waiter
        serial = self._serial
        worker.link.send(Bind(serial, place.host, place.port, place.path, place.family, backlog, nth))
        try:
            return await waiter
        finally:
            self._waiting.pop(serial, None)


def _error(answer: BoundAt) -> OSError:
    if answer.errno < 0:  # of getaddrinfo
        return socket.gaierror(answer.errno, answer.reason)
    return OSError(answer.errno, answer.reason)


def _in_use(place: Place) -> OSError:
    where = place.path or f"{place.host or '*'}:{place.port}"
    return OSError(errno.EADDRINUSE, f"{os.strerror(errno.EADDRINUSE)}: this program already listens on {where}")


def _stand_in(number: int, place: Place, address: Any) -> FedSocket:
    if isinstance(address, str):
        return FedSocket(number, place.name, socket.AF_UNIX)
    return FedSocket(number, tuple(address), socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
