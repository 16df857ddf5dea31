"""The application's own numbers, and their sums over workers that come and go."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wscluster import metrics
from wscluster.gateway import sums as sums_module
from wscluster.gateway.sums import Sums, add_lists
from wscluster.metrics import MAX_BUCKETS, MAX_SERIES, CounterFamily, Family, GaugeFamily, HistogramFamily, Registry
from wscluster.packets import MAX_PACKET_BYTES, Beat, Stats, decode, encode


def make(registry: Registry, kind: str, name: str, labels: tuple[str, ...] = (), bounds: tuple[float, ...] = ()) -> Any:
    kinds: dict[str, type[Family[Any]]] = {
        "counter": CounterFamily, "gauge": GaugeFamily, "histogram": HistogramFamily,
    }  # fmt: skip
    cls = kinds[kind]
    return registry.family(cls, kind, name, "what it is", labels, bounds)


def test_a_counter_grows_and_loses_its_total() -> None:
    registry = Registry()
    moves = make(registry, "counter", "moves_total", ("game",))
    moves.labels("chess").inc()
    moves.labels(game="chess").inc(2)
    moves.labels("go").inc()
    assert registry.snapshot() == [["counter", "moves", "what it is", ["game"], [], [[["chess"], 3.0], [["go"], 1.0]]]]
    with pytest.raises(ValueError, match="grows by 0 or more"):
        moves.labels("chess").inc(-1)
    with pytest.raises(ValueError, match="grows by 0 or more"):
        moves.labels("chess").inc(float("nan"))
    for wrong in ((), ("a", "b")):
        with pytest.raises(ValueError, match="has the labels game"):
            moves.labels(*wrong)
    with pytest.raises(ValueError, match="has the labels game"):
        moves.labels(player="x")
    with pytest.raises(ValueError, match="has the labels game"):
        moves.inc()


def test_a_gauge_goes_up_and_down_and_a_histogram_counts() -> None:
    registry = Registry()
    players = make(registry, "gauge", "players")
    players.inc(5)
    players.dec(2)
    players.set(players.labels().value + 1)
    seconds = make(registry, "histogram", "seconds", (), (2.0, 1.0))
    for value in (0.5, 1.0, 1.5, 99.0):
        seconds.observe(value)
    assert [one[5] for one in registry.snapshot()] == [[[[], 4.0]], [[[], [[2, 1, 1], 102.0]]]]
    assert json.loads(json.dumps(registry.snapshot())) == registry.snapshot()


def test_the_same_name_is_the_same_metric_and_never_another_kind() -> None:
    registry = Registry()
    first = make(registry, "counter", "moves")
    assert make(registry, "counter", "moves_total") is first
    assert make(registry, "counter", "moves_total_total") is first
    with pytest.raises(ValueError, match="moves is a counter"):
        make(registry, "gauge", "moves")
    with pytest.raises(ValueError, match="moves is a counter"):
        make(registry, "counter", "moves", ("game",))


@pytest.mark.parametrize("name", ["", "1st", "a-b", "wscluster_connections", "a b", "é", "_total", "x" * 201])
def test_what_cannot_be_a_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a metric"):
        make(Registry(), "counter", name)


def test_what_cannot_be_labels_is_refused() -> None:
    for labels in ("game", ("a-b",), ("__name__",), ("1",), ("a", "a")):
        with pytest.raises(ValueError, match="cannot be the labels"):
            Registry().family(CounterFamily, "counter", "moves", "", labels, ())
    with pytest.raises(ValueError, match="'le' cannot be a label of a histogram"):
        make(Registry(), "histogram", "seconds", ("le",))


def test_the_number_of_series_is_bounded() -> None:
    registry = Registry()
    moves = make(registry, "counter", "moves", ("player",))
    for player in range(MAX_SERIES + 5):
        moves.labels(player).inc()
    assert registry.dropped == "moves"
    assert len(registry.snapshot()[0][5]) == MAX_SERIES


@pytest.mark.parametrize("kind", ["counter", "gauge", "histogram"])
def test_whatever_a_program_counts_fits_into_a_beat(kind: str) -> None:
    registry = Registry()
    bounds = tuple(map(float, range(MAX_BUCKETS))) if kind == "histogram" else ()
    for number in range(50):
        family = make(registry, kind, f"metric_{number}", ("path", "other"), bounds)
        for path in range(50):
            child = family.labels(f"{path}\0" * 100, "é" * 300)
            if kind == "histogram":
                child.counts = [2**53] * len(child.counts)  # what a float still counts exactly
                child.sum = -1.2345678901234567e-300
            else:
                child.inc(1.2345678901234567e300)
    assert registry.dropped is not None
    beat = Beat(1, Stats(application=registry.snapshot(), sizes_in=[2**64] * 64, sizes_out=[2**64] * 64))
    data = encode(beat)
    assert len(data) > MAX_PACKET_BYTES / 4, "the bound is not so low that it is no use"
    assert decode(data) == beat


def test_names_without_end_count_into_nothing_but_work() -> None:
    registry = Registry()
    for number in range(5000):
        make(registry, "counter", f"of_user_{number}").inc()
    assert registry.dropped is not None
    assert len(registry.snapshot()) <= MAX_SERIES


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [
        (("counter", "x"), ("gauge", "x_total"), "x_total"),
        (("gauge", "x_total"), ("counter", "x"), "x_total"),
        (("histogram", "x"), ("gauge", "x_count"), "x_count"),
        (("gauge", "x_bucket"), ("histogram", "x"), "x_bucket"),
    ],
)
def test_two_metrics_are_never_shown_by_one_name(first: tuple[str, str], second: tuple[str, str], shown: str) -> None:
    registry = Registry()
    make(registry, *first)
    with pytest.raises(ValueError, match=f"would be shown as {shown}, as the {first[0]} {first[1]} is"):
        make(registry, *second)
    make(registry, *first).labels()


def test_what_a_file_name_may_hold_and_utf8_may_not_is_replaced() -> None:
    registry = Registry()
    files = make(registry, "gauge", "files", ("name",))
    files.labels("\udc80").set(1)
    files.labels("\udc81").inc()
    assert registry.snapshot()[0][5] == [[["?"], 2.0]]


def test_what_cannot_be_buckets_is_refused_and_infinity_is_there_anyway() -> None:
    assert make(Registry(), "histogram", "h", (), (2.0, 1.0, 1.0, float("inf"))).bounds == (1.0, 2.0)
    for wrong in ((float("nan"),), (float("-inf"),), tuple(map(float, range(MAX_BUCKETS + 1)))):
        with pytest.raises(ValueError, match="the bounds of buckets are at most 64 numbers"):
            make(Registry(), "histogram", "h", (), wrong)
    with pytest.raises(ValueError, match="counts numbers, not nan"):
        make(Registry(), "histogram", "h").observe(float("nan"))


def test_threads_that_count_at_once_lose_nothing() -> None:
    registry = Registry()
    moves = make(registry, "counter", "moves", ("player",))
    begin = threading.Barrier(4)

    def count() -> None:
        begin.wait()
        for player in range(300):
            moves.labels(player).inc()
            registry.snapshot()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(count) for _ in range(4)]:
            done.result()
    assert {value for _, value in registry.snapshot()[0][5]} == {4.0}


def test_sums_never_fall_when_a_worker_goes_and_a_gauge_ends_with_it() -> None:
    sums = Sums()
    said = [
        ["counter", "moves", "", ["game"], [], [[["chess"], 3.0]]],
        ["gauge", "players", "", [], [], [[[], 2.0]]],
        ["histogram", "seconds", "", [], [1.0], [[[], [[2, 1], 5.0]]]],
    ]
    both = {one.name: one.values for one in sums.sum([said, said])}
    assert both == {"moves": {("chess",): 6.0}, "players": {(): 4.0}, "seconds": {(): [[4, 2], 10.0]}}
    sums.retire(said)
    after = {one.name: one.values for one in sums.sum([said])}
    assert after == {"moves": {("chess",): 6.0}, "players": {(): 2.0}, "seconds": {(): [[4, 2], 10.0]}}
    sums.retire(said)
    assert {one.name for one in sums.sum([])} == {"moves", "seconds"}
    assert sums.sum([])[0].values == {("chess",): 6.0}, "asking changes nothing"
    assert sums.sum([])[0].values == {("chess",): 6.0}


def test_a_release_that_gives_a_name_another_meaning_begins_anew() -> None:
    sums = Sums()
    old = ["histogram", "seconds", "", [], [1.0], [[[], [[2, 1], 5.0]]]]
    new = ["histogram", "seconds", "", [], [1.0, 2.0], [[[], [[1, 0, 0], 0.5]]]]
    sums.retire([old])
    for live in ([[old], [new]], [[new]]):
        (shown,) = sums.sum(live)
        assert shown.values == {(): [[1, 0, 0], 0.5]}, "the youngest is right, and nothing else is added"
    sums.retire([new])
    (shown,) = sums.sum([[new]])
    assert shown.values == {(): [[2, 0, 0], 1.0]}
    (shown,) = sums.sum([[old]])
    assert shown.values == {(): [[4, 2], 10.0]}, "the older release came back"
    (gauge,) = sums.sum([[["gauge", "seconds_count", "", [], [], [[[], 1.0]]]]])
    assert gauge.kind == "gauge", "two metrics are never shown by one name"


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)))
def test_lists_are_added_place_by_place(one: list[int], other: list[int]) -> None:
    added = add_lists(one, other)
    assert len(added) == max(len(one), len(other))
    assert sum(added) == sum(one) + sum(other)
    assert add_lists(other, one) == added


def test_the_functions_of_the_package_make_them_in_the_registry_of_the_process() -> None:
    before = set(metrics.registry.families)
    try:
        metrics.counter("unit_moves_total", "Moves.", ["game"]).labels("chess").inc()
        metrics.gauge("unit_players").set(3)
        metrics.histogram("unit_seconds", buckets=[1]).observe(2)
        found = {one[1]: one[5] for one in metrics.registry.snapshot() if one[1].startswith("unit_")}
        assert found == {
            "unit_moves": [[["chess"], 1.0]], "unit_players": [[[], 3.0]], "unit_seconds": [[[], [[0, 1], 2.0]]],
        }  # fmt: skip
    finally:
        for name in set(metrics.registry.families) - before:
            del metrics.registry.families[name]


def test_the_series_of_all_workers_together_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums_module, "MAX_SERIES", 2)
    said = ["counter", "moves", "", ["game"], [], [[["a"], 1.0], [["b"], 1.0], [["c"], 1.0]]]
    sums = Sums()
    (moves,) = sums.sum([[said], [said]])
    assert moves.values == {("a",): 2.0, ("b",): 2.0}
    assert sums.full
    sums.retire([said])
    other = ["counter", "others", "", [], [], [[[], 1.0]]]
    assert [one.values for one in sums.sum([[other]])] == [{("a",): 1.0, ("b",): 1.0}, {}]
