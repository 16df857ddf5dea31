"""More slots or fewer: each thing that can be asked, in each state of the fleet."""

import pytest

from tests.unit.test_fleet import GRACEFUL, new_fleet, ready_fleet
from wscluster.gateway.fleet_words import (
    BecameReady,
    BootRefused,
    DrainWorker,
    Exited,
    GiveUpSlot,
    Kill,
    ReloadAsked,
    Reloaded,
    Reloading,
    ReplaceAsked,
    Replaced,
    ReplaceFailed,
    Replacing,
    Resize,
    Route,
    ScaleAsked,
    Spawn,
    StopAsked,
    Ticked,
    Unroute,
)
from wscluster.gateway.rolling import RELOAD_CODE
from wscluster.gateway.scaling import MAX_SLOTS, refuse_scale


def test_a_new_slot_gets_a_worker_at_once_and_takes_connections_when_it_is_ready() -> None:
    fleet = ready_fleet(2)
    assert fleet.handle(ScaleAsked(4), 1.0) == [Resize(4), Spawn(2, 3, 1), Spawn(3, 4, 1)]
    assert fleet.handle(BecameReady(4), 2.0) == [Route(3, 4)]
    assert fleet.handle(BecameReady(3), 2.0) == [Route(2, 3)]
    assert fleet.ready_slots() == [0, 1, 2, 3]


def test_the_last_slots_go_and_their_workers_are_drained_the_last_one_first() -> None:
    fleet = ready_fleet(3)
    assert fleet.handle(ScaleAsked(1), 1.0) == [
        Unroute(1, 2), Unroute(2, 3), Resize(1),
        DrainWorker(3, RELOAD_CODE, GRACEFUL), DrainWorker(2, RELOAD_CODE, GRACEFUL),
    ]  # fmt: skip
    assert fleet.handle(Exited(3, 0, 0.0), 2.0) == []
    assert fleet.handle(Exited(2, 0, 0.0), 2.0) == []
    assert (len(fleet.slots), list(fleet.workers)) == (1, [1])


def test_a_slot_that_comes_back_while_the_worker_of_before_drains_is_a_new_one() -> None:
    fleet = ready_fleet(2)
    fleet.handle(ScaleAsked(1), 1.0)
    assert fleet.handle(ScaleAsked(2), 1.5) == [Resize(2), Spawn(1, 3, 1)]
    assert fleet.handle(Exited(2, 0, 0.0), 2.0) == []
    assert fleet.slots[1].worker == 3


def test_a_worker_that_starts_in_a_slot_that_goes_is_killed() -> None:
    fleet = ready_fleet(1)
    fleet.handle(ScaleAsked(2), 1.0)
    assert fleet.handle(ScaleAsked(1), 1.0) == [Resize(1), Kill(2, "its slot is no more")]
    assert fleet.handle(BecameReady(2), 1.1) == []
    assert fleet.handle(Exited(2, -9, 0.0), 1.2) == []
    assert fleet.next_deadline() == pytest.approx(30.0), "no worker comes in its place"


def test_restarts_are_never_fewer_than_before() -> None:
    fleet = ready_fleet(2)
    fleet.handle(Exited(2, -9, 0.0), 1.0)
    fleet.handle(Ticked(), 5.0)
    assert fleet.restarts == 1
    fleet.handle(ScaleAsked(1), 6.0)
    assert fleet.restarts == 1


def test_a_new_slot_whose_workers_cannot_boot_is_given_up_and_the_others_serve_on() -> None:
    fleet = ready_fleet(1)
    fleet.handle(ScaleAsked(2), 0.0)
    now, given_up = 0.0, []
    for _ in range(20):
        now += 20.0
        fleet.handle(Ticked(), now)
        for worker in [one for one in fleet.workers.values() if one.slot == 1]:
            fleet.handle(BootRefused(worker.id, 3, "broken"), now)
            given_up += [one for one in fleet.handle(Exited(worker.id, 3, 0.0), now) if isinstance(one, GiveUpSlot)]
    assert [one.slot for one in given_up] == [1]
    assert fleet.exit_code is None


@pytest.mark.parametrize(
    ("size", "why"),
    [
        (0, "0 slots are none to serve with: 1 is the least, and `wscluster stop` ends the cluster"),
        (-99, "-99 slots are none to serve with: 1 is the least, and `wscluster stop` ends the cluster"),
        (MAX_SLOTS + 1, "1025 slots are too many: 1024 is the most"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(size: int, why: str) -> None:
    fleet = ready_fleet(2)
    assert refuse_scale(fleet, size) == why
    assert fleet.handle(ScaleAsked(size), 1.0) == []


def test_nobody_takes_the_last_worker_that_serves() -> None:
    fleet = ready_fleet(2)
    fleet.handle(Exited(1, -9, 0.0), 1.0)
    assert refuse_scale(fleet, 1) == "no worker of the first 1 slots is ready: nobody would be left to serve"
    assert fleet.handle(ScaleAsked(1), 1.0) == []
    fleet.handle(StopAsked(), 2.0)
    assert refuse_scale(fleet, 3) == "the cluster is about to end"


def test_before_the_first_worker_is_ready_there_may_be_more_slots() -> None:
    fleet = new_fleet(1)
    fleet.handle(Ticked(), 0.0)
    assert fleet.handle(ScaleAsked(2), 0.0) == [Resize(2), Spawn(1, 2, 1)]


# Together with a reload


def test_a_reload_goes_on_without_the_slots_that_have_gone() -> None:
    fleet = ready_fleet(3)
    fleet.handle(ReloadAsked(), 0.0)
    assert Spawn(1, 5, 2) in fleet.handle(BecameReady(4), 1.0)
    commands = fleet.handle(ScaleAsked(1), 2.0)
    assert Kill(5, "its slot is no more") in commands
    assert commands[-1] == Reloaded(2)
    assert fleet.rolling is None


def test_a_reload_that_is_at_a_slot_that_stays_goes_on_there() -> None:
    fleet = ready_fleet(3)
    assert Spawn(0, 4, 2) in fleet.handle(ReloadAsked(), 0.0)
    assert Resize(2) in fleet.handle(ScaleAsked(2), 1.0)
    assert Spawn(1, 5, 2) in fleet.handle(BecameReady(4), 2.0)
    assert fleet.handle(BecameReady(5), 3.0)[-1] == Reloaded(2)


def test_a_reload_whose_slot_that_goes_has_lost_its_candidate_goes_on_too() -> None:
    fleet = ready_fleet(3)
    fleet.handle(ReloadAsked(), 0.0)
    fleet.handle(BecameReady(4), 1.0)
    assert fleet.rolling is not None
    del fleet.workers[5]
    assert fleet.handle(ScaleAsked(1), 2.0)[-1] == Reloaded(2)


def test_a_slot_that_comes_during_a_reload_has_the_new_code() -> None:
    fleet = ready_fleet(1)
    fleet.handle(ReloadAsked(), 0.0)
    assert fleet.handle(ScaleAsked(2), 0.0) == [Resize(2), Spawn(1, 3, 2)]


# The replacement of one worker


def test_another_worker_is_ready_before_the_one_that_goes_is_drained() -> None:
    fleet = ready_fleet(2)
    assert fleet.handle(ReplaceAsked(2, "old"), 1.0) == [Replacing(1, 2, "old"), Spawn(1, 3, 1)]
    assert fleet.handle(BecameReady(3), 2.0) == [
        Unroute(1, 2), Route(1, 3), DrainWorker(2, RELOAD_CODE, GRACEFUL), Replaced(1, 2),
    ]  # fmt: skip
    assert (fleet.rolling, fleet.phase, fleet.newest_phase) == (None, 1, 1)


def test_one_is_replaced_after_the_other_and_one_that_is_gone_is_passed_over() -> None:
    fleet = ready_fleet(3)
    fleet.handle(ReplaceAsked(1, "old"), 1.0)
    assert fleet.handle(ReplaceAsked(2, "old"), 1.0) == []
    assert fleet.handle(ReplaceAsked(2, "old"), 1.0) == []
    assert fleet.handle(ReplaceAsked(3, "old"), 1.0) == []
    fleet.handle(Exited(2, -9, 0.0), 1.5)
    commands = fleet.handle(BecameReady(4), 2.0)
    assert Replacing(2, 3, "old") in commands
    assert not fleet.to_replace


def test_where_the_other_one_does_not_boot_the_worker_serves_on() -> None:
    fleet = ready_fleet(2)
    fleet.handle(ReplaceAsked(1, "old"), 1.0)
    fleet.handle(BootRefused(3, 3, "broken"), 1.0)
    assert fleet.handle(Exited(3, 3, 0.0), 1.0) == [ReplaceFailed(0, 1, "worker 3 of slot 0: broken")]
    assert fleet.slots[0].worker == 1


def test_a_crash_elsewhere_does_not_end_a_replacement() -> None:
    fleet = ready_fleet(2)
    fleet.handle(ReplaceAsked(1, "old"), 1.0)
    assert fleet.handle(Exited(2, -9, 0.0), 1.0) == [Unroute(1, 2)]
    assert fleet.rolling is not None


def test_a_reload_waits_for_a_replacement_and_then_replaces_all() -> None:
    fleet = ready_fleet(2)
    fleet.handle(ReplaceAsked(1, "old"), 1.0)
    assert fleet.handle(ReloadAsked(), 1.0) == []
    assert Reloading(2) in fleet.handle(BecameReady(3), 2.0)


def test_a_replacement_ends_with_its_slot() -> None:
    fleet = ready_fleet(2)
    fleet.handle(ReplaceAsked(2, "old"), 1.0)
    commands = fleet.handle(ScaleAsked(1), 1.0)
    assert ReplaceFailed(1, 2, "its slot is no more") in commands
    assert DrainWorker(2, RELOAD_CODE, GRACEFUL) in commands
    assert fleet.rolling is None


def test_nothing_is_replaced_when_everything_ends() -> None:
    fleet = ready_fleet(2)
    fleet.handle(ReplaceAsked(1, "old"), 1.0)
    fleet.handle(ReplaceAsked(2, "old"), 1.0)
    fleet.handle(StopAsked(), 2.0)
    assert not fleet.to_replace
    assert fleet.handle(ReplaceAsked(2, "old"), 2.0) == []
