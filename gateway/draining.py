"""What the log says of drains that take a while."""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_SECONDS = 1.0
"""A drain that is over sooner has nothing to say."""
EACH_SECONDS = 2.0


@dataclass(slots=True)
class DrainProgress:
    """Says now and then how many connections the workers that drain still have."""

    _connections: dict[int, int] = field(default_factory=dict)
    _next: float = 0.0

    def beaten(self, worker: int, connections: int, now: float) -> str | None:
        """Return what there is to say after a beat of ``worker``, which drains; None where it is not time yet."""
        if not self._connections:
            self._next = now + FIRST_SECONDS
        self._connections[worker] = connections
        if now < self._next:
            return None
        self._next = now + EACH_SECONDS
        left, workers = sum(self._connections.values()), len(self._connections)
        return f"draining: {left} connection{'s' * (left != 1)} left in {workers} worker{'s' * (workers != 1)}"

    def forget(self, worker: int) -> None:
        """``worker`` has exited."""
        self._connections.pop(worker, None)
