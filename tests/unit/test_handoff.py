"""The ledger of the handoff: what follows from each event, on tables; test_handoff_lives has the rest."""

import itertools
from collections.abc import Iterable

import pytest

from wscluster.gateway.handoff import MAX_QUEUE, WINDOW, Command, HandOff, Ledger, Reject, Release
from wscluster.gateway.placement import ByAddress, Chooser, LeastConnections, Random, RoundRobin, rank, sticky_key
from wscluster.packets import Offered

WAIT = 2.0
HOST = "192.0.2.7"
FIRST, SECOND, THIRD = rank(sticky_key(HOST), 3)


def worker_of(slot: int) -> int:
    return 10 + slot


def ledger_of(slots: int = 3, chooser: Chooser | None = None, live: Iterable[int] | None = None) -> Ledger:
    """A ledger of time 0; the workers of the slots ``live`` (None: all) are routed."""
    ledger = Ledger(slots, chooser or ByAddress(slots), WAIT, 0.0)
    for slot in range(slots) if live is None else live:
        assert ledger.route(slot, worker_of(slot)) == []
    return ledger


def connections(*numbers: int, host: str = HOST) -> tuple[Offered, ...]:
    return tuple(Offered(number, host, 40000) for number in numbers)


def numbers_of(commands: list[Command]) -> list[tuple[str, int | None, list[int]]]:
    """Commands in short: what, to whom, which numbers."""
    short: list[tuple[str, int | None, list[int]]] = []
    for command in commands:
        match command:
            case HandOff(worker, offered):
                short.append(("hand off", worker, [one.number for one in offered]))
            case Release(numbers):
                short.append(("release", None, list(numbers)))
            case Reject(numbers):
                short.append(("reject", None, list(numbers)))
    return short


def span(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


# Offers and their answers


def test_a_batch_goes_to_the_workers_of_its_clients_in_one_packet_each() -> None:
    ledger = ledger_of()
    batch = connections(1, 2, 3)
    assert ledger.accept(batch, 0.0) == [HandOff(worker_of(FIRST), batch)]
    other = next(host for host in (f"198.51.100.{i}" for i in range(99)) if rank(sticky_key(host), 3)[0] == SECOND)
    mixed = [*connections(4), *connections(5, host=other), *connections(6)]
    handed = {worker: numbers for _, worker, numbers in numbers_of(ledger.accept(mixed, 0.0))}
    assert handed == {worker_of(FIRST): [4, 6], worker_of(SECOND): [5]}


def test_no_more_than_the_window_is_offered_and_each_adoption_makes_room_for_the_oldest_waiting() -> None:
    ledger = ledger_of()
    worker = worker_of(FIRST)
    count = WINDOW + 20
    assert numbers_of(ledger.accept(connections(*span(1, count)), 0.0)) == [("hand off", worker, span(1, WINDOW))]
    assert ledger.accept(connections(count + 1), 0.0) == []
    assert numbers_of(ledger.adopt(worker, (2, 3, 5))) == [
        ("release", None, [2, 3, 5]),
        ("hand off", worker, span(WINDOW + 1, WINDOW + 3)),
    ]
    assert numbers_of(ledger.adopt(worker, span(1, WINDOW)))[1] == ("hand off", worker, span(WINDOW + 4, count + 1))
    assert (ledger.books.accepted, ledger.books.adopted, ledger.pending()) == (count + 1, WINDOW, count + 1 - WINDOW)


def test_an_adoption_that_is_said_twice_or_was_never_offered_changes_nothing() -> None:
    ledger = ledger_of()
    worker = worker_of(FIRST)
    ledger.accept(connections(1, 2), 0.0)
    assert ledger.adopt(worker, (1, 1)) == [Release((1,))]
    assert ledger.adopt(worker, (1, 77)) == []
    assert ledger.adopt(worker_of(SECOND), (2,)) == []
    assert (ledger.books.adopted, ledger.pending()) == (1, 1)


def test_a_refused_connection_goes_to_the_next_in_order_and_in_the_end_is_rejected() -> None:
    ledger = ledger_of()
    ledger.accept(connections(1), 0.0)
    assert numbers_of(ledger.refuse(worker_of(FIRST), (1, 1), 0.0)) == [("hand off", worker_of(SECOND), [1])]
    assert ledger.refuse(worker_of(FIRST), (1,), 0.0) == []
    assert numbers_of(ledger.refuse(worker_of(SECOND), (1,), 0.0)) == [("hand off", worker_of(THIRD), [1])]
    assert numbers_of(ledger.refuse(worker_of(THIRD), (1,), 0.0)) == [("reject", None, [1])]
    assert (ledger.books.placed_again, ledger.books.rejected, ledger.pending()) == (2, 1, 0)


def test_a_refusal_makes_room_for_what_waits() -> None:
    ledger = ledger_of()
    ledger.accept(connections(*span(1, WINDOW + 1)), 0.0)
    handed = numbers_of(ledger.refuse(worker_of(FIRST), (4,), 0.0))
    assert sorted(handed) == sorted(
        [("hand off", worker_of(FIRST), [WINDOW + 1]), ("hand off", worker_of(SECOND), [4])]
    )


def test_what_the_last_worker_refused_is_offered_to_its_replacement() -> None:
    ledger = ledger_of()
    ledger.accept(connections(1), 0.0)
    ledger.unroute(FIRST, worker_of(FIRST), 0.0)
    assert ledger.refuse(worker_of(FIRST), (1,), 0.5) == []
    assert numbers_of(ledger.route(FIRST, 99)) == [("hand off", 99, [1])]


# Ends of links


def test_the_end_of_a_link_gives_back_what_was_not_adopted_for_the_replacement_oldest_first() -> None:
    ledger = ledger_of()
    ledger.accept(connections(*span(1, WINDOW + 3)), 0.0)
    ledger.adopt(worker_of(FIRST), (1, 2))  # and two of the waiting three are offered
    assert ledger.end(worker_of(FIRST), 1.0) == []
    ledger.accept(connections(WINDOW + 4), 1.5)
    assert numbers_of(ledger.route(FIRST, 99)) == [("hand off", 99, span(3, WINDOW + 2))]
    assert numbers_of(ledger.adopt(99, (3, 4)))[1] == ("hand off", 99, [WINDOW + 3, WINDOW + 4])
    assert ledger.books.placed_again == WINDOW


def test_the_end_of_a_worker_that_was_never_routed_or_has_ended_already_changes_nothing() -> None:
    ledger = ledger_of()
    ledger.accept(connections(1), 0.0)
    ledger.end(worker_of(FIRST), 0.0)
    assert ledger.end(worker_of(FIRST), 1.0) == []
    assert ledger.end(1234, 1.0) == []
    assert ledger.next_deadline() == WAIT


def test_an_unrouted_worker_keeps_its_offers_until_it_answers_and_gets_nothing_new() -> None:
    ledger = ledger_of()
    worker = worker_of(FIRST)
    ledger.accept(connections(*span(1, WINDOW + 1)), 0.0)
    ledger.unroute(FIRST, worker, 0.0)
    assert ledger.adopt(worker, (1, 2)) == [Release((1, 2))]
    assert numbers_of(ledger.tick(1000.0)) == [("hand off", worker_of(SECOND), [WINDOW + 1])], "never on a deadline"
    assert ledger.adopt(worker, (3,)) == [Release((3,))]


def test_a_late_unroute_does_not_take_the_slot_from_the_replacement() -> None:
    ledger = ledger_of()
    ledger.end(worker_of(FIRST), 0.0)
    ledger.route(FIRST, 99)
    ledger.unroute(FIRST, worker_of(FIRST), 1.0)
    assert numbers_of(ledger.accept(connections(1), 1.0)) == [("hand off", 99, [1])]


# From one living worker to another


def test_a_route_that_is_switched_gives_the_new_worker_what_waits_and_leaves_the_old_one_its_offers() -> None:
    ledger = ledger_of()
    old, new = worker_of(FIRST), 99
    ledger.accept(connections(*span(1, WINDOW + 2)), 0.0)
    assert ledger.unroute(FIRST, old, 1.0) == []
    assert numbers_of(ledger.route(FIRST, new)) == [("hand off", new, [WINDOW + 1, WINDOW + 2])]
    assert numbers_of(ledger.accept(connections(WINDOW + 3), 1.0)) == [("hand off", new, [WINDOW + 3])]
    # What the old one answers makes no room for more, and what it refuses goes to the new one, at its place.
    assert ledger.adopt(old, (1, 2)) == [Release((1, 2))]
    assert numbers_of(ledger.refuse(old, (3, 4), 1.0)) == [("hand off", new, [3, 4])]
    assert numbers_of(ledger.end(old, 1.0)) == [("hand off", new, span(5, WINDOW - 1))], "as far as the window reaches"
    assert numbers_of(ledger.adopt(new, (3,))) == [("release", None, [3]), ("hand off", new, [WINDOW])]
    assert ledger.accept(connections(WINDOW + 4), 1.0) == [], "the window is full again"
    assert ledger.next_deadline() is None
    assert ledger.books.rejected == 0


def test_a_slot_that_was_given_up_is_one_again_when_it_gets_a_worker() -> None:
    ledger = ledger_of(live=[SECOND, THIRD])
    ledger.fail_slot(FIRST, 0.0)
    assert ledger.route(FIRST, 99) == []
    assert numbers_of(ledger.accept(connections(1), 0.0)) == [("hand off", 99, [1])]
    ledger.end(99, 1.0)
    assert ledger.accept(connections(2), 1.0) == [], "it is waited for, as any other"


# A slot without a worker


def test_connections_wait_for_their_slot_up_to_slot_wait_and_then_go_to_the_next_in_order() -> None:
    ledger = ledger_of(live=[SECOND])
    assert ledger.next_deadline() is None
    assert ledger.accept(connections(1), 0.5) == []
    assert ledger.accept(connections(2), WAIT - 0.01) == []
    assert ledger.next_deadline() == WAIT
    assert ledger.tick(WAIT - 0.01) == []
    assert numbers_of(ledger.tick(WAIT)) == [("hand off", worker_of(SECOND), [1, 2])]
    assert ledger.next_deadline() is None
    assert numbers_of(ledger.accept(connections(3), WAIT)) == [("hand off", worker_of(SECOND), [3])]
    ledger.route(FIRST, worker_of(FIRST))
    assert numbers_of(ledger.accept(connections(4), WAIT)) == [("hand off", worker_of(FIRST), [4])]


def test_the_next_slot_in_order_is_waited_for_in_its_turn() -> None:
    ledger = ledger_of()
    for slot, now in ((FIRST, 0.0), (SECOND, 1.0), (THIRD, 5.0)):
        ledger.end(worker_of(slot), now)
    ledger.accept(connections(1), 1.0)
    deadlines = []
    while (due := ledger.next_deadline()) is not None:
        deadlines.append(due)
        last = ledger.tick(due)
    assert deadlines == [2.0, 3.0, 7.0]
    assert last == [Reject((1,))]


def test_without_slot_wait_the_next_in_order_serves_at_once() -> None:
    ledger = Ledger(3, ByAddress(3), 0.0, 0.0)
    ledger.route(SECOND, worker_of(SECOND))
    assert numbers_of(ledger.accept(connections(1), 0.0)) == [("hand off", worker_of(SECOND), [1])]


def test_a_slot_that_is_given_up_is_skipped_and_nobody_waits_for_it() -> None:
    ledger = ledger_of(live=[SECOND, THIRD])
    ledger.accept(connections(1), 0.0)
    assert numbers_of(ledger.fail_slot(FIRST, 0.5)) == [("hand off", worker_of(SECOND), [1])]
    assert numbers_of(ledger.accept(connections(2), 0.5)) == [("hand off", worker_of(SECOND), [2])]
    ledger.end(worker_of(SECOND), 0.5)
    assert numbers_of(ledger.fail_slot(SECOND, 0.6)) == [("hand off", worker_of(THIRD), [1, 2])]


# Bounds


def test_a_full_queue_rejects_the_newest() -> None:
    ledger = ledger_of()
    ledger.accept(connections(*span(1, WINDOW)), 0.0)
    assert ledger.accept(connections(*span(WINDOW + 1, WINDOW + MAX_QUEUE)), 0.0) == []
    assert ledger.accept(connections(5000, 5001), 0.0) == [Reject((5000, 5001))]
    assert (ledger.books.rejected, ledger.pending()) == (2, WINDOW + MAX_QUEUE)


def test_what_comes_back_to_a_full_queue_is_older_than_what_waits_and_keeps_its_place() -> None:
    ledger = ledger_of()
    ledger.accept(connections(*span(1, WINDOW)), 0.0)
    last = WINDOW + MAX_QUEUE
    ledger.accept(connections(*span(WINDOW + 1, last)), 0.0)
    (reject,) = ledger.end(worker_of(FIRST), 0.0)
    assert isinstance(reject, Reject)
    assert sorted(reject.numbers) == span(last - WINDOW + 1, last)
    assert numbers_of(ledger.route(FIRST, 99)) == [("hand off", 99, span(1, WINDOW))]
    assert (ledger.books.placed_again, ledger.books.rejected) == (WINDOW, WINDOW)


@pytest.mark.parametrize("chooser", [LeastConnections(), RoundRobin(), Random()])
def test_without_stickiness_a_full_slot_is_passed_over_until_all_are_full(chooser: Chooser) -> None:
    ledger = ledger_of(2, chooser)
    total = 2 * (WINDOW + MAX_QUEUE)
    for number in span(1, total):
        assert not any(isinstance(command, Reject) for command in ledger.accept(connections(number), 0.0))
    assert ledger.pending() == total
    assert ledger.accept(connections(total + 1), 0.0) == [Reject((total + 1,))]


# Stop


def test_another_ledger_goes_on_with_what_one_remembers() -> None:
    first = ledger_of(1, ByAddress(1), live=[])
    first.accept(connections(1, 2), 0.5)
    other = Ledger(1, ByAddress(1), WAIT, 0.0)
    other.resume(first.books, ByAddress(1))
    assert numbers_of(other.route(0, worker_of(0))) == [("hand off", worker_of(0), [1, 2])]


def test_a_stop_rejects_what_waits_and_all_that_comes_later_but_not_what_is_offered() -> None:
    ledger = ledger_of()
    worker = worker_of(FIRST)
    ledger.accept(connections(*span(1, WINDOW + 2)), 0.0)
    assert ledger.stop(1.0) == [Reject((WINDOW + 1, WINDOW + 2))]
    assert ledger.accept(connections(100), 1.0) == [Reject((100,))]
    assert ledger.adopt(worker, (1, 2)) == [Release((1, 2))]
    assert ledger.refuse(worker, (3,), 1.0) == [Reject((3,))]
    assert ledger.end(worker, 1.0) == [Reject(tuple(span(4, WINDOW)))]
    assert (ledger.books.adopted, ledger.books.rejected, ledger.books.placed_again, ledger.pending()) == (
        2,
        WINDOW + 1,
        0,
        0,
    )
    assert ledger.books.accepted == ledger.books.adopted + ledger.books.rejected


# Without stickiness


def test_least_connections_counts_open_offered_and_waiting() -> None:
    ledger = ledger_of(3, LeastConnections())
    ledger.report(worker_of(0), 5, 0)
    ledger.report(worker_of(1), 3, 0)
    placed = [numbers_of(ledger.accept(connections(number), 0.0))[0][1] for number in span(1, 4)]
    assert placed.count(worker_of(2)) >= 3
    assert sum(ledger.loads()) == 5 + 3 + 4


def test_loads_are_those_of_the_last_beat_and_what_was_adopted_since() -> None:
    ledger = ledger_of(1, LeastConnections())
    worker = worker_of(0)
    ledger.accept(connections(1, 2, 3), 0.0)
    assert ledger.loads() == [3]
    ledger.adopt(worker, (1, 2))
    assert ledger.loads() == [3]
    ledger.report(worker, 1, 2)  # one of the two has closed
    assert ledger.loads() == [2]
    ledger.adopt(worker, (3,))
    assert ledger.loads() == [2]
    ledger.end(worker, 0.0)
    assert ledger.loads() == [0]
    ledger.report(worker, 9, 9)  # a last word of a worker that is gone
    assert ledger.loads() == [0]


@pytest.mark.parametrize("chooser", [LeastConnections(), RoundRobin()])
def test_without_stickiness_connections_are_spread_evenly(chooser: Chooser) -> None:
    ledger = ledger_of(4, chooser)
    counts = dict.fromkeys((worker_of(slot) for slot in range(4)), 0)
    for number in span(1, 400):
        ((_, worker, numbers),) = numbers_of(ledger.accept(connections(number), 0.0))
        assert worker is not None
        counts[worker] += len(numbers)
        ledger.adopt(worker, numbers)
    assert set(counts.values()) == {100}


@pytest.mark.parametrize("chooser", [LeastConnections(), RoundRobin(), Random()])
def test_without_stickiness_nobody_waits_for_a_slot_while_another_has_a_worker(chooser: Chooser) -> None:
    ledger = ledger_of(3, chooser, live=[1])
    batch = connections(*span(1, 9))
    assert ledger.accept(batch, 0.0) == [HandOff(worker_of(1), batch)]


@pytest.mark.parametrize("chooser", [LeastConnections(), RoundRobin(), Random()])
def test_without_stickiness_connections_wait_where_no_slot_has_a_worker(chooser: Chooser) -> None:
    ledger = ledger_of(3, chooser, live=[])
    assert ledger.accept(connections(*span(1, 30)), 0.0) == []
    handed = itertools.chain.from_iterable(
        numbers for slot in range(3) for _, _, numbers in numbers_of(ledger.route(slot, worker_of(slot)))
    )
    assert sorted(handed) == span(1, 30)


# Slots that come and go, connections that come back


def test_a_new_slot_is_passed_over_until_it_has_a_worker_and_then_only_its_keys_move() -> None:
    ledger = ledger_of(2)
    hosts = [f"198.51.100.{number}" for number in range(60)]
    before = {host: ledger.order(host)[0] for host in hosts}
    assert ledger.resize(3, ByAddress(3), 0.0) == []
    for number, host in enumerate(hosts, 1):
        (handed,) = ledger.accept(connections(number, host=host), 0.0)
        assert isinstance(handed, HandOff)
        assert handed.worker == worker_of(before[host])
        ledger.adopt(handed.worker, [number])
    ledger.route(2, worker_of(2))
    moved = [host for host in hosts if ledger.order(host)[0] != before[host]]
    assert moved
    assert {ledger.order(host)[0] for host in moved} == {2}


def test_what_waits_for_a_slot_that_goes_is_placed_again() -> None:
    ledger = ledger_of(3, live=[0])
    host = next(host for host in (f"198.51.100.{i}" for i in range(99)) if rank(sticky_key(host), 3)[0] == 2)
    assert ledger.accept(connections(1, host=host), 0.0) == []
    assert ledger.waiting() == [0, 0, 1]
    assert numbers_of(ledger.resize(1, ByAddress(1), 0.0)) == [("hand off", worker_of(0), [1])]


def test_what_a_worker_of_a_slot_that_is_gone_was_offered_is_its_own_until_it_answers() -> None:
    ledger = ledger_of(2)
    host = next(host for host in (f"198.51.100.{i}" for i in range(99)) if rank(sticky_key(host), 2)[0] == 1)
    ledger.accept(connections(1, 2, host=host), 0.0)
    ledger.unroute(1, worker_of(1), 0.0)
    assert ledger.resize(1, ByAddress(1), 0.0) == []
    assert numbers_of(ledger.adopt(worker_of(1), [1])) == [("release", None, [1])]
    assert numbers_of(ledger.end(worker_of(1), 0.0)) == [("hand off", worker_of(0), [2])]


def test_what_was_adopted_and_comes_back_goes_to_the_successor_and_is_counted_apart() -> None:
    ledger = ledger_of(1)
    ledger.accept(connections(1), 0.0)
    ledger.adopt(worker_of(0), [1])
    ledger.route(0, 99)
    assert numbers_of(ledger.give_back(worker_of(0), connections(2), 0.0)) == [("hand off", 99, [2])]
    ledger.adopt(99, [2])
    assert (ledger.books.accepted, ledger.books.adopted, ledger.books.returned, ledger.books.placed_again) == (
        1,
        2,
        1,
        1,
    )
    assert ledger.pending() == 0
