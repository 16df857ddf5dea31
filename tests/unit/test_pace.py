"""The pace of a drain."""

import asyncio
import itertools
from typing import cast

import pytest

from wscluster.workers import pace
from wscluster.workers.pace import SHARE, gap_seconds, paced


def test_without_a_rate_or_without_anybody_there_is_no_gap() -> None:
    assert gap_seconds(100, 0, 30) == 0
    assert gap_seconds(0, 5, 30) == 0


def test_the_rate_holds_where_the_time_suffices_and_is_raised_where_it_does_not() -> None:
    assert gap_seconds(100, 10, 30) == pytest.approx(0.1)
    assert gap_seconds(1000, 10, 30) == pytest.approx(30 * SHARE / 1000)
    assert gap_seconds(10, 10, 0) == 0


def test_each_has_its_turn_in_order_near_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    times = []

    async def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    class Clock:
        def time(self) -> float:
            return now

    async def main() -> list[int]:
        order = []
        async for item in paced(range(100), 10.0, 30.0, cast("asyncio.AbstractEventLoop", Clock())):
            order.append(item)
            times.append(now)
        return order

    monkeypatch.setattr(pace, "sleep", pass_time)
    assert asyncio.run(main()) == list(range(100))
    assert 9.0 < times[-1] < 10.5
    assert all(abs(at - number * 0.1) <= 0.06 for number, at in enumerate(times))
    assert len({round(after - before, 3) for before, after in itertools.pairwise(times)}) > 10, "no jitter"
