"""`Deadlines` under a clock that the test turns."""

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from wscluster.workers.deadlines import Deadlines


class Timer:
    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """The part of an event loop that `Deadlines` uses; time passes in `advance` only."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []
        self.turns = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(when, callback)
        self.timers.append(timer)
        return timer

    def call_soon(self, callback: Callable[[], None]) -> Timer:
        return self.call_at(self.now, callback)

    @property
    def waiting(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.cancelled]

    def turn(self) -> bool:
        """Run what is due, once; False where nothing was."""
        due = [timer for timer in self.waiting if timer.due <= self.now]
        self.timers = [timer for timer in self.waiting if timer not in due]
        for timer in due:
            timer.callback()
        self.turns += bool(due)
        return bool(due)

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := min((timer.due for timer in self.waiting), default=end + 1)) <= end:
            self.now = max(self.now, due)
            self.turn()
        self.now = end


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(clock: Clock, delay: float, expire: Callable[[int], None]) -> Deadlines[int]:
    return Deadlines(cast("asyncio.AbstractEventLoop", clock), delay, expire)


def test_items_come_due_in_the_order_of_their_adding(clock: Clock) -> None:
    expired: list[tuple[float, int]] = []
    deadlines = make(clock, 10, lambda item: expired.append((clock.now, item)))
    for item in (3, 1, 2):
        deadlines.add(item)
        clock.advance(1)
    assert len(deadlines) == 3
    clock.advance(6.5)
    assert expired == []
    clock.advance(10)
    assert expired == [(110, 3), (111, 1), (112, 2)]
    assert len(deadlines) == 0


def test_one_timer_serves_all(clock: Clock) -> None:
    deadlines = make(clock, 10, lambda item: None)
    for item in range(100):
        deadlines.add(item)
    assert len(clock.waiting) == 1


def test_no_timer_is_left_when_nothing_waits(clock: Clock) -> None:
    deadlines = make(clock, 10, lambda item: None)
    deadlines.add(1)
    clock.advance(11)
    assert clock.waiting == []
    deadlines.add(2)
    assert len(clock.waiting) == 1


def test_a_discarded_item_does_not_come_due(clock: Clock) -> None:
    expired: list[int] = []
    deadlines = make(clock, 10, expired.append)
    deadlines.add(1)
    deadlines.add(2)
    deadlines.discard(1)
    deadlines.discard(7)
    assert 1 not in deadlines
    assert 2 in deadlines
    clock.advance(11)
    assert expired == [2]


def test_what_is_added_after_the_first_was_discarded_comes_due_on_time(clock: Clock) -> None:
    expired: list[tuple[float, int]] = []
    deadlines = make(clock, 10, lambda item: expired.append((clock.now, item)))
    deadlines.add(1)
    clock.advance(5)
    deadlines.discard(1)
    deadlines.add(2)
    clock.advance(20)
    assert expired == [(115, 2)]


def test_an_item_added_again_comes_due_by_its_later_deadline_only(clock: Clock) -> None:
    expired: list[tuple[float, int]] = []
    deadlines = make(clock, 10, lambda item: expired.append((clock.now, item)))
    deadlines.add(1)
    deadlines.add(2)
    clock.advance(4)
    deadlines.add(1)
    clock.advance(20)
    assert expired == [(110, 2), (114, 1)]


def test_an_item_may_be_added_again_while_it_expires(clock: Clock) -> None:
    expired: list[tuple[float, int]] = []

    def expire(item: int) -> None:
        expired.append((clock.now, item))
        deadlines.add(item)

    deadlines = make(clock, 10, expire)
    deadlines.add(1)
    clock.advance(35)
    assert expired == [(110, 1), (120, 1), (130, 1)]
    assert len(clock.waiting) == 1


def test_the_others_come_due_on_time_though_one_is_added_again_while_it_expires(clock: Clock) -> None:
    expired: list[tuple[float, int]] = []

    def expire(item: int) -> None:
        expired.append((clock.now, item))
        deadlines.add(item)

    deadlines = make(clock, 10, expire)
    deadlines.add(1)
    clock.advance(4)
    deadlines.add(2)
    clock.advance(21)
    assert expired == [(110, 1), (114, 2), (120, 1), (124, 2)]
    assert len(clock.waiting) == 1


def test_more_than_512_that_are_added_again_are_not_late(clock: Clock) -> None:
    expired: list[tuple[float, int]] = []

    def expire(item: int) -> None:
        expired.append((clock.now, item))
        deadlines.add(item)

    deadlines = make(clock, 10, expire)
    for item in range(1200):
        deadlines.add(item)
    clock.advance(25)
    assert expired == [(when, item) for when in (110, 120) for item in range(1200)]


def test_an_item_discarded_by_one_that_expires_with_it_does_not_expire(clock: Clock) -> None:
    expired: list[int] = []

    def expire(item: int) -> None:
        expired.append(item)
        deadlines.discard(2)

    deadlines = make(clock, 10, expire)
    deadlines.add(1)
    deadlines.add(2)
    clock.advance(11)
    assert expired == [1]


def test_the_others_still_expire_when_one_raises(clock: Clock) -> None:
    expired: list[int] = []

    def expire(item: int) -> None:
        expired.append(item)
        if item == 1:
            raise RuntimeError("of the callback")

    deadlines = make(clock, 10, expire)
    for item in (1, 2, 3):
        deadlines.add(item)
    clock.now += 11
    with pytest.raises(RuntimeError, match="of the callback"):
        clock.turn()
    clock.advance(1)
    assert expired == [1, 2, 3]
    assert len(deadlines) == 0


def test_more_than_512_at_once_are_spread_over_turns_of_the_loop(clock: Clock) -> None:
    expired: list[int] = []
    deadlines = make(clock, 10, expired.append)
    for item in range(1200):
        deadlines.add(item)
    clock.now += 10
    seen = []
    while clock.turn():
        seen.append(len(expired))
    assert seen == [512, 1024, 1200]
    assert expired == list(range(1200))
    assert clock.waiting == []


def test_a_delay_of_zero_means_never(clock: Clock) -> None:
    expired: list[int] = []
    deadlines = make(clock, 0, expired.append)
    deadlines.add(1)
    clock.advance(1000)
    assert (expired, len(deadlines), clock.timers) == ([], 0, [])


def test_a_timer_that_fires_a_tick_early_expires_what_is_due_then(clock: Clock) -> None:
    expired: list[int] = []
    deadlines = make(clock, 10, expired.append)
    deadlines.add(1)
    clock.now += 9.9995
    clock.waiting[0].callback()
    assert expired == [1]


def test_stop_forgets_everything(clock: Clock) -> None:
    expired: list[int] = []
    deadlines = make(clock, 10, expired.append)
    deadlines.add(1)
    deadlines.stop()
    clock.advance(20)
    assert expired == []
    assert clock.waiting == []


def test_stop_while_items_expire_leaves_no_timer(clock: Clock) -> None:
    deadlines = make(clock, 10, lambda item: deadlines.stop())
    deadlines.add(1)
    clock.advance(5)
    deadlines.add(2)
    clock.advance(20)
    assert len(deadlines) == 0
    assert clock.waiting == []
