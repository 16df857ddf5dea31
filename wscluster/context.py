"""What the public functions of a worker stand on; empty in every other process.

The worker puts itself here when it boots, so that `wscluster` itself imports neither side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from wscluster.errors import NotInWorker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from wscluster.api import DataLike, Gap, Message, ThisWorker

    RoomsHeard = AbstractAsyncContextManager[AsyncIterator[Message | Gap]]


class WorkerContext(Protocol):
    """What a worker offers to the program that runs in it."""

    @property
    def this_worker(self) -> ThisWorker: ...
    @property
    def control_socket(self) -> str: ...

    async def publish(self, room: str, message: DataLike) -> str: ...

    def subscribe(self, rooms: tuple[str, ...], max_queue: int) -> RoomsHeard: ...


_context: WorkerContext | None = None


def enter(context: WorkerContext | None) -> None:
    """Make ``context`` the one of this process; None leaves it."""
    global _context
    _context = context


def current(what: str) -> WorkerContext:
    """Return the worker's context; ``what`` names the caller for the error.

    Raises:
        NotInWorker: This process is no worker.
    """
    if _context is None:
        raise NotInWorker(what)
    return _context


def control_socket() -> str | None:
    """Return the path of the primary's control socket; None where this process is no worker."""
    return None if _context is None else _context.control_socket


async def publish(room: str, message: DataLike) -> str:
    """Send ``message`` to every member of ``room`` on every worker and machine; returns its position.

    Text (`str`) arrives as text, bytes as binary.

    Raises:
        NotInWorker: This process is no worker.
        TypeError: The message is neither `str` nor bytes-like.
        ValueError: The room's name is empty or longer than 255 bytes.
        BusUnavailable: No answer within ``--bus-timeout``; whether the message arrived is unknown.
    """
    return await current("wscluster.publish").publish(room, message)


def subscribe(*rooms: str, max_queue: int = 1024) -> RoomsHeard:
    """Hear ``rooms`` without a connection: in a background task, an ASGI app, a lifespan, or a handler.

    ``async with`` it, which returns when the subscriptions are live, and iterate over what that gives: each `Message`
    of the rooms, in each room's order, and a `Gap` wherever messages were lost. The iteration ends when the worker
    drains, after what waited; leaving the context ends it too. One that is entered during the drain, as at the end of a
    lifespan, lives until it is left. One task at a time iterates.

    Args:
        max_queue: Messages, of all its rooms together, that wait for the iteration. With more the oldest are dropped,
            and a `Gap` for each of their rooms comes in their place.

    Raises:
        NotInWorker: This process is no worker.
        TypeError: A name is no `str`, there is none, or the bound is no whole number.
        ValueError: A name is empty or longer than 255 bytes; or the bound is less than 1.
        BusUnavailable: At entry: no answer within ``--bus-timeout``.
    """
    return current("wscluster.subscribe").subscribe(rooms, max_queue)
