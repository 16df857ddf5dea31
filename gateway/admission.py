"""Limits on new connections: how many are open, in all and of one address, and how many one begins in a second.

An open connection is one that was admitted and whose end nobody has told yet. The workers tell the ends, soon and in
the order of the link, so a count is never below the truth, and above it for a moment only.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from wscluster.config import Listen, counts_open
from wscluster.gateway.placement import sticky_key
from wscluster.gateway.state import AdmissionState


class Admission:
    """Says who may come in. An address is what stickiness takes for one: IPv4, or the /64 of IPv6.

    Clients on a Unix socket have no address: only the limit on all connections holds for them.

    Args:
        limits: ``limit_connections``, ``limit_connections_per_ip`` and ``limit_connect_rate_per_ip``, which is what an
            address may begin in a second on average, and at once; None does not limit.
    """

    def __init__(self, limits: Listen) -> None:
        self._limit = limits.limit_connections
        self._limit_per_ip = limits.limit_connections_per_ip
        self._rate_per_ip = limits.limit_connect_rate_per_ip
        self._counts = counts_open(limits)
        self._open: dict[int, bytes] = {}
        self._per_ip: Counter[bytes] = Counter()
        self._adopted: dict[int, set[int]] = {}
        # Addresses that have begun one lately, the last of them at the end: how many each may begin, and since when.
        self._left: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    @property
    def open(self) -> int:
        """Connections that are open, as far as is known."""
        return len(self._open)

    @property
    def addresses(self) -> int:
        """Addresses that something is remembered of: no more than have a connection or began one in the last second."""
        return len(self._per_ip.keys() | self._left.keys())

    def carry(self) -> AdmissionState:
        """Return what is counted, for the next process."""
        return AdmissionState(self._open, self._per_ip, self._adopted, self._left)

    def resume(self, state: AdmissionState) -> None:
        """Count on from what the process before has counted."""
        self._open, self._per_ip, self._adopted, self._left = state.open, state.per_ip, state.adopted, state.left

    def admit(self, number: int, host: str, now: float) -> str | None:
        """Admit connection ``number``, or return the name of the limit that is reached; then it counts for nothing."""
        if self._limit is not None and len(self._open) >= self._limit:
            return "limit_connections"
        key = sticky_key(host) if host else b""
        if host and self._limit_per_ip is not None and self._per_ip[key] >= self._limit_per_ip:
            return "limit_connections_per_ip"
        if host and self._rate_per_ip is not None and not self._take(key, self._rate_per_ip, now):
            return "limit_connect_rate_per_ip"
        self._count(number, host, key)
        return None

    def readmit(self, number: int, host: str) -> None:
        """A connection that was admitted before has the new ``number``, whatever the limits say; the old one ends."""
        self._count(number, host, sticky_key(host) if host else b"")

    def _count(self, number: int, host: str, key: bytes) -> None:
        if self._counts:
            self._open[number] = key
            if host:
                self._per_ip[key] += 1

    def adopt(self, worker: int, numbers: Iterable[int]) -> None:
        """``worker`` has adopted these: their end is its own."""
        self._adopted.setdefault(worker, set()).update(number for number in numbers if number in self._open)

    def end(self, worker: int, numbers: Iterable[int]) -> None:
        """These connections of ``worker`` have ended; what it has not adopted, or told before, changes nothing."""
        adopted = self._adopted.get(worker, set())
        for number in numbers:
            if number in adopted:
                adopted.remove(number)
                self._forget(number)

    def lose(self, worker: int) -> None:
        """``worker`` is gone, and all that it had adopted with it."""
        for number in self._adopted.pop(worker, ()):
            self._forget(number)

    def reject(self, numbers: Iterable[int]) -> None:
        """These were admitted and nobody could serve them."""
        for number in numbers:
            self._forget(number)

    def _forget(self, number: int) -> None:
        key = self._open.pop(number, b"")
        if key:
            self._per_ip[key] -= 1
            if not self._per_ip[key]:
                del self._per_ip[key]

    def _take(self, key: bytes, rate: int, now: float) -> bool:
        """Take one of what ``key`` may begin; it may begin ``rate`` more each second, up to ``rate``."""
        while self._left:
            oldest, (_, at) = next(iter(self._left.items()))
            if at + 1 > now:
                break
            del self._left[oldest]  # it may begin ``rate`` again, like one that nothing is known of
        left, at = self._left.pop(key, (float(rate), now))
        left = min(float(rate), left + (now - at) * rate)
        self._left[key] = (left - 1 if left >= 1 else left, now)
        return left >= 1


def make_admission(limits: Listen) -> Admission | None:
    """Return what limits new connections; None where nothing does."""
    return Admission(limits) if counts_open(limits) or limits.limit_connect_rate_per_ip is not None else None
