"""A rolling reload: each thing that can happen to it, in each state of its workers."""

import pytest

from tests.unit.test_fleet import BEAT, GRACEFUL, STARTUP, new_fleet, next_deadline, ready_fleet
from wscluster.errors import ExitCode
from wscluster.gateway.fleet import EXIT_SECONDS, MAX_BOOT_FAILURES, Fleet
from wscluster.gateway.fleet_words import (
    Beaten,
    BecameReady,
    BootRefused,
    Command,
    DrainWorker,
    Event,
    Exited,
    Finish,
    GiveUpSlot,
    Kill,
    Listen,
    ReloadAsked,
    Reloaded,
    ReloadFailed,
    Reloading,
    Route,
    Spawn,
    SpawnFailed,
    State,
    StopAsked,
    StopForced,
    StopListening,
    Ticked,
    Unroute,
)
from wscluster.gateway.rolling import RELOAD_CODE, RESPAWN_SECONDS

STUCK = "no beat for 30 s: its event loop is stuck"
ENDED = "its worker ended before it was ready"


def reloading_fleet(size: int = 2) -> Fleet:
    """A fleet whose workers 1 … size are ready, and whose reload has its first candidate, size + 1, in slot 0."""
    fleet = ready_fleet(size)
    assert fleet.handle(ReloadAsked(), 0.0) == [Reloading(2), Spawn(0, size + 1, 2)]
    return fleet


def switch(slot: int, old: int, new: int) -> list[Command]:
    return [Unroute(slot, old), Route(slot, new), DrainWorker(old, RELOAD_CODE, GRACEFUL)]


# The course of one that succeeds


def test_slot_by_slot_a_candidate_takes_the_route_when_it_is_ready_and_the_old_worker_is_drained() -> None:
    fleet = reloading_fleet()
    assert [slot.worker for slot in fleet.slots] == [1, 2], "nothing changes until the candidate is ready"
    assert fleet.handle(Beaten(3), 0.5) == []
    assert fleet.handle(BecameReady(3), 1.0) == [*switch(0, 1, 3), Spawn(1, 4, 2)]
    assert fleet.phase == 1
    assert fleet.handle(Exited(1, 0, 0.0), 1.5) == []
    assert fleet.handle(BecameReady(4), 2.0) == [*switch(1, 2, 4), Reloaded(2)]
    assert (fleet.phase, fleet.rolling) == (2, None)
    assert fleet.handle(Exited(2, 0, 0.0), 3.0) == []
    assert [slot.worker for slot in fleet.slots] == [3, 4]
    assert fleet.restarts == 0, "nobody crashed"


def test_a_drain_that_is_not_over_keeps_no_reload_waiting_and_ends_in_a_kill() -> None:
    fleet = ready_fleet()
    fleet.handle(ReloadAsked(), 0.0)
    assert fleet.handle(BecameReady(2), 1.0) == [*switch(0, 1, 2), Reloaded(2)]
    assert fleet.handle(ReloadAsked(), 1.0) == [Reloading(3), Spawn(0, 3, 3)]
    assert fleet.handle(BecameReady(3), 2.0) == [*switch(0, 2, 3), Reloaded(3)]
    assert {worker.id: worker.state for worker in fleet.workers.values()} == {
        1: State.DRAINING,
        2: State.DRAINING,
        3: State.READY,
    }
    fleet.handle(Beaten(3), 20.0)
    due = 1.0 + GRACEFUL + EXIT_SECONDS
    assert fleet.handle(Ticked(), due) == [Kill(1, "not drained within 20 s")]
    assert fleet.handle(Exited(1, -9, 0.0), due) == []
    assert fleet.handle(Exited(2, 0, 0.0), due) == []
    assert fleet.slots[0].worker == 3
    assert fleet.slots[0].respawn_at is None


def test_asked_for_again_meanwhile_it_is_done_once_more_afterwards() -> None:
    fleet = reloading_fleet(1)
    for _ in range(3):
        assert fleet.handle(ReloadAsked(), 0.5) == []
    assert fleet.handle(BecameReady(2), 1.0) == [*switch(0, 1, 2), Reloaded(2), Reloading(3), Spawn(0, 3, 3)]
    assert fleet.handle(BecameReady(3), 2.0) == [*switch(0, 2, 3), Reloaded(3)]


def test_asked_for_again_meanwhile_it_is_done_once_more_after_a_failure_too() -> None:
    fleet = reloading_fleet(1)
    fleet.handle(ReloadAsked(), 0.5)
    assert fleet.handle(Exited(2, 4, 0.0), 1.0) == [
        ReloadFailed(2, f"worker 2 of slot 0: {ENDED}", ()),
        Reloading(3),
        Spawn(0, 3, 3),
    ]


# A candidate that does not become ready


def test_a_candidate_that_refuses_to_boot_ends_the_reload_and_the_old_workers_stay() -> None:
    fleet = reloading_fleet()
    assert fleet.handle(BootRefused(3, ExitCode.TARGET, "SyntaxError"), 1.0) == []
    assert fleet.handle(Exited(3, 4, 0.0), 1.1) == [ReloadFailed(2, "worker 3 of slot 0: SyntaxError", ())]
    assert [slot.worker for slot in fleet.slots] == [1, 2]
    assert (fleet.phase, fleet.slots[0].boot_failures, fleet.next_deadline()) == (1, 0, BEAT)
    assert fleet.handle(ReloadAsked(), 2.0) == [Reloading(3), Spawn(0, 4, 3)], "a phase is never used again"


def test_a_candidate_that_refuses_to_boot_and_does_not_exit_is_killed() -> None:
    fleet = reloading_fleet()
    fleet.handle(BootRefused(3, ExitCode.TARGET, "SyntaxError"), 1.0)
    assert fleet.handle(Ticked(), 1.0 + EXIT_SECONDS) == [
        Kill(3, "SyntaxError"),
        ReloadFailed(2, "worker 3 of slot 0: SyntaxError", ()),
    ]
    assert fleet.handle(Exited(3, -9, 0.0), 4.0) == []


def test_a_candidate_that_is_late_is_killed_and_what_is_switched_stays_so() -> None:
    fleet = reloading_fleet()
    fleet.handle(BecameReady(3), 1.0)
    for now in (20.0, 40.0, 60.0):
        for worker in (2, 3):
            fleet.handle(Beaten(worker), now)
    fleet.handle(Exited(1, 0, 0.0), 20.0)
    why = "not ready within 60 s"
    assert fleet.handle(Ticked(), 1.0 + STARTUP) == [Kill(4, why), ReloadFailed(2, f"worker 4 of slot 1: {why}", (0,))]
    assert fleet.handle(BecameReady(4), 1.0 + STARTUP) == [], "it was written before the signal arrived"
    assert fleet.handle(Exited(4, -9, 0.0), 62.0) == []
    assert [slot.worker for slot in fleet.slots] == [3, 2]
    assert [fleet.workers[worker].phase for worker in (3, 2)] == [2, 1]
    assert fleet.phase == 1


def test_a_candidate_whose_process_cannot_be_started_ends_the_reload() -> None:
    fleet = reloading_fleet()
    assert fleet.handle(SpawnFailed(3, 0.0), 1.0) == [
        ReloadFailed(2, "worker 3 of slot 0: its process cannot be started", ())
    ]
    assert fleet.slots[0].worker == 1


# An old worker that does not last


def test_an_old_worker_that_crashes_while_its_candidate_starts_is_replaced_by_it_alone() -> None:
    fleet = reloading_fleet()
    assert fleet.handle(Exited(1, -9, 0.0), 1.0) == [Unroute(0, 1)]
    fleet.handle(Beaten(2), 20.0)
    assert fleet.handle(Ticked(), 20.0) == [], "one worker starts there already"
    assert fleet.next_deadline() == 20.0 + BEAT
    assert fleet.handle(BecameReady(3), 21.0) == [Route(0, 3), Spawn(1, 4, 2)]
    assert fleet.slots[0].respawn_at is None


def test_an_old_worker_that_crashed_is_replaced_in_the_usual_way_when_its_candidate_fails() -> None:
    fleet = reloading_fleet()
    fleet.handle(Exited(1, -9, 0.0), 1.0)
    failed = ReloadFailed(2, f"worker 3 of slot 0: {ENDED}", ())
    assert fleet.handle(Exited(3, 1, 0.0), 2.0) == [failed, Spawn(0, 4, 2)], "it is of the code that is there now"
    assert fleet.restarts == 1
    assert fleet.handle(BecameReady(4), 3.0) == [Route(0, 4)]


def test_an_old_worker_without_a_beat_is_killed_and_its_candidate_takes_the_slot() -> None:
    fleet = reloading_fleet()
    fleet.handle(Beaten(2), BEAT)
    assert fleet.handle(Ticked(), BEAT) == [Unroute(0, 1), Kill(1, STUCK)]
    assert fleet.handle(BecameReady(3), BEAT) == [Route(0, 3), Spawn(1, 4, 2)]
    assert fleet.handle(Exited(1, -9, 0.0), BEAT) == []
    assert fleet.slots[0].worker == 3


def test_an_old_worker_that_is_still_starting_serves_until_its_candidate_is_ready() -> None:
    fleet = ready_fleet()
    fleet.handle(Exited(1, -9, 0.0), 0.0)
    assert fleet.handle(Ticked(), 1.0) == [Spawn(0, 2, 1)]
    assert fleet.handle(ReloadAsked(), 1.0) == [Reloading(2), Spawn(0, 3, 2)]
    assert fleet.handle(BecameReady(2), 2.0) == [Route(0, 2)]
    assert fleet.handle(BecameReady(3), 3.0) == [*switch(0, 2, 3), Reloaded(2)]


def test_an_old_worker_that_is_still_starting_is_killed_when_its_candidate_is_ready() -> None:
    fleet = ready_fleet()
    fleet.handle(Exited(1, -9, 0.0), 0.0)
    fleet.handle(Ticked(), 1.0)
    fleet.handle(ReloadAsked(), 1.0)
    assert fleet.handle(BecameReady(3), 2.0) == [
        Route(0, 3),
        Kill(2, "another worker has its slot by now"),
        Reloaded(2),
    ]
    assert fleet.handle(Exited(2, -9, 0.0), 2.0) == []
    assert fleet.slots[0].boot_failures == 0


def test_a_crash_in_a_slot_whose_turn_comes_later_is_mended_with_the_new_code_and_no_second_worker() -> None:
    fleet = reloading_fleet(3)
    assert fleet.handle(Exited(3, -9, 0.0), 1.0) == [Unroute(2, 3)]
    assert fleet.handle(Exited(2, -9, 0.0), 1.0) == [Unroute(1, 2)]
    assert fleet.handle(Ticked(), 2.0) == [Spawn(1, 5, 2), Spawn(2, 6, 2)]
    assert fleet.handle(BecameReady(5), 3.0) == [Route(1, 5)]
    # Slot 1 is done then, and the worker that starts in slot 2 is the candidate.
    assert fleet.handle(BecameReady(4), 4.0) == switch(0, 1, 4)
    assert fleet.workers[6].state is State.CANDIDATE
    assert fleet.handle(BecameReady(6), 5.0) == [Route(2, 6), Reloaded(2)]
    assert [slot.worker for slot in fleet.slots] == [4, 5, 6]


def test_a_worker_in_place_of_a_crashed_one_that_became_the_candidate_and_fails_is_not_the_last() -> None:
    fleet = reloading_fleet()
    fleet.handle(Exited(2, -9, 0.0), 1.0)
    fleet.handle(Ticked(), 2.0)
    fleet.handle(BecameReady(3), 3.0)
    assert fleet.workers[4].state is State.CANDIDATE
    assert fleet.handle(Exited(4, 1, 0.0), 4.0) == [ReloadFailed(2, f"worker 4 of slot 1: {ENDED}", (0,))]
    assert next_deadline(fleet) == 4.0 + RESPAWN_SECONDS
    assert fleet.handle(Ticked(), 4.0 + RESPAWN_SECONDS) == [Spawn(1, 5, 2)]


# A new worker that does not last


def test_a_new_worker_that_crashes_while_the_reload_goes_on_ends_it() -> None:
    fleet = reloading_fleet(3)
    fleet.handle(BecameReady(4), 1.0)
    assert fleet.handle(Exited(4, -11, 0.0), 2.0) == [
        Unroute(0, 4),
        Kill(5, "its reload has failed"),
        ReloadFailed(2, "worker 4 of slot 0: it ended while the reload went on", ()),
    ]
    assert fleet.handle(Exited(5, -9, 0.0), 2.0) == []
    assert [slot.worker for slot in fleet.slots] == [None, 2, 3]
    assert fleet.handle(Ticked(), 3.0) == [Spawn(0, 6, 2)]


def test_a_new_worker_without_a_beat_ends_the_reload() -> None:
    fleet = reloading_fleet()
    fleet.handle(BecameReady(3), 1.0)
    fleet.handle(Beaten(2), 1.0 + BEAT)
    fleet.handle(Exited(1, 0, 0.0), 2.0)
    assert fleet.handle(Ticked(), 1.0 + BEAT) == [
        Unroute(0, 3),
        Kill(3, STUCK),
        Kill(4, "its reload has failed"),
        ReloadFailed(2, f"worker 3 of slot 0: {STUCK}", ()),
    ]


def test_a_drained_worker_that_crashes_changes_nothing() -> None:
    fleet = reloading_fleet()
    fleet.handle(BecameReady(3), 1.0)
    assert fleet.handle(Beaten(1), 1.0) == []
    assert fleet.handle(Exited(1, -11, 0.0), 1.5) == []
    assert fleet.handle(BecameReady(4), 2.0) == [*switch(1, 2, 4), Reloaded(2)]


# Slots that were given up


def given_up_fleet() -> Fleet:
    """A fleet of two slots, of which the second was given up and the first has worker 1."""
    fleet = ready_fleet(2)
    now, commands = 0.0, fleet.handle(Exited(2, 1, 0.0), 0.0)
    for _ in range(MAX_BOOT_FAILURES):
        now = next_deadline(fleet)
        fleet.handle(Beaten(1), now)
        fleet.handle(Ticked(), now)
        commands = fleet.handle(Exited(fleet.last_worker, 1, 0.0), now)
    assert isinstance(commands[0], GiveUpSlot)
    return fleet


def test_a_slot_that_was_given_up_gets_a_new_chance() -> None:
    fleet = given_up_fleet()
    (now, last) = (next_deadline(fleet) - BEAT, fleet.last_worker)
    assert fleet.handle(ReloadAsked(), now) == [Reloading(2), Spawn(0, last + 1, 2)]
    assert fleet.handle(BecameReady(last + 1), now) == [*switch(0, 1, last + 1), Spawn(1, last + 2, 2)]
    assert fleet.slots[1].failed
    assert fleet.handle(BecameReady(last + 2), now) == [Route(1, last + 2), Reloaded(2)]
    assert not fleet.slots[1].failed
    fleet.handle(Exited(last + 2, 1, 1.0), now)
    assert fleet.slots[1].respawn_at == pytest.approx(now + 0.1), "its back-off begins anew"


def test_a_slot_that_was_given_up_stays_so_when_its_candidate_fails() -> None:
    fleet = given_up_fleet()
    (now, last) = (next_deadline(fleet) - BEAT, fleet.last_worker)
    fleet.handle(ReloadAsked(), now)
    fleet.handle(BecameReady(last + 1), now)
    why = f"worker {last + 2} of slot 1: {ENDED}"
    assert fleet.handle(Exited(last + 2, 1, 1.0), now) == [ReloadFailed(2, why, (0,))]
    assert (fleet.slots[1].failed, fleet.slots[1].respawn_at) == (True, None)


def test_the_last_slot_that_is_given_up_waits_for_the_candidate_that_starts_there() -> None:
    fleet = given_up_fleet()
    now = next_deadline(fleet) - BEAT
    fleet.handle(ReloadAsked(), now)
    fleet.slots[0].boot_failures = MAX_BOOT_FAILURES
    fleet.slots[0].failed = True
    assert fleet.handle(Exited(1, 1, 0.0), now) == [Unroute(0, 1)]
    why = f"worker {fleet.last_worker} of slot 0: {ENDED}"
    assert fleet.handle(Exited(fleet.last_worker, 1, 0.0), now) == [
        ReloadFailed(2, why, ()),
        StopListening(),
        Finish(ExitCode.FAILED),
    ]


# Stops


@pytest.mark.parametrize("stop", [StopAsked(), StopForced()])
def test_a_stop_ends_the_reload_and_waits_for_all_three_of_its_workers(stop: Event) -> None:
    fleet = reloading_fleet()
    fleet.handle(BecameReady(3), 1.0)
    commands = fleet.handle(stop, 2.0)
    assert commands[0] == StopListening()
    assert Kill(4, "stopped while it was starting" if isinstance(stop, StopAsked) else "stop forced") in commands
    assert (Kill(1, "stop forced") in commands) == isinstance(stop, StopForced)
    assert not any(isinstance(command, Reloaded | ReloadFailed) for command in commands)
    assert fleet.rolling is None
    assert fleet.handle(ReloadAsked(), 2.0) == []
    for worker in (4, 3, 1):
        assert fleet.handle(Exited(worker, -9, 0.0), 2.0) == []
    assert fleet.handle(Exited(2, 0, 0.0), 2.0) == [Finish(ExitCode.OK)]


def test_a_cluster_that_ends_for_its_target_ends_the_reload_and_its_candidate() -> None:
    fleet = new_fleet()
    fleet.handle(Ticked(), 0.0)
    assert fleet.handle(ReloadAsked(), 0.0) == [Reloading(2), Spawn(0, 2, 2)]
    fleet.handle(BootRefused(2, ExitCode.TARGET, "no such module"), 1.0)
    assert fleet.handle(BootRefused(1, ExitCode.TARGET, "no such module"), 1.0) == []
    assert fleet.handle(Ticked(), 1.0 + EXIT_SECONDS) == [Kill(1, "no such module"), Kill(2, "no such module")]
    assert fleet.handle(Exited(2, 4, 0.0), 4.0) == []
    assert fleet.handle(Exited(1, 4, 0.0), 4.0) == [Finish(ExitCode.TARGET)]


# Before anything was ready


def test_during_the_first_boot_the_candidate_comes_beside_the_worker_that_starts() -> None:
    fleet = new_fleet(2)
    fleet.handle(Ticked(), 0.0)
    assert fleet.handle(ReloadAsked(), 0.0) == [Reloading(2), Spawn(0, 3, 2)]
    assert fleet.handle(BecameReady(2), 1.0) == [Route(1, 2)]
    killed = Kill(1, "another worker has its slot by now")
    assert fleet.handle(BecameReady(3), 2.0) == [Route(0, 3), killed, Spawn(1, 4, 2), Listen()]


def patient_fleet(size: int) -> Fleet:
    fleet = Fleet(size, STARTUP, BEAT, GRACEFUL, patient=True)
    fleet.handle(Ticked(), 0.0)
    return fleet


def test_where_somebody_mends_the_program_a_first_boot_that_fails_is_no_end_and_not_tried_again_by_itself() -> None:
    fleet = patient_fleet(2)
    assert fleet.handle(BootRefused(1, ExitCode.TARGET, "SyntaxError"), 1.0) == []
    assert fleet.handle(BootRefused(2, ExitCode.TARGET, "SyntaxError"), 1.0) == []
    assert fleet.handle(Exited(1, 4, 0.0), 1.0) == [GiveUpSlot(0, "SyntaxError")]
    assert fleet.handle(Exited(2, 4, 0.0), 1.0) == [GiveUpSlot(1, "SyntaxError")]
    assert (fleet.next_deadline(), fleet.exit_code) == (None, None)
    assert fleet.handle(ReloadAsked(), 9.0) == [Reloading(2), Spawn(0, 3, 2)]
    assert fleet.handle(Exited(3, 4, 0.0), 9.5) == [ReloadFailed(2, f"worker 3 of slot 0: {ENDED}", ())]
    assert fleet.handle(ReloadAsked(), 10.0) == [Reloading(3), Spawn(0, 4, 3)]
    assert fleet.handle(BecameReady(4), 11.0) == [Route(0, 4), Spawn(1, 5, 3), Listen()]
    assert fleet.handle(BecameReady(5), 12.0) == [Route(1, 5), Reloaded(3)]


def test_where_somebody_mends_the_program_a_stop_still_ends_it() -> None:
    fleet = patient_fleet(1)
    assert fleet.handle(Exited(1, 4, 0.0), 1.0) == [GiveUpSlot(0, ENDED)]
    assert fleet.handle(StopAsked(), 2.0) == [Finish(ExitCode.OK)]
