"""What one primary writes down the next one reads as it was, or says what is wrong with it."""

import enum
import json
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wscluster.gateway.carried import Fd, InvalidState, decode, encode, find_fds
from wscluster.gateway.durations import Durations
from wscluster.gateway.fleet import Fleet
from wscluster.gateway.handoff import Books
from wscluster.gateway.log_lines import Origin
from wscluster.gateway.proxyproto import Header
from wscluster.gateway.state import (
    AdmissionState,
    AskedState,
    BusState,
    CallState,
    ChildState,
    ControlState,
    HelperState,
    IntakeState,
    ListenerState,
    OutputState,
    PeekState,
    PipeState,
    State,
    WorkerState,
)
from wscluster.gateway.status import Figures, Totals
from wscluster.packets import BusAt, Stats


class Colour(enum.Enum):
    RED = "red"


class Number(int, enum.Enum):
    ONE = 1


@dataclass(frozen=True, slots=True)
class Inner:
    fd: Fd
    name: str = "inner"


@dataclass(slots=True)
class Everything:
    number: int
    real: float
    truth: bool
    text: str
    raw: bytes
    colour: Colour
    one: Number
    nothing: int | None
    maybe: str | None
    inner: Inner
    several: list[Inner]
    pair: tuple[int, str]
    row: tuple[float, ...]
    names: set[str]
    frozen: frozenset[int]
    waiting: deque[bytes]
    table: dict[tuple[str, int], Inner]
    counts: Counter[bytes]
    order: OrderedDict[str, tuple[float, float]]
    anything: Any
    fds: dict[int, Fd]
    hidden: int = field(default=7, init=False)
    late: list[int] = field(default_factory=lambda: [1])


def everything() -> Everything:
    return Everything(
        3, 1.5, True, "ä\ud800", b"\x00\xff", Colour.RED, Number.ONE, None, "x", Inner(Fd(5)), [Inner(Fd(6), "b")],
        (1, "a"), (1.0, float("-inf")), {"b", "a"}, frozenset({2}), deque([b"1", b"2"]), {("a", 1): Inner(Fd(7))},
        Counter({b"k": 2}), OrderedDict([("z", (1.0, 2.0)), ("a", (3.0, 4.0))]), [1, ["a", None]], {1: Fd(8)},
    )  # fmt: skip


def carried(kind: type[Any], value: Any) -> Any:
    return decode(kind, json.loads(json.dumps(encode(value))))


def test_every_kind_of_value_comes_back_as_it_was() -> None:
    value = everything()
    value.hidden = 9
    back = carried(Everything, value)
    assert back == value
    assert list(back.order) == ["z", "a"]
    assert (type(back.waiting), type(back.counts), type(back.order)) == (deque, Counter, OrderedDict)
    assert back.one is Number.ONE
    assert sorted(find_fds(back)) == [5, 6, 7, 8]


def test_what_an_older_version_did_not_know_has_its_default() -> None:
    data = encode(everything())
    del data["hidden"], data["late"]
    back = decode(Everything, data)
    assert (back.hidden, back.late) == (7, [1])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("number", "3", "Everything.number: str instead of int"),
        ("number", True, "Everything.number: bool instead of int"),
        ("truth", 1, "Everything.truth: int instead of bool"),
        ("real", None, "Everything.real: NoneType instead of float"),
        ("raw", "not base64", "Everything.raw: "),
        ("colour", "blue", "Everything.colour: 'blue' is not a valid Colour"),
        ("pair", [1], "Everything.pair: 1 values, 2 are wanted"),
        ("several", {}, "Everything.several: dict instead of list"),
        ("inner", {"fd": 1, "nome": ""}, "Everything.inner has nome, which this version does not know"),
        ("inner", {"name": ""}, "Everything.inner lacks fd"),
        ("table", [[["a"], {}]], "Everything.table: 1 values, 2 are wanted"),
        ("table", [[1]], "Everything.table: pairs are wanted"),
        ("several", [{"fd": "x"}], "Everything.several.fd: str instead of int"),
        ("maybe", 3, "Everything.maybe: int instead of str"),
    ],
)
def test_what_does_not_fit_is_said(name: str, value: Any, said: str) -> None:
    data = encode(everything())
    data[name] = value
    with pytest.raises(InvalidState) as caught:
        decode(Everything, data)
    assert str(caught.value).startswith(said)


def test_a_number_without_a_fraction_is_a_number_all_the_same() -> None:
    data = encode(everything())
    data["real"] = 2
    assert decode(Everything, data).real == 2.0


def test_what_nobody_can_write_down_is_refused() -> None:
    with pytest.raises(TypeError, match="object cannot be carried"):
        encode(object())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner), max_leaves=5
)


@given(st.sampled_from(sorted(encode(everything()))), json_values)
def test_whatever_stands_in_a_field_it_is_read_or_refused(name: str, value: Any) -> None:
    data = encode(everything())
    data[name] = value
    try:
        decode(Everything, data)
    except InvalidState:
        return


def state() -> State:
    child = ChildState(10, Fd(20))
    stats = Stats(connections=3, application=[["counter", "x", "", [], [], [[[], 3]]]])
    totals = Totals()
    totals.retire(stats)
    figures = Figures(10)
    figures.update(stats, 1.0)
    return State(
        protocol=1, at=5.0, pid=9, config="{}", started_at=1.0, fleet=Fleet(2, 60.0, 30.0, 30.0),
        intake=IntakeState(
            listeners=[ListenerState(Fd(21), "/x", (1, 2), 100)], accepting=True, books=Books([]), sockets={1: Fd(22)},
            accepted_at={1: 3.0}, last_number=1, handoff_seconds=Durations(),
            admission=AdmissionState({1: b"k"}, Counter({b"k": 1}), {1: {1}}, OrderedDict([(b"k", (1.0, 2.0))])),
            peeking=[PeekState(Fd(23), "h", 1, 0, 2.0, 3, Header(4, ("h", 1)), 4)],
        ),
        workers={1: WorkerState(child, Fd(24), [(b"x", [22])], figures)}, totals=totals,
        asked=AskedState([["127.0.0.1", 1]], {("h", 1, "", 2, 0): (0,)}, {(2, ("h", 1)): 0}),
        bus=BusState("p", "f", child, Fd(25), b"", 0, None, None), bus_at=BusAt(None, "no"), wants_bus={1},
        helper=HelperState(child, Fd(26), [b"x"], 0), events=[b"e"],
        output=OutputState(
            Fd(27), {"stderr": [b"x"]}, [PipeState(Fd(28), Origin(1, 0, 1), "stdout", b"", False)],
            "[]", 5,
        ),
        control=ControlState(Fd(29), (1, 2), [CallState(Fd(32), b"{")]),
        metrics=Fd(30), ready_fd=Fd(31), last_poll=3, last_inquiry=4,
    )  # fmt: skip


def test_a_whole_primary_is_written_down_and_every_descriptor_is_found() -> None:
    value = state()
    back = carried(State, value)
    assert back == value
    assert set(find_fds(back)) == set(range(20, 33))
    assert back.fleet.slots == value.fleet.slots


def test_a_primary_with_little_has_few_descriptors() -> None:
    value = state()
    value.bus = value.helper = value.metrics = value.ready_fd = value.bus_at = value.intake.admission = None
    assert carried(State, value) == value
    assert not set(find_fds(value)) & {25, 26, 30, 31}
