"""The application's own numbers: counters, gauges and histograms that the primary sums over the workers.

::

    MOVES = wscluster.metrics.counter("moves_total", "Moves of all players", ["game"])
    MOVES.labels("chess").inc()

They are shown at ``/metrics`` under their own names. Counters and histograms never fall there, whatever workers come
and go; a gauge is the sum over the workers that live. Outside a worker they count, and nobody sees it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

__all__ = ["Counter", "Gauge", "Histogram", "counter", "gauge", "histogram"]

MAX_SERIES = 1000
"""Of one worker: what would be one more counts into nothing, and is said once."""
DEFAULT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
RESERVED = "wscluster_"
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.ASCII)
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)
_MAX_CHARS = 200

Child = TypeVar("Child")


class Counter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Add ``amount``.

        Raises:
            ValueError: It is below 0, or no number.
        """
        if not amount >= 0:
            raise ValueError(f"a counter grows by 0 or more, not by {amount}")
        self.value += amount


class Gauge:
    """A number that goes up and down."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Add ``amount``."""
        self.value += amount

    def dec(self, amount: float = 1) -> None:
        """Take ``amount`` away."""
        self.value -= amount

    def set(self, value: float) -> None:
        """Be ``value``."""
        self.value = float(value)


class Histogram:
    """How often values were how large."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count ``value``."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class Family(Generic[Child]):
    """One name with its children, one for each set of label values."""

    def __init__(
        self, registry: Registry, kind: str, name: str, text: str, labels: Sequence[str], bounds: tuple[float, ...]
    ) -> None:
        self.kind = kind
        self.name = name
        self.help = text
        self.label_names = tuple(labels)
        self.bounds = bounds
        self.children: dict[tuple[str, ...], Any] = {}
        self._registry = registry

    def labels(self, *values: object, **named: object) -> Child:
        """Return the child with these label values, in the order of the names or by name.

        Raises:
            ValueError: They are not one for each name.
        """
        if named:
            if values or named.keys() != set(self.label_names):
                raise ValueError(f"{self.name} has the labels {', '.join(self.label_names) or '(none)'}")
            values = tuple(named[name] for name in self.label_names)
        if len(values) != len(self.label_names):
            raise ValueError(f"{self.name} has the labels {', '.join(self.label_names) or '(none)'}")
        key = tuple(str(value)[:_MAX_CHARS] for value in values)
        child = self.children.get(key)
        return self._registry.add(self, key) if child is None else child  # type: ignore[no-any-return]


class CounterFamily(Family[Counter]):
    """A counter by name; without labels it counts itself."""

    def inc(self, amount: float = 1) -> None:
        """Add ``amount``, where it has no labels."""
        self.labels().inc(amount)


class GaugeFamily(Family[Gauge]):
    """A gauge by name; without labels it is one itself."""

    def inc(self, amount: float = 1) -> None:
        """Add ``amount``, where it has no labels."""
        self.labels().inc(amount)

    def dec(self, amount: float = 1) -> None:
        """Take ``amount`` away, where it has no labels."""
        self.labels().dec(amount)

    def set(self, value: float) -> None:
        """Be ``value``, where it has no labels."""
        self.labels().set(value)


class HistogramFamily(Family[Histogram]):
    """A histogram by name; without labels it is one itself."""

    def observe(self, value: float) -> None:
        """Count ``value``, where it has no labels."""
        self.labels().observe(value)


class Registry:
    """All families of a process.

    Attributes:
        dropped: Whether a series was refused because there are `MAX_SERIES`.
    """

    def __init__(self) -> None:
        self.families: dict[str, Family[Any]] = {}
        self.dropped = False
        self._series = 0

    def family(
        self, cls: type[Family[Any]], kind: str, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> Any:
        """Return the family of this name; the same one where it is asked for again.

        Raises:
            ValueError: The name or a label cannot be one, or the name is another kind of metric already.
        """
        if not _NAME.fullmatch(name) or name.startswith(RESERVED):
            raise ValueError(f"{name!r} cannot be the name of a metric: letters, digits, _ and : but not {RESERVED}…")
        if kind == "counter":
            name = name.removesuffix("_total")
        if isinstance(labels, str) or not all(_LABEL.fullmatch(one) and not one.startswith("__") for one in labels):
            raise ValueError(f"{labels!r} cannot be the labels of a metric: a list of names is wanted")
        edges = tuple(sorted(float(bound) for bound in bounds))
        known = self.families.get(name)
        if known is None:
            known = self.families[name] = cls(self, kind, name, text[:_MAX_CHARS], labels, edges)
        elif (known.kind, known.label_names, known.bounds) != (kind, tuple(labels), edges):
            raise ValueError(f"{name} is a {known.kind} with the labels {known.label_names} already")
        return known

    def add(self, family: Family[Any], key: tuple[str, ...]) -> Any:
        """Make a child; beyond `MAX_SERIES` one that nobody sees."""
        child: Any = (
            Histogram(family.bounds)
            if family.kind == "histogram"
            else (Counter() if family.kind == "counter" else Gauge())
        )
        if self._series >= MAX_SERIES:
            self.dropped = True
            return child
        self._series += 1
        family.children[key] = child
        return child

    def snapshot(self) -> list[list[Any]]:
        """Return ``[kind, name, help, label names, bounds, [[label values, value], …]]`` of each family.

        A value is a number, or ``[counts, sum]`` of a histogram.
        """
        return [
            [one.kind, one.name, one.help, list(one.label_names), list(one.bounds), list(_values(one))]
            for one in self.families.values()
        ]


def _values(family: Family[Any]) -> Iterator[list[Any]]:
    for key, child in family.children.items():
        value = [list(child.counts), child.sum] if family.kind == "histogram" else child.value
        yield [list(key), value]


registry = Registry()


def counter(name: str, text: str = "", labels: Sequence[str] = ()) -> CounterFamily:
    """Return the counter ``name``; ``_total`` is added where it is shown.

    Raises:
        ValueError: As for `Registry.family`.
    """
    found: CounterFamily = registry.family(CounterFamily, "counter", name, text, labels, ())
    return found


def gauge(name: str, text: str = "", labels: Sequence[str] = ()) -> GaugeFamily:
    """Return the gauge ``name``.

    Raises:
        ValueError: As for `Registry.family`.
    """
    found: GaugeFamily = registry.family(GaugeFamily, "gauge", name, text, labels, ())
    return found


def histogram(
    name: str, text: str = "", labels: Sequence[str] = (), buckets: Sequence[float] = DEFAULT_BUCKETS
) -> HistogramFamily:
    """Return the histogram ``name``; ``buckets`` are the upper bounds of its buckets.

    Raises:
        ValueError: As for `Registry.family`.
    """
    found: HistogramFamily = registry.family(HistogramFamily, "histogram", name, text, labels, buckets)
    return found
