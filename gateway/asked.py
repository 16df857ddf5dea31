"""What programs have asked to listen on, and which listener each request is.

The rule: one address has one listener, whoever asks for it and however often; a listener is never forgotten, so that
a worker that comes later finds what the others listen on. A request that failed is forgotten: a later one may succeed.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from wscluster.gateway.state import AskedState
from wscluster.packets import Bind, BoundAt

MAX_LISTENERS = 64
"""Listeners of all programs of a cluster; one more is refused."""

Address = tuple[int, tuple[Any, ...]]
"""Address family, and the address as the system writes it; that of a Unix socket is its path alone."""

_Request = tuple[str, int, str, int, int]
_EVERY = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class Open:
    """Command: bind these, then say `Asked.opened` or `Asked.failed`."""

    request: Bind
    addresses: tuple[Address, ...]


class Asked:
    """Knows every listener of the programs, numbered from 0 in the order in which they were bound.

    A caller answers one request before it takes the next. For each it calls `ask`; where that has no answer it finds
    out which addresses are meant and calls `found`; where that is a command it carries it out and says what came of it.
    """

    def __init__(self) -> None:
        self._names: list[Any] = []
        self._requests: dict[_Request, tuple[int, ...]] = {}
        self._addresses: dict[Address, int] = {}

    @property
    def names(self) -> tuple[Any, ...]:
        """What ``getsockname()`` says of each listener."""
        return tuple(self._names)

    def carry(self) -> AskedState:
        """Return what was asked, for the next process."""
        return AskedState(self._names, self._requests, self._addresses)

    def resume(self, state: AskedState) -> None:
        """Know what the process before was asked."""
        self._names, self._requests, self._addresses = state.names, state.requests, state.addresses

    def ask(self, request: Bind) -> BoundAt | None:
        """Return the answer to what was asked before, or to what there is no room for; None: `found` is needed."""
        numbers = self._requests.get(_key(request))
        return None if numbers is None else self._answer(request, numbers)

    def found(self, request: Bind, addresses: Iterable[Address]) -> BoundAt | Open:
        """Return what follows where ``request`` means ``addresses``: with port 0 they are new ones."""
        wanted = tuple(addresses)
        chosen = not request.path and not request.port
        missing = tuple(address for address in wanted if chosen or address not in self._addresses)
        if any(self._overlaps(address) for address in missing):
            return self.failed(
                request,
                errno.EADDRINUSE,
                f"cannot listen on port {request.port} of one address and of every interface at once",
            )
        if len(self._names) + len(missing) > MAX_LISTENERS:
            return self.failed(
                request,
                errno.EMFILE,
                f"the programs of a cluster may listen on {MAX_LISTENERS} addresses, and this is one more",
            )
        if missing:
            return Open(request, missing)
        return self._remember(request, [self._addresses[address] for address in wanted])

    def opened(self, request: Bind, addresses: Sequence[Address], bound: Sequence[tuple[Address, Any]]) -> BoundAt:
        """Return the answer to ``request`` now that what `Open` asked for is bound.

        Args:
            addresses: Those that were given to `found`.
            bound: For each new listener its address, which has its true port, and what ``getsockname()`` says.
        """
        numbers = [self._addresses[address] for address in addresses if address in self._addresses]
        for address, name in bound:
            self._addresses[address] = len(self._names)
            numbers.append(len(self._names))
            self._names.append(name)
        return self._remember(request, numbers)

    def failed(self, request: Bind, error: int, reason: str) -> BoundAt:
        """Return the answer to ``request`` where it cannot be bound; nothing is remembered."""
        return self._answer(request, (), error, reason)

    def _overlaps(self, address: Address) -> bool:
        """Say whether the kernel would refuse ``address`` once we listen: it lets both be bound until then."""
        family, parts = address
        if len(parts) < 2 or not parts[1]:
            return False
        return any(
            other == family and held[1:2] == parts[1:2] and (held[0] in _EVERY or parts[0] in _EVERY)
            for other, held in self._addresses
        )

    def _remember(self, request: Bind, numbers: Sequence[int]) -> BoundAt:
        self._requests[_key(request)] = tuple(numbers)
        return self._answer(request, numbers)

    def _answer(self, request: Bind, numbers: Sequence[int], error: int = 0, reason: str = "") -> BoundAt:
        names, known = [self._names[number] for number in numbers], list(range(len(self._names)))
        return BoundAt(request.serial, list(numbers), names, known, error, reason, list(self._names))


def _key(request: Bind) -> _Request:
    # Of a port that the kernel chooses there may be several; one that was named is the same each time.
    chosen = not request.path and not request.port
    return request.host, request.port, request.path, request.family, request.nth if chosen else 0
