"""What the public functions of a worker stand on; empty in every other process.

The worker puts itself here when it boots, so that `wscluster` itself imports neither side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from wscluster.errors import NotInWorker

if TYPE_CHECKING:
    from wscluster.api import DataLike, ThisWorker


class WorkerContext(Protocol):
    """What a worker offers to the program that runs in it."""

    @property
    def this_worker(self) -> ThisWorker: ...
    @property
    def control_socket(self) -> str: ...

    async def publish(self, room: str, message: DataLike) -> str: ...


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
