"""Sums over workers that come and go: counters and histograms never fall, gauges are those of the living."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from wscluster.metrics import sample_names

MAX_SERIES = 10_000
"""Of the application's own numbers, over all workers."""

Key = tuple[str, ...]
Meaning = tuple[str, str, Key, tuple[float, ...]]
"""Kind, name, names of the labels, bounds: a name whose meaning a release changes begins anew."""


@dataclass(slots=True)
class Sum:
    """One metric: a number, or ``[counts, sum]`` of a histogram, for each set of label values."""

    kind: str
    name: str
    help: str
    label_names: list[str]
    bounds: list[float]
    values: dict[Key, Any] = field(default_factory=dict)

    @property
    def meaning(self) -> Meaning:
        """What it must share with another to be added to it."""
        return self.kind, self.name, tuple(self.label_names), tuple(self.bounds)

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
    """What workers that have exited had counted.

    Attributes:
        retired: One sum for each meaning; the one that was added to last stands last.
        full: Whether something was left out because there are `MAX_SERIES`.
    """

    retired: dict[Meaning, Sum] = field(default_factory=dict)
    full: bool = False

    def retire(self, snapshot: list[Any]) -> None:
        """Keep what a worker that has exited said last; a gauge ends with it."""
        for said in map(_read, snapshot):
            if said.kind != "gauge":
                kept = self.retired.pop(said.meaning, None) or _empty(said)
                self.retired[said.meaning] = kept
                self._add(kept, said, self.retired)

    def sum(self, snapshots: list[list[Any]]) -> list[Sum]:
        """Return the sums of all workers there ever were, by name.

        Args:
            snapshots: What the workers say that live, the youngest last. Where two mean something else by a name, the
                youngest is right.
        """
        live = [_read(one) for snapshot in reversed(snapshots) for one in snapshot]
        shown: dict[Meaning, Sum] = {}
        taken: set[str] = set()
        for said in (*live, *reversed(self.retired.values())):
            samples = sample_names(said.kind, said.name)
            if said.meaning not in shown and not samples & taken:
                shown[said.meaning] = _empty(said)
                taken |= samples
        for said in (*self.retired.values(), *live):
            if said.meaning in shown:
                self._add(shown[said.meaning], said, shown)
        return sorted(shown.values(), key=lambda one: one.name)

    def _add(self, into: Sum, said: Sum, among: dict[Meaning, Sum]) -> None:
        room = MAX_SERIES - sum(len(one.values) for one in among.values())
        for key, value in said.values.items():
            if key not in into.values:
                if room <= 0:
                    self.full = True
                    continue
                room -= 1
            into.add(key, value)


def _read(said: list[Any]) -> Sum:
    kind, name, text, label_names, bounds, values = said
    return Sum(kind, name, text, label_names, bounds, {tuple(key): value for key, value in values})


def _empty(like: Sum) -> Sum:
    return Sum(like.kind, like.name, like.help, like.label_names, like.bounds)


def add_lists(one: list[int], other: list[int]) -> list[int]:
    """Return the sums place by place; the shorter list counts as if it went on with 0."""
    if len(one) < len(other):
        one, other = other, one
    return [value + (other[at] if at < len(other) else 0) for at, value in enumerate(one)]
