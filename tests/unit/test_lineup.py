"""What a member missed and what comes meanwhile: each message once and in order, or it is said that one is gone."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wscluster.envelope import Envelope, Position
from wscluster.workers.feed import MAX_HELD, Delivery, Lost
from wscluster.workers.lineup import Lineup, reaches_back


def at(seq: int, epoch: int = 7) -> Position:
    return Position(epoch, seq)


def live(seq: int, epoch: int = 7, size: int = 1) -> Delivery:
    return Delivery(at(seq, epoch), Envelope(False, b"l" * size))


def log(*seqs: int, epoch: int = 7, unkept: tuple[int, ...] = ()) -> list[tuple[Position, Envelope | None]]:
    return [(at(seq, epoch), None if seq in unkept else Envelope(False, b"l")) for seq in seqs]


def positions(deliveries: list[Delivery] | None) -> list[str] | None:
    return None if deliveries is None else [str(delivery.position) for delivery in deliveries]


# since 7-3 in all of these: the log after it, what is held, what follows
FOLLOWS = {
    "nothing": (log(), [], []),
    "the log alone": (log(4, 5), [], ["7-4", "7-5"]),
    "what comes live alone": (log(), [live(4)], ["7-4"]),
    "both overlap": (log(4, 5), [live(5), live(6)], ["7-4", "7-5", "7-6"]),
    "the log is ahead of what comes live": (log(4, 5, 6), [live(4)], ["7-4", "7-5", "7-6"]),
    "what comes live is older": (log(4), [live(2), live(3), live(4), live(5)], ["7-4", "7-5"]),
    "a payload that is not kept was heard": (log(4, 5, unkept=(5,)), [live(5)], ["7-4", "7-5"]),
    "a payload that is not kept": (log(4, 5, unkept=(4,)), [live(5)], None),
    "trimmed": (log(5), [], None),
    "trimmed, and held": (log(6, 7), [live(4), live(5), live(6), live(7), live(8)], [f"7-{n}" for n in range(4, 9)]),
    "trimmed, and not all of it is held": (log(6), [live(4), live(6)], None),
    "trimmed, and the first of it is not held": (log(6), [live(5), live(6)], None),
    "trimmed, and held with what it has": (log(5), [live(2), live(3), live(4), live(5)], ["7-4", "7-5"]),
    "expired, and held": (log(1, epoch=8), [live(4), live(1, 8)], ["7-4", "8-1"]),
    "a hole between the two": (log(4), [live(6)], None),
    "the log began anew": (log(1, 2, epoch=8), [live(2, 8), live(3, 8)], ["8-1", "8-2", "8-3"]),
    "the log began anew, trimmed": (log(2, epoch=8), [], None),
    "it began anew live": (log(), [live(1, 8), live(2, 8)], ["8-1", "8-2"]),
}


@pytest.mark.parametrize("case", FOLLOWS)
def test_what_follows(case: str) -> None:
    entries, held, expected = FOLLOWS[case]
    lineup = Lineup(at(3), 1000)
    for delivery in held:
        lineup.hold(delivery)
    assert positions(lineup.follow(entries, whole=True)) == expected


def test_after_a_part_of_the_log_nothing_live_follows() -> None:
    lineup = Lineup(at(3), 1000)
    lineup.hold(live(6))
    assert positions(lineup.follow(log(4), whole=False)) == ["7-4"]


def test_a_loss_is_remembered() -> None:
    lineup = Lineup(at(3), 1000)
    assert not lineup.lost
    lineup.hold(Lost(at(3), None))
    assert lineup.lost


@pytest.mark.parametrize("size", [0, 400])
def test_what_is_held_is_bounded_and_the_next_reading_begins_anew(size: int) -> None:
    lineup = Lineup(at(3), 1000)
    for seq in range(4, 4 + MAX_HELD + 1 if size == 0 else 7):
        assert not lineup.spilled
        lineup.hold(live(seq, size=size))
    assert lineup.spilled
    lineup.hold(live(8))
    assert not lineup.has(at(4))
    assert not lineup.has(at(8))
    assert positions(lineup.follow(log(4, 5), whole=True)) == ["7-4", "7-5"]
    lineup.last = at(5)
    lineup.begin_reading()
    assert not lineup.spilled
    lineup.hold(live(7))
    assert positions(lineup.follow(log(6), whole=True)) == ["7-6", "7-7"]


def test_what_the_member_has_is_held_no_longer() -> None:
    lineup = Lineup(at(3), 1000)
    for seq in (4, 5, 6):
        lineup.hold(live(seq))
    lineup.last = at(5)
    lineup.begin_reading()
    assert [lineup.has(at(seq)) for seq in (4, 5, 6)] == [False, False, True]
    assert positions(lineup.follow(log(), whole=True)) == ["7-6"]


@given(
    since=st.integers(0, 8),
    heard=st.integers(0, 12),
    read=st.integers(0, 12),
    said=st.integers(0, 12),
    trimmed=st.integers(0, 12),
    cut=st.integers(1, 12),
)
def test_whenever_the_log_is_read_each_message_comes_once_and_in_order(
    since: int, heard: int, read: int, said: int, trimmed: int, cut: int
) -> None:
    """The room had said ``heard`` when the reading began, the log ``read`` when it was read, and then ``said`` came."""
    heard, read, said = sorted((max(heard, since), max(read, since), max(said, since)))
    lineup = Lineup(at(since), 1000)
    lineup.begin_reading()
    for seq in range(heard + 1, said + 1):
        lineup.hold(live(seq))
    entries = log(*range(max(since, trimmed) + 1, read + 1))
    first = entries[0][0] if entries else None
    newest = at(read) if trimmed < read else None
    if not reaches_back(at(since), newest, first, at(heard), None):
        assert trimmed > since or (newest is None and since != heard) or since == read == 0 != heard
        return
    part = lineup.follow(entries[:cut], whole=len(entries) <= cut)
    assert part is not None
    got = [delivery.position.seq for delivery in part]
    if len(entries) > cut:
        lineup.last = part[-1].position
        lineup.begin_reading()
        rest = lineup.follow(entries[cut:], whole=True)
        assert rest is not None
        got += [delivery.position.seq for delivery in rest]
    assert got == list(range(since + 1, max(read if entries else since, said) + 1))


# since, the log's newest, its first after since, what the worker heard, the end of its epoch before, the answer
BACK = {
    "nothing was missed": (at(3), at(3), None, at(3), None, True),
    "all is there": (at(3), at(5), at(4), at(5), None, True),
    "the worker has not heard it yet": (at(3), at(5), at(4), at(3), None, True),
    "from the beginning": (at(0), at(5), at(1), at(5), None, True),
    "trimmed": (at(3), at(9), at(5), at(9), None, False),
    "ahead of the log": (at(9), at(3), None, at(3), None, False),
    "another epoch": (at(3), at(2, 8), at(1, 8), at(2, 8), None, False),
    "an epoch to come": (at(3, 9), at(2, 8), None, at(2, 8), None, False),
    "no log, and nobody knows": (at(3), None, None, at(0, 8), None, False),
    "no log, but nothing was said since": (at(3), None, None, at(3), None, True),
    "begun by another worker, but nothing was said since": (at(3), at(0, 8), None, at(3), None, True),
    "the log expired and began anew, and the worker knows": (at(3), at(2, 8), at(1, 8), at(2, 8), at(3), True),
    "it began anew while it was read": (at(3), at(1, 8), at(1, 8), at(3), None, True),
    "it began anew, and its beginning is gone": (at(3), at(5, 8), at(2, 8), at(5, 8), at(3), False),
    "it began anew twice": (at(3), at(2, 9), at(1, 9), at(2, 8), at(3), False),
    "before any log": (Position(0, 0), at(2), at(1), at(2), None, False),
    "before any log, and still": (Position(0, 0), None, None, Position(0, 0), None, False),
    "nothing is known of the room": (at(3), at(2, 8), at(1, 8), None, None, False),
}


@pytest.mark.parametrize("case", BACK)
def test_whether_a_log_reaches_back(case: str) -> None:
    since, newest, first, heard, previous, expected = BACK[case]
    assert reaches_back(since, newest, first, heard, previous) is expected


def test_of_all_positions_of_an_epoch_only_those_before_what_is_left_are_too_old() -> None:
    for since, first_left, newest in itertools.product(range(9), range(1, 9), range(1, 9)):
        if first_left > newest:
            continue
        first = at(max(since + 1, first_left)) if since < newest else None
        assert reaches_back(at(since), at(newest), first, at(newest), None) == (first_left - 1 <= since <= newest)
