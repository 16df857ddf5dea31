"""When a worker has served enough and is replaced by a fresh one: by its age, its memory, or its messages."""

from __future__ import annotations

from dataclasses import dataclass, field

JITTER = 0.1
"""Age and messages are allowed up to this much more, memory up to this much less (it is somebody else's limit too), at
random: workers that began together shall not end together."""
LEAST_SECONDS = 5.0
"""A worker is not judged by its memory before: where the program alone needs more, workers would follow each other."""
RETRY_SECONDS = 60.0
"""A worker whose replacement has failed is not looked at again before."""


@dataclass(slots=True)
class Recycler:
    """Says which worker is due.

    Args:
        lifetime: Seconds that a worker may serve; None for ever.
        max_rss: MiB of resident memory that it may have; None for any.
        max_messages: Incoming messages that it may have had; None for any.
    """

    lifetime: float | None
    max_rss: int | None
    max_messages: int | None
    _not_before: dict[int, float] = field(default_factory=dict)

    def due(
        self, worker: int, jitter: float, age: float, rss_bytes: int, messages: int | None, now: float
    ) -> str | None:
        """Return why ``worker`` is to be replaced; None where it is not, or was said to be a short while ago.

        Args:
            jitter: The worker's own random number of [0, 1), always the same.
            age: Seconds since it became ready.
        """
        if self._not_before.get(worker, now) > now:
            return None
        more, less = 1 + JITTER * jitter, 1 - JITTER * jitter
        why = None
        if self.lifetime is not None and age >= self.lifetime * more:
            why = f"it has served for {age:.0f} s"
        elif self.max_rss is not None and age >= LEAST_SECONDS and rss_bytes > (self.max_rss << 20) * less:
            why = f"it has {rss_bytes >> 20} MiB"
        elif self.max_messages is not None and messages is not None and messages >= self.max_messages * more:
            why = f"it has had {messages} messages"
        if why is not None:
            self._not_before[worker] = now + RETRY_SECONDS
        return why

    def forget(self, worker: int) -> None:
        """``worker`` has exited."""
        self._not_before.pop(worker, None)
