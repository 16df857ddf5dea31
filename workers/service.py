"""What a worker serves, as its link sees it: a handler, an ASGI app, or a program."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wscluster.packets import Offered
    from wscluster.workers.described import Described


@dataclass(frozen=True, slots=True)
class Figures:
    """A service's own part of `Stats`; None is what this kind of service cannot know."""

    connections: int
    adopted: int
    messages_in: int | None = None
    messages_out: int | None = None
    sizes_in: list[int] = field(default_factory=list)
    sizes_out: list[int] = field(default_factory=list)
    bytes_in: int = 0
    bytes_out: int = 0


class Service(Protocol):
    """Takes the connections that the worker is offered.

    Attributes:
        draining: Nothing new is taken any more; the link sets it as soon as the primary says so.
    """

    draining: bool

    def takes(self, offered: Offered) -> bool:
        """Say whether this connection is welcome now; else the primary places it elsewhere."""
        ...

    def adopt(self, fd: int, offered: Offered) -> None:
        """Make a connection of the socket ``fd``, which belongs to the service from now on."""
        ...

    def figures(self) -> Figures:
        """Return the figures of now."""
        ...

    def described(self) -> Iterable[Described]:
        """Return each connection, in an order that holds from one call to the next."""
        ...

    def kick(self, connection: str) -> bool:
        """End the connection with this id; False where there is none."""
        ...

    async def abort(self) -> None:
        """End at once, because the primary is gone; what is open is reset."""
        ...
