"""`Turns` under a clock and a loop that the test turns."""

import asyncio
from collections.abc import Callable
from typing import cast

from wscluster.workers.turns import Turns


class Worker:
    """A loop that does what it was asked to, one turn at a time; each frame that an item reads takes a second."""

    def __init__(self, seconds: float = 2.5) -> None:
        self.now = 100.0
        self.calls: list[Callable[[], None]] = []
        self.frames: dict[str, int] = {}
        self.read: list[str] = []
        loop = cast("asyncio.AbstractEventLoop", self)
        self.turns: Turns[str] = Turns(loop, self.go_on, seconds=seconds, clock=lambda: self.now)

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.calls.append(callback)

    def go_on(self, item: str) -> None:
        while self.frames[item]:
            if self.turns.is_over():
                self.turns.wait(item)
                return
            self.now += 1
            self.frames[item] -= 1
            self.read.append(item)

    def arrive(self, item: str, frames: int) -> None:
        self.frames[item] = self.frames.get(item, 0) + frames
        self.go_on(item)

    def turn(self) -> str:
        """Go on to the next turn; returns what was read in it."""
        calls, self.calls = self.calls, []
        self.read.clear()
        assert len(calls) <= 1
        for call in calls:
            call()
        return "".join(self.read)


def test_what_fits_a_turn_is_read_at_once_and_the_loop_is_asked_once() -> None:
    worker = Worker()
    worker.arrive("a", 1)
    worker.arrive("b", 1)
    assert worker.read == ["a", "b"]
    assert len(worker.calls) == 1
    assert worker.turn() == ""
    assert worker.calls == []
    worker.arrive("a", 2)
    assert worker.read == ["a", "a"]


def test_a_turn_ends_when_its_time_is_over_and_the_others_have_theirs_first() -> None:
    worker = Worker()
    for item in "abc":
        worker.arrive(item, 4)
    assert worker.read == ["a", "a", "a"]
    assert len(worker.turns) == 3
    assert [worker.turn() for _ in range(4)] == ["abb", "bcc", "cbc", ""] or len(worker.turns) == 0
    assert sum(worker.frames.values()) == 0


def test_something_costly_that_was_read_without_asking_begins_the_turn() -> None:
    worker = Worker()
    assert not worker.turns.begun
    worker.turns.begin()
    assert worker.turns.begun
    worker.arrive("a", 5)
    worker.turns.begin()  # only once: it does not begin anew
    assert worker.read == ["a", "a", "a"]
    assert worker.turn() == "aa"
    assert worker.turn() == ""
    assert not worker.turns.begun


def test_every_turn_reads_at_least_one_frame_however_long_it_takes() -> None:
    worker = Worker(seconds=0.1)
    worker.arrive("a", 2)
    worker.arrive("b", 2)
    assert worker.read == ["a"]
    assert [worker.turn(), worker.turn(), worker.turn(), worker.turn()] == ["a", "b", "b", ""]


def test_who_is_gone_is_not_called() -> None:
    worker = Worker(seconds=0.1)
    for item in "abc":
        worker.arrive(item, 2)
    worker.turns.discard("b")
    worker.turns.discard("never waited")
    assert len(worker.turns) == 2
    assert "".join(worker.turn() for _ in range(5)) == "acc"


def test_one_that_goes_while_another_goes_on_is_not_called() -> None:
    gone: list[str] = []
    worker = Worker(seconds=0.1)

    def go_on(item: str) -> None:
        gone.append(item)
        turns.discard("b")

    turns: Turns[str] = Turns(cast("asyncio.AbstractEventLoop", worker), go_on, seconds=1, clock=lambda: worker.now)
    assert not turns.is_over()
    worker.now += 2
    assert turns.is_over()
    turns.wait("a")
    turns.wait("b")
    worker.turn()
    assert gone == ["a"]
    assert len(turns) == 0
