"""The checker rejects each kind of history that must not happen, and accepts those that may."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nemesis.checker import Began, Heard, Mark, Published, Session, Told, judge

E = 1000  # epoch of the log


def published(*numbers: int, unknown: tuple[int, ...] = (), epoch: int = E) -> list[Published]:
    return [Published("r", f"m{n}", None if n in unknown else f"{epoch}-{n}") for n in numbers]


def session(*items: object, since: str | None = None, who: str = "one", recovered: bool = True) -> Session:
    """A session that began at 0 with these messages by number, and these other things."""
    found = [Heard(f"m{item}") if isinstance(item, int) else item for item in items]
    return Session(who, "r", since, [Began(f"{E}-0", recovered), *found])  # type: ignore[list-item]


def faults(publishes: list[Published], *sessions: Session, final: int = 5) -> str:
    return "\n".join(judge(publishes, sessions, {"r": f"m{final}"}).faults)


ALL = published(1, 2, 3, 4, 5)


def test_what_may_happen_is_accepted() -> None:
    assert not faults(ALL, session(1, 2, 3, 4, 5), session(1, 2, 3, 4, 5, who="other"))
    # A later beginning; a publish of unknown outcome that arrived, and one that did not.
    late = Session("late", "r", None, [Began(f"{E}-3", True), Heard("m4"), Heard("m5")])
    assert not faults(published(1, 2, 3, 4, 5, unknown=(2, 3)), session(1, 2, 4, 5), late)
    # A loss that was told, with both ends or with the end left open.
    assert not faults(ALL, session(1, Told(f"{E}-1", f"{E}-4"), 4, 5))
    assert not faults(ALL, session(1, Told(f"{E}-1", ""), 4, 5))
    # Coming back with the last mark: what came after the mark is heard again, what came before is not.
    assert not faults(ALL, session(1, 2, Mark(f"{E}-2"), 3), session(3, 4, 5, since=f"{E}-2"))
    # The log no longer reached back, which was said.
    gone = Session("one", "r", f"{E}-1", [Began(f"{E}-4", False), Heard("m5")])
    assert not faults(ALL, session(1, Mark(f"{E}-1")), gone)
    # A new epoch, told.
    new = [*published(1, 2), *[Published("r", f"n{n}", f"{E + 9}-{n}") for n in (1, 2)]]
    heard = [Told(f"{E}-1", f"{E + 9}-2"), Heard("n2")]
    assert not judge(new, [session(1, *heard)], {"r": "n2"}).faults


@pytest.mark.parametrize(
    ("sessions", "fault"),
    [
        ([session(1, 2, 4, 5)], "'m3' at (1000, 3) was neither heard nor told"),
        ([session(1, 2, 3, 3, 4, 5)], "heard 'm3' twice"),
        ([session(1, 3, 2, 4, 5)], "no one order fits"),
        ([session(1, 2, 3, 4, 5, 6)], "'m6', which nobody published"),
        ([session(1, 2, 3, 4)], "never heard the last message"),
        # A gap that is told elsewhere covers nothing here, nor does one that ends before.
        ([session(1, Told(f"{E}-1", f"{E}-3"), 4, 5)], "'m3' at (1000, 3) was neither"),
        ([session(1, Told(f"{E}-3", ""), 4, 5)], "'m2' at (1000, 2) was neither"),
        ([session(1, Told(f"{E}-1", ""), 3, 5)], "'m4' at (1000, 4) was neither"),
        ([session(1, 2, 3, 4, 5), session(1, Told(f"{E}-1", ""), 5, who="x"), session(1, 5, who="y")], "y in r"),
        # A mark that says more than was delivered.
        ([session(1, 2, Mark(f"{E}-5")), session(5, since=f"{E}-4")], "'m3' at (1000, 3) was neither"),
        # Coming back: something twice, something lost.
        ([session(1, 2, Mark(f"{E}-2")), session(2, 3, 4, 5, since=f"{E}-2")], "heard 'm2' again after its return"),
        ([session(1, 2, Mark(f"{E}-2")), session(4, 5, since=f"{E}-2")], "'m3' at (1000, 3) was neither"),
    ],
)
def test_what_must_not_happen_is_rejected(sessions: list[Session], fault: str) -> None:
    assert fault in faults(ALL, *sessions)


def test_two_orders_are_rejected_though_no_position_is_known() -> None:
    unknown = published(1, 2, 3, 4, 5, unknown=(1, 2, 3, 4))
    assert "no one order" in faults(unknown, session(1, 2, 5), session(2, 1, 5, who="other"))
    # Nor can an unknown one stand at both sides of a known one.
    some = published(1, 2, 3, 5, unknown=(2,))
    assert "no one order" in faults(some, session(1, 2, 3, 5), session(2, 1, 3, 5, who="other"))
    # A circle over three sessions.
    circle = [session(1, 2, 5), session(2, 3, 5, who="b"), session(3, 1, 5, who="c")]
    assert "no one order" in faults(unknown, *circle)


def test_a_message_at_two_positions_and_two_at_one_are_rejected() -> None:
    twice = session(1, 2, 3, 4, Heard("m5", f"{E}-6"))
    assert "it was sent twice" in faults(ALL, twice)
    other = session(1, 2, 3, 4, 5, Heard("m6", f"{E}-5"))
    assert "both stand at" in faults([*ALL, Published("r", "m6", None)], other)


def test_a_loss_between_two_epochs_is_rejected_unless_told() -> None:
    new = [*published(1, 2), *[Published("r", f"n{n}", f"{E + 9}-{n}") for n in (1, 2)]]
    found = judge(new, [session(1, Heard("n2"))], {"r": "n2"}).faults
    assert sum("neither heard nor told" in fault for fault in found) == 2


@given(st.data())
def test_who_begins_in_a_room_without_a_log_is_owed_the_whole_of_the_next(data: st.DataObject) -> None:
    old = [Published("r", f"o{n}", f"{E - 9}-{n}") for n in (1, 2)]
    heard = data.draw(st.lists(st.integers(1, 5), unique=True).map(sorted))
    gone = Session("one", "r", None, [Began("0-0", recovered=False), *[Heard(f"m{n}") for n in heard]])
    found = faults([*old, *ALL], gone, final=heard[-1] if heard else 5)
    assert found.count("was neither heard") == (heard[-1] - len(heard) if heard else 0)


@given(st.data())
def test_any_single_loss_double_or_swap_is_found(data: st.DataObject) -> None:
    count = data.draw(st.integers(4, 30))
    good = list(range(1, count + 1))
    publishes = published(*good)
    assert not faults(publishes, session(*good), final=count)
    at = data.draw(st.integers(0, count - 2))
    bad = list(good)
    match data.draw(st.sampled_from(["lose", "double", "swap"])):
        case "lose":
            del bad[at]
        case "double":
            bad.insert(data.draw(st.integers(at, count)), bad[at])
        case "swap":
            bad[at], bad[at + 1] = bad[at + 1], bad[at]
    assert faults(publishes, session(*bad), final=count)
