"""What is still to be said to the bus: bounded, in order, each command answered once, channels as meant last."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wscluster import unsent
from wscluster.errors import BusUnavailable
from wscluster.unsent import (
    CHANNELS_PER_COMMAND,
    MAX_PIPELINE_BYTES,
    MAX_PIPELINE_COMMANDS,
    UnsentCommands,
    WantedChannels,
)

Answer = asyncio.Future[Any]


def with_loop(test: Callable[[asyncio.AbstractEventLoop], None]) -> None:
    """Futures need a loop, which need not run."""
    loop = asyncio.new_event_loop()
    try:
        test(loop)
    finally:
        loop.close()


def reason(answer: Answer) -> str:
    error = answer.exception()
    assert isinstance(error, BusUnavailable)
    return str(error).removeprefix("the bus is unavailable: ")


def test_a_batch_holds_no_more_than_a_pipeline_may_and_keeps_the_order() -> None:
    def test(loop: asyncio.AbstractEventLoop) -> None:
        queue = UnsentCommands()
        for number in range(MAX_PIPELINE_COMMANDS * 2 + 5):
            queue.add(("N", number), 0.0, loop.create_future())
        batches = []
        while queue:
            batches.append([command.arguments[1] for command in queue.take_batch()])
        assert [len(batch) for batch in batches] == [MAX_PIPELINE_COMMANDS, MAX_PIPELINE_COMMANDS, 5]
        assert [number for batch in batches for number in batch] == list(range(MAX_PIPELINE_COMMANDS * 2 + 5))
        assert queue.take_batch() == []

    with_loop(test)


def test_a_batch_ends_when_it_is_large_and_holds_one_command_at_least() -> None:
    def test(loop: asyncio.AbstractEventLoop) -> None:
        queue = UnsentCommands()
        for size in (MAX_PIPELINE_BYTES * 3, MAX_PIPELINE_BYTES - 1, 5, 5):
            queue.add(("SET", "key", bytes(size), 1), 0.0, loop.create_future())
        sizes = []
        while queue:
            sizes.append([command.size for command in queue.take_batch()])
        assert sizes == [[MAX_PIPELINE_BYTES * 3], [MAX_PIPELINE_BYTES - 1, 5], [5]]

    with_loop(test)


def test_what_is_due_fails_and_the_rest_waits() -> None:
    def test(loop: asyncio.AbstractEventLoop) -> None:
        queue = UnsentCommands()
        assert queue.next_deadline is None
        answers: list[Answer] = [loop.create_future() for _ in range(4)]
        for at, answer in enumerate(answers):
            queue.add(("PING",), float(at), answer)
        assert queue.next_deadline == 0.0
        queue.expire(1.0, "too late")
        assert [answer.done() for answer in answers] == [True, True, False, False]
        assert reason(answers[0]) == reason(answers[1]) == "too late"
        assert queue.next_deadline == 2.0
        queue.fail_all("over")
        assert reason(answers[2]) == reason(answers[3]) == "over"
        assert not queue
        assert queue.next_deadline is None

    with_loop(test)


def test_whoever_gave_up_is_left_out_and_is_never_answered() -> None:
    def test(loop: asyncio.AbstractEventLoop) -> None:
        queue = UnsentCommands()
        answers: list[Answer] = [loop.create_future() for _ in range(3)]
        for answer in answers:
            queue.add(("PING",), 1.0, answer)
        answers[1].cancel()
        batch = queue.take_batch()
        assert [command.answer for command in batch] == [answers[0], answers[2]]
        answers[0].set_result("PONG")
        for command in batch:
            command.fail("broken")
        assert answers[0].result() == "PONG"
        assert reason(answers[2]) == "broken"

    with_loop(test)


@pytest.mark.parametrize(("size", "fits"), [(0, 10), (10, 10), (30, 3), (101, 0)])
def test_too_much_fails_at_once_and_room_is_made_by_what_is_taken(
    monkeypatch: pytest.MonkeyPatch, size: int, fits: int
) -> None:
    monkeypatch.setattr(unsent, "MAX_WAITING_COMMANDS", 10)
    monkeypatch.setattr(unsent, "MAX_WAITING_BYTES", 100)

    def test(loop: asyncio.AbstractEventLoop) -> None:
        queue = UnsentCommands()
        for _ in range(3):
            answers: list[Answer] = [loop.create_future() for _ in range(12)]
            for answer in answers:
                queue.add((bytes(size),), 1.0, answer)
            assert [answer.done() for answer in answers] == [False] * fits + [True] * (12 - fits)
            assert all(reason(answer) == f"not sent, because {fits} commands wait already" for answer in answers[fits:])
            assert len(queue.take_batch()) == fits

    with_loop(test)


CHANNELS = st.sampled_from([b"a", b"b", b"c"])


@given(st.lists(st.tuples(st.sampled_from(["add", "discard", "take", "reconnect"]), CHANNELS), max_size=40))
def test_the_server_ends_up_with_what_is_wanted(steps: list[tuple[str, bytes]]) -> None:
    wanted = WantedChannels()
    model: set[bytes] = set()
    server: set[bytes] = set()

    def tell() -> None:
        for verb, *names in wanted.take_untold():
            if verb == "SUBSCRIBE":
                server.update(name for name in names if isinstance(name, bytes))
            else:
                assert verb == "UNSUBSCRIBE"
                server.difference_update(names)

    for step, channel in steps:
        if step == "add":
            wanted.add(channel)
            model.add(channel)
        elif step == "discard":
            wanted.discard(channel)
            model.discard(channel)
        elif step == "take":
            tell()
            assert server == model
        else:
            server.clear()
            wanted.tell_again()
        assert {name for name in (b"a", b"b", b"c") if name in wanted} == model
    tell()
    assert server == model
    assert wanted.take_untold() == []


def test_many_channels_go_in_several_commands() -> None:
    wanted = WantedChannels()
    names = [b"%d" % number for number in range(CHANNELS_PER_COMMAND * 2 + 3)]
    for name in names:
        wanted.add(name)
    commands = wanted.take_untold()
    assert [len(command) - 1 for command in commands] == [CHANNELS_PER_COMMAND, CHANNELS_PER_COMMAND, 3]
    assert [name for command in commands for name in command[1:]] == names
