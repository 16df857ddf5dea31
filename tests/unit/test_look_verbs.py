"""Rates of `wscluster top`."""

from typing import Any

from wscluster.look_verbs import add_rates


def status(*workers: tuple[int, int | None]) -> dict[str, Any]:
    return {
        "workers": [
            {"slot": number, "id": worker, "messages_in": count, "messages_out": count}
            for number, (worker, count) in enumerate(workers)
        ]
    }


def test_rates_are_of_the_same_worker_and_unknown_for_a_new_one() -> None:
    shown = add_rates(status((1, 30), (9, 5), (3, None)), status((1, 10), (2, 500), (3, None)), 2.0)
    assert [worker["messages_in_per_second"] for worker in shown["workers"]] == [10.0, None, None]
    assert [worker["messages_out_per_second"] for worker in shown["workers"]] == [10.0, None, None]
    assert add_rates(status((1, 1)), status((1, 0)), 0.0)["workers"][0]["messages_in_per_second"] is None
