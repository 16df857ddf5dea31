"""What the log says of drains that take a while."""

from wscluster.gateway.draining import EACH_SECONDS, FIRST_SECONDS, DrainProgress


def test_a_short_drain_is_not_spoken_of_and_a_long_one_now_and_then() -> None:
    drains = DrainProgress()
    assert drains.beaten(1, 120, 10.0) is None
    assert drains.beaten(2, 7, 10.5) is None
    assert drains.beaten(1, 99, 10.0 + FIRST_SECONDS) == "draining: 106 connections left in 2 workers"
    assert drains.beaten(2, 6, 10.1 + FIRST_SECONDS) is None
    drains.forget(2)
    assert drains.beaten(1, 1, 10.0 + FIRST_SECONDS + EACH_SECONDS) == "draining: 1 connection left in 1 worker"


def test_the_next_drain_begins_anew() -> None:
    drains = DrainProgress()
    drains.beaten(1, 5, 10.0)
    drains.forget(1)
    drains.forget(1)
    assert drains.beaten(2, 5, 60.0) is None
    assert drains.beaten(2, 5, 60.0 + FIRST_SECONDS) == "draining: 5 connections left in 1 worker"
