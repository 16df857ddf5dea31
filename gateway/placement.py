"""Which slot a connection belongs to: rendezvous hashing over the stable slots, or a balance without stickiness.

A chooser is called with the connection's number, the host of its client and the open connections of each slot, and
orders **all** slots, not the live ones: a crash or a reload of one worker moves nobody else. The caller takes the first
slot of the order that can serve.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

V4_MAPPED = b"\0" * 10 + b"\xff\xff"


@functools.lru_cache(maxsize=65536)
def sticky_key(host: str) -> bytes:
    """Return the bytes that are hashed for the client ``host``.

    4 bytes for IPv4, and for IPv4 mapped into IPv6; the first 8 for IPv6, because a client changes the lower half of
    its address at will (RFC 8981). A host that is no address (empty: on a Unix socket) is hashed as its text.
    """
    try:
        packed = socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError):  # ValueError: a NUL in it
        try:
            packed = ipaddress.IPv6Address(host.partition("%")[0]).packed
        except ipaddress.AddressValueError:
            return host.encode()
        return packed[12:] if packed.startswith(V4_MAPPED) else packed[:8]
    return packed


def rank(key: bytes, slots: int) -> tuple[int, ...]:
    """Return the slots ``0 … slots-1`` in the rendezvous order of ``key``: the highest hash first."""
    return tuple(sorted(range(slots), key=lambda slot: xxh3_64_intdigest(key, slot), reverse=True))


class ByAddress:
    """Sticky by client address: the same order for the same address, in every primary and for ever."""

    sticky = True

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._rank = functools.lru_cache(maxsize=65536)(rank)

    def __call__(self, number: int, host: str, loads: Sequence[int]) -> Sequence[int]:
        return self._rank(sticky_key(host), self._slots)


class LeastConnections:
    """The slot with the fewest open connections; equal ones in turn."""

    sticky = False

    def __call__(self, number: int, host: str, loads: Sequence[int]) -> Sequence[int]:
        slots = len(loads)
        return sorted(range(slots), key=lambda slot: (loads[slot], (slot - number) % slots))


class RoundRobin:
    """One slot after the other."""

    sticky = False

    def __call__(self, number: int, host: str, loads: Sequence[int]) -> Sequence[int]:
        slots = len(loads)
        return [(number + step) % slots for step in range(slots)]


class Random:
    """A slot at random: the hash of the connection's number, which no client can choose."""

    sticky = False

    def __call__(self, number: int, host: str, loads: Sequence[int]) -> Sequence[int]:
        return rank(number.to_bytes(8, "big"), len(loads))


Chooser = ByAddress | LeastConnections | RoundRobin | Random


def make_chooser(sticky: str, balance: str | None, slots: int) -> Chooser:
    """Return the chooser that ``--sticky`` and ``--balance`` name.

    Raises:
        ValueError: One of them is unknown.
    """
    if sticky == "ip":
        return ByAddress(slots)
    match sticky, balance:
        case "none", None | "least-connections":
            return LeastConnections()
        case "none", "round-robin":
            return RoundRobin()
        case "none", "random":
            return Random()
    raise ValueError(f"unknown placement: {sticky} {balance}")
