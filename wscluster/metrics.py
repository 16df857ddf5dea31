"""The application's own numbers: counters, gauges and histograms that the primary sums over the workers.

::

    MOVES = wscluster.metrics.counter("moves_total", "Moves of all players", ["game"])
    MOVES.labels("chess").inc()

They are shown at ``/metrics`` under their own names. Counters and histograms never fall there, whatever workers come
and go; a gauge is the sum over the workers that live. Outside a worker they count, and nobody sees it.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

__all__ = ["Counter", "Gauge", "Histogram", "counter", "gauge", "histogram"]

MAX_SERIES = 1000
"""Of one worker: what would be one more counts into nothing, and is said once."""
MAX_SNAPSHOT_BYTES = 128 * 1024
"""Of all metrics of one worker, as they travel in a beat, which is one packet; what does not fit is as one too many."""
MAX_BUCKETS = 64
"""Of a histogram, beside the one without a bound."""
DEFAULT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
RESERVED = "wscluster_"
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.ASCII)
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)
_TOTAL = re.compile(r"(_total)+\Z")
_MAX_CHARS = 200
_VALUE_BYTES = 32
_COUNT_BYTES = 12

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
        """Count ``value``.

        Raises:
            ValueError: It is no number.
        """
        if value != value:
            raise ValueError("a histogram counts numbers, not nan")
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
        key = tuple([str(value)[:_MAX_CHARS] for value in values])
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

    Threads may count too: a series that two make at once is one.

    Attributes:
        dropped: Name of the first metric of which a series was refused, because there are `MAX_SERIES` or
            `MAX_SNAPSHOT_BYTES`; None where that never was.
    """

    def __init__(self) -> None:
        self.families: dict[str, Family[Any]] = {}
        self.dropped: str | None = None
        self._series = 0
        self._bytes = 0
        self._shown: dict[str, Family[Any]] = {}

    def family(
        self, cls: type[Family[Any]], kind: str, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> Any:
        """Return the family of this name; the same one where it is asked for again.

        Raises:
            ValueError: The name, a label or a bound cannot be one, or the name is that of another metric already.
        """
        shown = _check_name(name)
        if kind == "counter":
            shown = _check_name(_TOTAL.sub("", name))
        names = _check_labels(labels, kind)
        edges = _check_bounds(bounds)
        known = self.families.get(shown)
        if known is None:
            return self._make(cls(self, kind, shown, _clean(text or ""), names, edges))
        if (known.kind, known.label_names, known.bounds) != (kind, names, edges):
            raise ValueError(
                f"{name} is {_describe(known)} already, not {_describe(cls(self, kind, '', '', names, edges))}"
            )
        return known

    def _make(self, family: Family[Any]) -> Family[Any]:
        samples = sample_names(family.kind, family.name)
        for sample in samples:
            if sample in self._shown:
                other = self._shown[sample]
                raise ValueError(
                    f"the {family.kind} {family.name} would be shown as {sample}, as the {other.kind} {other.name} is"
                )
        if self._fits(family.name, len(self.families), _size(_head(family))):
            self._shown |= dict.fromkeys(samples, family)
            return self.families.setdefault(family.name, family)
        return family

    def add(self, family: Family[Any], key: tuple[str, ...]) -> Any:
        """Make a child; one that nobody sees where there are too many."""
        key = tuple(map(_clean, key))
        if key in family.children:
            return family.children[key]
        child: Any
        size = _size(key) + _VALUE_BYTES
        match family.kind:
            case "histogram":
                child = Histogram(family.bounds)
                size += len(child.counts) * _COUNT_BYTES
            case "counter":
                child = Counter()
            case _:
                child = Gauge()
        if self.families.get(family.name) is not family:
            return child
        if not self._fits(family.name, self._series, size):
            return child
        self._series += 1
        return family.children.setdefault(key, child)

    def _fits(self, name: str, count: int, size: int) -> bool:
        if count >= MAX_SERIES or self._bytes + size > MAX_SNAPSHOT_BYTES:
            self.dropped = self.dropped or name
            return False
        self._bytes += size
        return True

    def snapshot(self) -> list[list[Any]]:
        """Return ``[kind, name, help, label names, bounds, [[label values, value], …]]`` of each family.

        A value is a number, or ``[counts, sum]`` of a histogram.
        """
        return [
            [*_head(one), list(_values(one))]
            for one in list(self.families.values())  # a thread may make one meanwhile
        ]


def sample_names(kind: str, name: str) -> frozenset[str]:
    """Return the names under which a metric is shown: no two may share one."""
    match kind:
        case "counter":
            return frozenset({f"{name}_total"})
        case "histogram":
            return frozenset({name, f"{name}_bucket", f"{name}_count", f"{name}_sum"})
    return frozenset({name})


def _head(family: Family[Any]) -> list[Any]:
    return [family.kind, family.name, family.help, list(family.label_names), list(family.bounds)]


def _values(family: Family[Any]) -> Iterator[list[Any]]:
    for key, child in list(family.children.items()):
        value = [list(child.counts), child.sum] if family.kind == "histogram" else child.value
        yield [list(key), value]


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode())


def _clean(text: object) -> str:
    """What UTF-8 cannot say, as of a file's name that is no UTF-8, becomes a question mark."""
    return str(text)[:_MAX_CHARS].encode(errors="replace").decode()


def _check_name(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.startswith(RESERVED) or len(name) > _MAX_CHARS:
        raise ValueError(
            f"{name!r} cannot be the name of a metric: letters, digits, _ and : are, at most {_MAX_CHARS}, "
            f"but not {RESERVED}…"
        )
    return name


def _check_labels(labels: Sequence[str], kind: str) -> tuple[str, ...]:
    names = () if isinstance(labels, str) else tuple(labels)
    good = all(isinstance(one, str) and _LABEL.fullmatch(one) and not one.startswith("__") for one in names)
    if isinstance(labels, str) or not good or len(set(names)) < len(names):
        raise ValueError(f"{labels!r} cannot be the labels of a metric: a list of different names is wanted")
    if kind == "histogram" and "le" in names:
        raise ValueError("'le' cannot be a label of a histogram: it names the bounds of the buckets")
    return names


def _check_bounds(bounds: Sequence[float]) -> tuple[float, ...]:
    edges = tuple(sorted({float(bound) for bound in bounds} - {math.inf}))
    if len(edges) > MAX_BUCKETS or not all(map(math.isfinite, edges)):
        raise ValueError(f"the bounds of buckets are at most {MAX_BUCKETS} numbers")
    return edges


def _describe(family: Family[Any]) -> str:
    labels = f" with the labels {', '.join(family.label_names)}" if family.label_names else " without labels"
    buckets = f" and the buckets {', '.join(f'{bound:g}' for bound in family.bounds)}" if family.bounds else ""
    return f"a {family.kind}{labels}{buckets}"


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
