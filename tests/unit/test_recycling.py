"""When a worker has served enough."""

from wscluster.gateway.recycling import LEAST_SECONDS, RETRY_SECONDS, Recycler

MIB = 1 << 20


def test_without_limits_nobody_is_due() -> None:
    assert Recycler(None, None, None).due(1, 0.0, 1e9, 1 << 50, 1 << 50, 0.0) is None


def test_age_with_the_workers_own_jitter() -> None:
    recycler = Recycler(100.0, None, None)
    assert recycler.due(1, 0.5, 104.9, 0, 0, 0.0) is None
    assert recycler.due(1, 0.5, 105.0, 0, 0, 0.0) == "it has served for 105 s"


def test_memory_never_more_than_its_limit() -> None:
    recycler = Recycler(None, 100, None)
    assert recycler.due(1, 0.0, LEAST_SECONDS, 100 * MIB, 0, 0.0) is None
    assert recycler.due(1, 0.0, LEAST_SECONDS - 0.1, 101 * MIB, 0, 0.0) is None
    assert recycler.due(1, 0.0, LEAST_SECONDS, 101 * MIB, 0, 0.0) == "it has 101 MiB"
    assert recycler.due(2, 0.5, LEAST_SECONDS, 95 * MIB, 0, 0.0) is None
    assert recycler.due(2, 0.5, LEAST_SECONDS, 96 * MIB, 0, 0.0) == "it has 96 MiB"


def test_messages_with_jitter_and_none_where_they_are_not_known() -> None:
    recycler = Recycler(None, None, 1000)
    assert recycler.due(1, 0.99, 0, 0, 1000, 0.0) is None
    assert recycler.due(1, 0.99, 0, 0, None, 0.0) is None
    assert recycler.due(2, 0.0, 0, 0, 1000, 0.0) == "it has had 1000 messages"


def test_it_is_said_once_and_again_when_nothing_came_of_it_for_a_minute() -> None:
    recycler = Recycler(1.0, None, None)
    assert recycler.due(1, 0.0, 2.0, 0, 0, 10.0)
    assert recycler.due(1, 0.0, 3.0, 0, 0, 11.0) is None
    assert recycler.due(1, 0.0, 99.0, 0, 0, 10.0 + RETRY_SECONDS)
    recycler.forget(1)
    assert recycler.due(1, 0.0, 99.0, 0, 0, 11.0 + RETRY_SECONDS)
    recycler.forget(7)
