"""Sums over workers that come and go: counters and histograms never fall, gauges are those of the living."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MAX_SERIES = 10_000
"""Of the application's own numbers, over all workers."""

Key = tuple[str, ...]


@dataclass(slots=True)
class Sum:
    """One metric: a number, or ``[counts, sum]`` of a histogram, for each set of label values."""

    kind: str
    name: str
    help: str
    label_names: list[str]
    bounds: list[float]
    values: dict[Key, Any] = field(default_factory=dict)

    def add(self, key: Key, value: Any) -> None:
        """Add what one worker says."""
        before = self.values.get(key)
        if before is None:
            self.values[key] = [list(value[0]), value[1]] if self.kind == "histogram" else value
        elif self.kind == "histogram":
            self.values[key] = [[a + b for a, b in zip(before[0], value[0], strict=True)], before[1] + value[1]]
        else:
            self.values[key] = before + value


@dataclass(slots=True)
class Sums:
    """What workers that have exited had counted."""

    retired: dict[str, Sum] = field(default_factory=dict)

    def retire(self, snapshot: list[Any]) -> None:
        """Keep what a worker that has exited said last; a gauge ends with it."""
        _add(self.retired, [one for one in snapshot if one[0] != "gauge"])

    def sum(self, snapshots: list[list[Any]]) -> list[Sum]:
        """Return the sums of all workers there ever were, by name."""
        found: dict[str, Sum] = {}
        _add(found, [_as_said(one) for one in self.retired.values()])
        for snapshot in snapshots:
            _add(found, snapshot)
        return [found[name] for name in sorted(found)]


def _as_said(one: Sum) -> list[Any]:
    values = [[list(key), value] for key, value in one.values.items()]
    return [one.kind, one.name, one.help, one.label_names, one.bounds, values]


def _add(into: dict[str, Sum], snapshot: list[Any]) -> None:
    for kind, name, text, label_names, bounds, values in snapshot:
        known = into.setdefault(name, Sum(kind, name, text, label_names, bounds))
        if (known.kind, known.label_names, known.bounds) != (kind, label_names, bounds):
            continue  # another release calls something else so: the older meaning is kept
        for key, value in values:
            if tuple(key) in known.values or len(known.values) < MAX_SERIES:
                known.add(tuple(key), value)


def add_lists(one: list[int], other: list[int]) -> list[int]:
    """Return the sums place by place; the shorter list counts as if it went on with 0."""
    if len(one) < len(other):
        one, other = other, one
    return [value + (other[at] if at < len(other) else 0) for at, value in enumerate(one)]
