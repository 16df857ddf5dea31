"""How often something took how long."""

from wscluster.gateway.durations import EDGES, Durations


def test_each_is_counted_once_in_the_first_bucket_that_holds_it() -> None:
    durations = Durations()
    for seconds in (0.0, EDGES[0], EDGES[0] + 1e-9, 99.0):
        durations.add(seconds)
    counts, edges, total = durations.shown()
    assert (counts[0], counts[1], counts[-1], sum(counts)) == (2, 1, 1, 4)
    assert edges == EDGES
    assert total > 99.0
