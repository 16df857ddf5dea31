"""One room's order: what is delivered is in order and never twice, and what is lost is said."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from wscluster.envelope import START, Envelope, Position
from wscluster.workers import feed as feed_module
from wscluster.workers.feed import Delivery, Feed, Forged, Lost, Outcome


def at(seq: int, epoch: int = 7) -> Position:
    return Position(epoch, seq)


def message(seq: int, epoch: int = 7) -> Envelope:
    return Envelope(True, f"{epoch}-{seq}".encode())


def entries(*seqs: int, epoch: int = 7, unkept: tuple[int, ...] = ()) -> list[tuple[Position, Envelope | None]]:
    return [(at(seq, epoch), None if seq in unkept else message(seq, epoch)) for seq in seqs]


def short(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the outcomes as text: ``7-3`` is a delivery, ``7-1..7-3`` a loss, ``!7-9`` what is ignored."""
    said = []
    for outcome in outcomes:
        if isinstance(outcome, Delivery):
            assert outcome.envelope.payload == str(outcome.position).encode()
            said.append(str(outcome.position))
        elif isinstance(outcome, Forged):
            said.append(f"!{outcome.position}")
        else:
            said.append(f"{outcome.after}..{outcome.before or ''}")
    return said


def synced(seq: int = 3) -> Feed:
    """Return the feed of a room whose last message was ``seq``."""
    feed = Feed()
    feed.begin_sync()
    assert feed.synced_first(at(seq)) == []
    return feed


def test_before_the_first_subscription_nothing_is_delivered() -> None:
    feed = Feed()
    assert feed.syncing
    assert feed.receive(at(1), message(1)) == []
    feed.begin_sync()
    assert feed.receive(at(2), message(2)) == []
    assert feed.syncing
    assert short(feed.synced_first(at(1))) == ["7-2"]
    assert not feed.syncing


def test_a_room_without_a_log_begins_before_its_first_message() -> None:
    feed = Feed()
    feed.begin_sync()
    assert feed.synced_first(None) == []
    assert feed.last == START
    assert short(feed.receive(at(1), message(1))) == ["7-1"]


def test_what_the_log_knew_at_the_first_subscription_is_not_delivered_again() -> None:
    feed = Feed()
    feed.begin_sync()
    for seq in (3, 4, 5):
        feed.receive(at(seq), message(seq))
    assert short(feed.synced_first(at(4))) == ["7-5"]


def test_live_messages_that_come_twice_are_delivered_once() -> None:
    feed = synced(3)
    told = [short(feed.receive(at(seq), message(seq))) for seq in (4, 4, 3, 5)]
    assert told == [["7-4"], [], [], ["7-5"]]
    assert not feed.doubts


# last heard is 7-3 in all of these, and then comes something that does not follow: the log after 7-3, its newest, what
# comes live, the outcome
DOUBTS: dict[str, tuple[Any, Any, list[Any], list[str]]] = {
    "the log has what was lost on the way": (entries(4, 5, 6), at(6), [6, 7], ["7-4", "7-5", "7-6", "7-7"]),
    "a position beyond the log's end": (entries(4), at(4), [900, 4, 5], ["7-4", "!7-900", "7-5"]),
    "a position that the log gave to another message": (entries(4, 5), at(5), [5, 4], ["7-4", "7-5"]),
    "a position of an epoch that never was": ([], at(3), [(99, 5), 4], ["!99-5", "7-4"]),
    "the beginning of an epoch that is over": ([], at(3), [(6, 1), 4], ["!6-1", "7-4"]),
    "the server's clock went back": ([], at(1, 6), [(6, 1), (6, 2)], ["7-3..6-1", "6-1", "6-2"]),
    "the log was trimmed": (entries(6), at(6), [6], ["7-3..7-6", "7-6"]),
    "the log is gone: nobody can say": ([], None, [6, 7], ["7-3..7-6", "7-6", "7-7"]),
    "the log began anew": (entries(1, 2, epoch=8), at(2, 8), [(8, 2)], ["7-3..8-1", "8-1", "8-2"]),
}


@pytest.mark.parametrize("case", DOUBTS)
def test_a_live_message_that_does_not_follow_the_last_one_is_checked_with_the_log(case: str) -> None:
    log, newest, live, told = DOUBTS[case]
    feed = synced(3)
    for one in live:
        epoch, seq = one if isinstance(one, tuple) else (7, one)
        assert feed.receive(at(seq, epoch), message(seq, epoch)) == []
        assert feed.doubts
        assert feed.syncing
    assert short(feed.synced_again(log, newest, log_kept=True)) == told
    assert not feed.doubts
    assert not feed.syncing


def test_what_a_forged_message_says_is_not_delivered_in_the_place_of_the_true_one() -> None:
    feed = synced(3)
    feed.receive(at(5), Envelope(True, b"forged"))
    assert short(feed.synced_again(entries(4, 5), at(5), log_kept=True)) == ["7-4", "7-5"]


def test_after_a_forged_beginning_of_an_epoch_the_room_goes_on_with_a_gap_and_nothing_comes_twice() -> None:
    feed = synced(3)
    assert short(feed.receive(at(1, 9), message(1, 9))) == ["9-1"]
    assert feed.receive(at(4), message(4)) == []
    assert feed.doubts
    assert short(feed.synced_again([], at(4), log_kept=True)) == ["9-1..7-4", "7-4"]
    assert short(feed.receive(at(5), message(5))) == ["7-5"]


def test_the_epoch_before_is_remembered_where_nothing_was_lost_between() -> None:
    feed = synced(3)
    feed.receive(at(1, 8), message(1, 8))
    feed.receive(at(2, 8), message(2, 8))
    assert feed.previous == at(3)
    feed.begin_sync()
    feed.synced_again([], at(5, 9), log_kept=True)
    assert feed.previous is None


def test_a_log_that_another_worker_began_after_silence_is_no_message_and_no_loss() -> None:
    feed = synced(3)
    feed.begin_sync()
    assert feed.synced_again([], at(0, 8), log_kept=True) == []
    assert feed.last == at(3)
    assert short(feed.receive(at(1, 8), message(1, 8))) == ["8-1"]


def test_a_room_of_which_nothing_is_known_and_that_has_no_log_begins_with_what_comes() -> None:
    feed = Feed()
    feed.begin_sync()
    feed.receive(at(5), message(5))
    assert short(feed.synced_first(None)) == ["0-0..7-5", "7-5"]


def test_a_log_that_began_anew_continues_with_its_first_message() -> None:
    feed = synced(3)
    assert short(feed.receive(at(1, 8), message(1, 8))) == ["8-1"]
    assert short(feed.receive(at(2, 8), message(2, 8))) == ["8-2"]


# last heard is 7-3 in all of these: the log after it, its newest, whether it was kept, held live messages, the outcome
AGAIN: dict[str, tuple[Any, Any, bool, list[Any], list[str]]] = {
    "nothing happened": ([], at(3), True, [], []),
    "missed messages are replayed": (entries(4, 5), at(5), True, [], ["7-4", "7-5"]),
    "held and replayed are one": (entries(4, 5), at(4), True, [5, 6], ["7-4", "7-5", "7-6"]),
    "the log does not reach back": (entries(6, 7), at(7), True, [], ["7-3..7-6", "7-6", "7-7"]),
    "trimmed between the two answers": ([], at(5), True, [6], ["7-3..7-6", "7-6"]),
    "payloads that are not kept are one hole": (
        entries(4, 5, 6, unkept=(4, 5)), at(6), True, [], ["7-3..7-6", "7-6"],
    ),
    "trimmed and not kept is one hole": (entries(6, 7, unkept=(6,)), at(7), True, [8], ["7-3..7-7", "7-7", "7-8"]),
    "a payload that is not kept but was heard": (entries(4, unkept=(4,)), at(4), True, [4], ["7-4"]),
    "no log at all is one hole": (entries(4, 5, unkept=(4, 5)), at(5), True, [], ["7-3.."]),
    "a quiet log expired": ([], None, True, [], []),
    "a quiet log expired, then one came": ([], None, True, [(8, 1)], ["8-1"]),
    "the log may be lost": ([], None, False, [], ["7-3.."]),
    "the log may be lost, then one came": ([], None, False, [(8, 1)], ["7-3..8-1", "8-1"]),
    "another server": (entries(1, 2, epoch=8), at(2, 8), False, [], ["7-3..8-1", "8-1", "8-2"]),
    "the log began anew: what it held before is unknown": (
        entries(1, 2, epoch=8), at(2, 8), True, [], ["7-3..8-1", "8-1", "8-2"],
    ),
    "trimmed between the two answers, and silence": ([], at(5), True, [], ["7-3.."]),
    "another server, trimmed": (entries(5, epoch=8), at(5, 8), False, [], ["7-3..8-5", "8-5"]),
    "another server, not kept": (entries(1, 2, epoch=8, unkept=(1,)), at(2, 8), False, [], ["7-3..8-2", "8-2"]),
    "a server whose clock is behind": ([], at(4, 6), False, [(6, 5)], ["7-3..6-5", "6-5"]),
    "a server with an older memory": ([], at(1), False, [], ["7-3.."]),
    "a server with an older memory, used": ([], at(2), False, [3, 4], ["7-3..7-3", "7-3", "7-4"]),
    "a server that may have forgotten": (entries(4), at(4), False, [], ["7-3..7-4", "7-4"]),
}  # fmt: skip


@pytest.mark.parametrize("case", AGAIN)
def test_after_an_interruption(case: str) -> None:
    log, newest, log_kept, live, told = AGAIN[case]
    feed = synced(3)
    feed.begin_sync()
    for one in live:
        epoch, seq = one if isinstance(one, tuple) else (7, one)
        assert feed.receive(at(seq, epoch), message(seq, epoch)) == []
    assert short(feed.synced_again(log, newest, log_kept=log_kept)) == told
    assert not feed.syncing


def test_a_hole_is_told_once_and_not_again_by_the_next_message() -> None:
    feed = synced(3)
    feed.begin_sync()
    assert short(feed.synced_again(entries(4, unkept=(4,)), at(4), log_kept=True)) == ["7-3.."]
    assert short(feed.receive(at(5), message(5))) == ["7-5"]


def test_a_room_that_never_had_a_message_may_begin_while_it_is_away() -> None:
    feed = Feed()
    feed.begin_sync()
    feed.synced_first(None)
    feed.begin_sync()
    assert short(feed.synced_again(entries(1, 2), at(2), log_kept=True)) == ["7-1", "7-2"]


def test_more_than_can_be_held_is_a_hole_unless_the_log_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "MAX_HELD", 2)
    feed = synced(3)
    feed.begin_sync()
    for seq in (4, 5, 6, 7):
        feed.receive(at(seq), message(seq))
    assert short(feed.synced_again([], at(3), log_kept=True)) == ["7-4", "7-5"]
    assert feed.receive(at(8), message(8)) == []
    assert short(feed.synced_again(entries(6, 7, 8), at(8), log_kept=True)) == ["7-6", "7-7", "7-8"]


def test_more_bytes_than_can_be_held_are_a_hole_and_nothing_smaller_takes_their_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed_module, "MAX_HELD_BYTES", 10)

    def seqs(outcomes: Sequence[Outcome]) -> list[int]:
        return [outcome.position.seq for outcome in outcomes if isinstance(outcome, Delivery)]

    feed = synced(3)
    feed.begin_sync()
    # The first is held whatever its size.
    feed.receive(at(4), Envelope(text=False, payload=b"x" * 8))
    feed.receive(at(5), Envelope(text=False, payload=b"x" * 3))
    feed.receive(at(6), Envelope(text=False, payload=b"x"))
    assert seqs(feed.synced_again([], at(3), log_kept=True)) == [4]
    feed.begin_sync()
    feed.receive(at(5), Envelope(text=False, payload=b"x" * 99))
    feed.receive(at(6), Envelope(text=False, payload=b""))
    assert seqs(feed.synced_again([], at(4), log_kept=True)) == [5]


def test_what_was_held_when_the_connection_broke_off_again_is_lost_where_the_log_is_gone() -> None:
    feed = Feed()
    feed.begin_sync()
    feed.synced_first(None)
    feed.begin_sync()
    feed.receive(at(1), message(1))
    feed.begin_sync()
    assert feed.synced_again([], None, log_kept=True) == [Lost(Position(0, 0), None)]


@dataclass
class Truth:
    """What one side of the bus knows: everything that was ever published, and the log that is left of it."""

    epoch: int = 100
    seq: int = 0
    log: list[tuple[Position, Envelope | None]] = field(default_factory=list)
    published: list[bytes] = field(default_factory=list)

    def publish(self, kept: bool) -> tuple[Position, Envelope]:
        if not self.log:
            self.epoch, self.seq = self.epoch + 1, 0
        self.seq += 1
        envelope = Envelope(True, b"%d" % len(self.published))
        self.published.append(envelope.payload)
        self.log.append((Position(self.epoch, self.seq), envelope if kept else None))
        return Position(self.epoch, self.seq), envelope


class Lives(RuleBasedStateMachine):
    """A room of one worker: publishes, interruptions, logs that are trimmed and expire, servers that forget."""

    @initialize(before=st.integers(0, 3))
    def begin(self, before: int) -> None:
        self.truth = Truth()
        for _ in range(before):
            self.truth.publish(True)
        self.feed = Feed()
        self.heard = before  # how many of the published messages are delivered or told as lost
        self.told_lost = False  # since the last delivery
        self.doubt = False  # a loss may be told that is none: nobody can know
        self.hears = True  # the server has our subscription
        self.connected = True  # and the log was read since
        self.same_server = True
        self.new_while_away = False
        self.memory: tuple[int, int, list[tuple[Position, Envelope | None]]] = (0, 0, [])
        self.feed.begin_sync()
        self.follow(self.feed.synced_first(self.truth.log[-1][0] if self.truth.log else None))

    def follow(self, outcomes: Sequence[Outcome]) -> None:
        for number, outcome in enumerate(outcomes):
            assert not isinstance(outcome, Forged), "everything was published"
            if isinstance(outcome, Lost):
                following = outcomes[number + 1] if number + 1 < len(outcomes) else None
                assert not isinstance(following, Lost), "one hole is one Lost"
                assert outcome.before == (None if following is None else following.position)
                assert self.doubt or self.heard < len(self.truth.published), "a loss is invented"
                self.told_lost = True
                continue
            index = int(outcome.envelope.payload)
            assert self.truth.published[index] == outcome.envelope.payload
            assert index >= self.heard, "delivered twice, or out of order"
            assert index == self.heard or self.told_lost, "a hole was not told"
            # Where a server forgot something nobody knows: told once, it holds for all that its log says.
            self.heard, self.told_lost = index + 1, self.told_lost and not self.same_server

    @rule(kept=st.booleans(), copies=st.integers(1, 2))
    def publish(self, kept: bool, copies: int) -> None:
        position, envelope = self.truth.publish(kept)
        if not self.hears:
            self.new_while_away = True
            return
        for _ in range(copies):
            self.follow(self.feed.receive(position, envelope))
        if self.connected:
            assert self.heard == len(self.truth.published)

    @precondition(lambda self: self.hears)
    @rule()
    def break_off(self) -> None:
        self.hears = self.connected = False

    @precondition(lambda self: not self.hears)
    @rule()
    def subscribe(self) -> None:
        self.hears = True
        self.feed.begin_sync()
        assert self.feed.syncing

    @precondition(lambda self: self.hears and not self.connected)
    @rule()
    def read_log(self) -> None:
        last = self.feed.last
        assert last is not None
        newest = self.truth.log[-1][0] if self.truth.log else None
        log = [entry for entry in self.truth.log if entry[0] > last]
        self.doubt = not self.same_server or (newest is not None and newest.epoch != last.epoch)
        outcomes = self.feed.synced_again(log, newest, log_kept=self.same_server)
        assert self.same_server or any(isinstance(outcome, Lost) for outcome in outcomes)
        self.follow(outcomes)
        self.doubt = False
        assert self.heard == len(self.truth.published) or self.told_lost, "the hole at the end was not told"
        self.heard, self.told_lost = len(self.truth.published), False
        self.connected, self.same_server, self.new_while_away = True, True, False

    @rule(left=st.integers(1, 3))
    def trim(self, left: int) -> None:
        self.truth.log = self.truth.log[-left:]

    @precondition(lambda self: not self.new_while_away and (self.connected or not self.hears))
    @rule()
    def expire(self) -> None:
        """Of a log whose room was quiet; what came while we were away is younger than its time to live."""
        self.truth.log = []

    @rule()
    def save(self) -> None:
        self.memory = (self.truth.epoch, self.truth.seq, list(self.truth.log))

    @precondition(lambda self: not self.hears)
    @rule(remembers=st.booleans())
    def restart(self, remembers: bool) -> None:
        self.same_server = False
        epoch, seq, log = self.memory if remembers else (0, 0, [])
        # Only a log that holds something names its epoch and count; a new one takes the time of its first message.
        self.truth.log = list(log)
        if log:
            self.truth.epoch, self.truth.seq = epoch, seq
        else:
            self.truth.epoch = max(self.truth.epoch, self.memory[0]) + 10

    @invariant()
    def the_last_position_is_known(self) -> None:
        assert self.feed.last is not None


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(1, 30))
def test_whatever_anybody_says_live_what_is_delivered_rises_and_the_room_goes_on(seqs: list[int], true: int) -> None:
    """``true`` messages are in the log; whatever comes live, the room delivers them, and then those that follow."""
    feed = synced(0)
    delivered: list[int] = []

    def follow(outcomes: Sequence[Outcome]) -> None:
        delivered.extend(outcome.position.seq for outcome in outcomes if isinstance(outcome, Delivery))
        assert not any(isinstance(outcome, Lost) for outcome in outcomes)

    for seq in seqs:
        follow(feed.receive(at(seq), message(seq)))
        if feed.doubts:
            last = feed.last
            assert last is not None
            newest = max(true, last.seq)
            follow(feed.synced_again(entries(*range(last.seq + 1, newest + 1)), at(newest), log_kept=True))
            assert not feed.syncing
    last = feed.last
    assert last is not None
    follow(feed.receive(at(last.seq + 1), message(last.seq + 1)))
    assert delivered == list(range(1, last.seq + 2))
