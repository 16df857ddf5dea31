"""What waits for a subscriber: in order, bounded, and whatever fell out is told as a gap in its place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wscluster.api import Gap, Message
from wscluster.envelope import Envelope, Position
from wscluster.workers.backlog import Backlog
from wscluster.workers.feed import Delivery, Lost


def said(seq: int) -> Delivery:
    return Delivery(Position(7, seq), Envelope(True, b"%d" % seq))


def lost(after: int, before: int | None) -> Lost:
    return Lost(Position(7, after), None if before is None else Position(7, before))


def backlog(max_queue: int, *rooms: str) -> Backlog:
    made = Backlog(max_queue)
    for room in rooms:
        made.begin(room, Position(7, 0))
    return made


def take_all(backlog: Backlog) -> list[str]:
    """``a3`` is a message, ``a(0,3)`` a gap."""
    shown = []
    while backlog:
        item = backlog.take()
        if isinstance(item, Message):
            assert item.position == f"7-{item.data!s}"
            shown.append(f"{item.room}{item.data!s}")
        else:
            shown.append(f"{item.room}({item.after.removeprefix('7-')},{item.before.removeprefix('7-')})")
    return shown


def test_what_waits_comes_in_order_as_it_was_said() -> None:
    waiting = backlog(10, "a", "b")
    assert not waiting
    waiting.add("a", said(1))
    waiting.add("b", said(1))
    waiting.add("a", Delivery(Position(7, 2), Envelope(False, b"\xff")))
    assert waiting.take() == Message("a", "1", "7-1")
    assert waiting.take() == Message("b", "1", "7-1")
    assert waiting.take() == Message("a", b"\xff", "7-2")
    with pytest.raises(IndexError):
        waiting.take()


def test_the_oldest_fall_out_and_one_gap_comes_in_their_place() -> None:
    waiting = backlog(2, "a")
    for seq in (1, 2, 3, 4, 5):
        waiting.add("a", said(seq))
    assert take_all(waiting) == ["a(0,4)", "a4", "a5"]
    for seq in (6, 7, 8):
        waiting.add("a", said(seq))
    assert take_all(waiting) == ["a(5,7)", "a7", "a8"]


def test_each_room_has_its_own_gap() -> None:
    waiting = backlog(2, "a", "b")
    for room, seq in (("a", 1), ("b", 1), ("a", 2), ("b", 2), ("b", 3)):
        waiting.add(room, said(seq))
    assert take_all(waiting) == ["a(0,)", "b(0,2)", "b2", "b3"]


def test_a_loss_of_the_bus_is_a_gap_at_its_place_and_one_with_what_fell_out_before_it() -> None:
    waiting = backlog(3, "a", "b")
    for told in (said(1), lost(1, 4), said(4)):
        waiting.add("a", told)
    assert take_all(waiting) == ["a1", "a(1,4)", "a4"]
    for told in (said(5), lost(5, 8), said(8), said(9)):
        waiting.add("a", told)
    assert take_all(waiting) == ["a(4,8)", "a8", "a9"]
    for told in (said(10), lost(10, 12), said(12), said(13), said(14)):
        waiting.add("a", told)
    assert take_all(waiting) == ["a(9,12)", "a12", "a13", "a14"]


def test_a_loss_at_the_end_has_no_end_yet_unless_something_came_by_then() -> None:
    waiting = backlog(9, "a", "b")
    waiting.add("a", lost(0, None))
    waiting.add("b", said(1))
    assert take_all(waiting) == ["a(0,)", "b1"]
    waiting.add("a", lost(3, None))
    waiting.add("a", said(4))
    assert take_all(waiting) == ["a(0,4)", "a4"]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 3)), max_size=60),
    st.integers(1, 5),
)
def test_messages_and_gaps_together_tell_each_rooms_whole_story(
    story: list[tuple[str, int, int]], max_queue: int
) -> None:
    """Each step: a room loses some, says one, and the subscriber takes some. Nothing is missing that no gap tells."""
    waiting = backlog(max_queue, "a", "b", "c")
    at = dict.fromkeys("abc", 0)
    items: list[Message | Gap] = []
    for room, losses, taken in story:
        if losses:
            waiting.add(room, lost(at[room], at[room] + losses + 1))
        at[room] += losses + 1
        waiting.add(room, said(at[room]))
        for _ in range(taken):
            if waiting:
                items.append(waiting.take())
    while waiting:
        items.append(waiting.take())
    for room in "abc":
        last, gap = 0, False
        for item in (item for item in items if item.room == room):
            if isinstance(item, Gap):
                assert item.after == f"7-{last}"
                gap = True
            else:
                seq = int(item.data)
                assert seq > last
                assert gap or seq == last + 1
                last, gap = seq, False
        assert last == at[room] or gap
