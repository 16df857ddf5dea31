"""Who is told of a room's losses, and how often at once."""

import asyncio
import logging
from typing import Any

import pytest

from wscluster.api import Gap
from wscluster.envelope import Position
from wscluster.workers.feed import Lost
from wscluster.workers.gaps import Gaps
from wscluster.workers.hub import Hub


class Member:
    is_open = True
    logger = logging.getLogger("wscluster.connection")


def lost(after: int, before: int | None) -> Lost:
    return Lost(Position(1, after), None if before is None else Position(1, before))


def with_gaps(main: Any) -> None:
    async def run() -> None:
        hub: Hub[Any] = Hub()
        gaps = Gaps(hub, asyncio.get_running_loop())
        member = Member()
        hub.join(member, "lobby")
        await main(gaps, hub, member)
        gaps.close()

    asyncio.run(run())


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_coroutine_is_called_once_at_a_time_and_what_is_lost_meanwhile_is_one_gap() -> None:
    async def main(gaps: Gaps, hub: Hub[Any], member: Any) -> None:
        told: list[Gap] = []
        goes_on = asyncio.Event()

        async def on_gap(gap: Gap) -> None:
            told.append(gap)
            await goes_on.wait()

        gaps.expect(member, "lobby", on_gap)
        for number in range(0, 1000, 10):
            gaps.tell("lobby", lost(number, number + 5))
        gaps.tell("lobby", lost(1000, None))
        await turns()
        assert told == [Gap("lobby", "1-0", "1-5")]
        goes_on.set()
        await turns()
        assert told == [Gap("lobby", "1-0", "1-5"), Gap("lobby", "1-10", "")]
        assert gaps.count == 101

    with_gaps(main)


def test_a_plain_function_is_called_for_each() -> None:
    async def main(gaps: Gaps, hub: Hub[Any], member: Any) -> None:
        told: list[Gap] = []
        gaps.expect(member, "lobby", told.append)
        gaps.tell("lobby", lost(1, 3))
        gaps.tell("lobby", lost(5, 7))
        gaps.tell("news", lost(5, 7))
        assert told == [Gap("lobby", "1-1", "1-3"), Gap("lobby", "1-5", "1-7")]

    with_gaps(main)


@pytest.mark.parametrize("how", ["left", "closed", "left and joined again"])
def test_who_is_gone_is_not_told_what_waited(how: str) -> None:
    async def main(gaps: Gaps, hub: Hub[Any], member: Any) -> None:
        told: list[Gap] = []
        goes_on = asyncio.Event()

        async def on_gap(gap: Gap) -> None:
            told.append(gap)
            await goes_on.wait()

        gaps.expect(member, "lobby", on_gap)
        gaps.tell("lobby", lost(1, 3))
        gaps.tell("lobby", lost(5, 7))
        if how == "closed":
            member.is_open = False
            gaps.forget(member)
        else:
            gaps.leave(member, "lobby")
            if how == "left and joined again":
                gaps.expect(member, "lobby", on_gap)
        goes_on.set()
        await turns()
        assert told == [Gap("lobby", "1-1", "1-3")]

    with_gaps(main)


def test_what_a_callback_raises_is_logged_and_it_is_called_again(caplog: pytest.LogCaptureFixture) -> None:
    async def main(gaps: Gaps, hub: Hub[Any], member: Any) -> None:
        async def on_gap(gap: Gap) -> None:
            raise ValueError(gap.after)

        gaps.expect(member, "lobby", on_gap)
        gaps.tell("lobby", lost(1, 3))
        gaps.tell("lobby", lost(5, 7))
        await turns()
        await turns()

    with_gaps(main)
    assert [record.exc_info[1].args for record in caplog.records if record.exc_info and record.exc_info[1]] == [
        ("1-1",), ("1-5",),
    ]  # fmt: skip
