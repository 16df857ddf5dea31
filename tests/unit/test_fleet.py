"""The fleet's decisions: each transition by itself."""

import itertools
from collections.abc import Callable

import pytest

from wscluster.errors import ExitCode
from wscluster.gateway.fleet import (
    EXIT_SECONDS,
    FIRST_BACKOFF,
    LATE_SECONDS,
    MAX_BACKOFF,
    MAX_BOOT_FAILURES,
    MAX_FIRST_BOOT_FAILURES,
    PROGRAM_EXIT_SECONDS,
    SHUTDOWN_CODE,
    STABLE_SECONDS,
    TABLE,
    Fleet,
)
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

STARTUP, BEAT, GRACEFUL = 60.0, 30.0, 20.0
STARTED = "the cluster cannot run"


def new_fleet(size: int = 1) -> Fleet:
    return Fleet(size, STARTUP, BEAT, GRACEFUL)


def ready_fleet(size: int = 1, now: float = 0.0) -> Fleet:
    """A fleet whose workers 1 … size all became ready at ``now``, and which listens."""
    fleet = new_fleet(size)
    fleet.handle(Ticked(), now)
    for worker in range(1, size + 1):
        fleet.handle(BecameReady(worker), now)
    assert fleet.listening
    return fleet


def next_deadline(fleet: Fleet) -> float:
    due = fleet.next_deadline()
    assert due is not None
    return due


def fail_boots(fleet: Fleet, count: int, now: float = 0.0) -> list[Command]:
    """Let ``count`` workers of a fleet of one slot end before they are ready; returns the last answer."""
    commands: list[Command] = []
    for _ in range(count):
        now = max(now, next_deadline(fleet)) if fleet.slots[0].worker is None else now
        fleet.handle(Ticked(), now)
        worker = fleet.slots[0].worker
        assert worker is not None
        commands = fleet.handle(Exited(worker, 1, 0.0), now)
    return commands


# Boot


def test_the_first_tick_starts_one_worker_in_each_slot() -> None:
    fleet = new_fleet(3)
    assert fleet.next_deadline() == 0.0
    assert fleet.handle(Ticked(), 5.0) == [Spawn(0, 1, 1), Spawn(1, 2, 1), Spawn(2, 3, 1)]
    assert fleet.next_deadline() == 5.0 + STARTUP
    assert fleet.handle(Ticked(), 5.0) == []


def test_a_worker_that_is_ready_is_routed_to_and_the_last_slot_begins_to_listen() -> None:
    fleet = new_fleet(2)
    fleet.handle(Ticked(), 0.0)
    assert fleet.handle(BecameReady(2), 1.0) == [Route(1, 2)]
    assert fleet.handle(BecameReady(1), 2.0) == [Route(0, 1), Listen()]
    assert fleet.next_deadline() == 1.0 + BEAT


def test_a_slot_that_is_given_up_does_not_keep_the_others_from_listening() -> None:
    fleet = new_fleet(2)
    fleet.handle(Ticked(), 0.0)
    fleet.handle(BecameReady(1), 0.0)
    now, commands = 0.0, list[Command]()
    for _ in range(MAX_BOOT_FAILURES):
        assert Listen() not in commands
        worker = fleet.slots[1].worker
        assert worker is not None
        commands = fleet.handle(Exited(worker, 1, 0.0), now)
        now += MAX_BACKOFF
        if not fleet.slots[1].failed:
            fleet.handle(Beaten(1), now)
    assert commands == [GiveUpSlot(1, "5 boots failed, the last one: its worker ended before it was ready"), Listen()]
    assert fleet.slots[1].respawn_at is None


@pytest.mark.parametrize(("ever_ready", "limit"), [(False, MAX_FIRST_BOOT_FAILURES), (True, MAX_BOOT_FAILURES)])
def test_a_slot_is_given_up_after_repeated_boot_failures(ever_ready: bool, limit: int) -> None:
    fleet = new_fleet()
    fleet.handle(Ticked(), 0.0)
    if ever_ready:
        fleet.handle(BecameReady(1), 0.0)
        fleet.handle(Exited(1, 0, 0.0), 0.0)
    assert not any(isinstance(command, GiveUpSlot | Finish) for command in fail_boots(fleet, limit - 1))
    why = f"{limit} boots failed, the last one: its worker ended before it was ready"
    assert fail_boots(fleet, 1, now=100.0) == [
        GiveUpSlot(0, why),
        *([StopListening(), Finish(ExitCode.FAILED)] if ever_ready else [Finish(ExitCode.NOT_STARTED)]),
    ]
    assert fleet.next_deadline() is None


def test_a_boot_that_succeeds_clears_the_count_of_failed_ones() -> None:
    fleet = new_fleet()
    for _ in range(3):
        fail_boots(fleet, MAX_FIRST_BOOT_FAILURES - 1)
        fleet.handle(Ticked(), next_deadline(fleet))
        fleet.handle(BecameReady(fleet.last_worker), 0.0)
        assert fleet.slots[0].boot_failures == 0
        fleet.handle(Exited(fleet.last_worker, 0, 0.0), 0.0)
    assert not fleet.slots[0].failed


def test_the_reason_of_a_refused_boot_is_that_of_the_given_up_slot() -> None:
    fleet = new_fleet()
    fail_boots(fleet, MAX_FIRST_BOOT_FAILURES - 1)
    fleet.handle(Ticked(), next_deadline(fleet))
    fleet.handle(BootRefused(3, ExitCode.NOT_STARTED, "the lifespan raised"), 1.0)
    given_up, _ = fleet.handle(Exited(3, 3, 0.0), 1.0)
    assert given_up == GiveUpSlot(0, "3 boots failed, the last one: the lifespan raised")


def test_a_target_at_fault_ends_everything_at_once_before_any_worker_was_ready() -> None:
    fleet = new_fleet(3)
    fleet.handle(Ticked(), 0.0)
    assert fleet.handle(BootRefused(2, ExitCode.TARGET, "no such module"), 1.0) == [Kill(1, STARTED), Kill(3, STARTED)]
    assert fleet.handle(BootRefused(3, ExitCode.TARGET, "no such module"), 1.0) == []
    assert fleet.handle(Exited(1, -9, 0.0), 1.0) == []
    assert fleet.handle(Exited(3, -9, 0.0), 1.0) == []
    assert fleet.handle(Exited(2, 4, 0.0), 1.0) == [Finish(ExitCode.TARGET)]


def test_a_boot_without_hope_ends_a_cluster_that_was_never_up() -> None:
    fleet = new_fleet(2)
    fleet.handle(Ticked(), 0.0)
    assert fleet.handle(BootRefused(1, ExitCode.NOT_STARTED, "it binds", hopeless=True), 1.0) == [Kill(2, STARTED)]
    assert fleet.exit_code == ExitCode.NOT_STARTED


def test_a_target_at_fault_later_is_one_failed_boot() -> None:
    fleet = ready_fleet(2)
    fleet.handle(Exited(2, 1, 0.0), 0.0)
    fleet.handle(Ticked(), 1.0)
    assert fleet.handle(BootRefused(3, ExitCode.TARGET, "broken meanwhile"), 1.0) == []
    assert fleet.handle(Exited(3, 4, 0.0), 1.0) == []
    assert fleet.exit_code is None


def test_a_worker_that_refused_to_boot_and_does_not_exit_is_killed() -> None:
    fleet = new_fleet()
    fleet.handle(Ticked(), 0.0)
    fleet.handle(BootRefused(1, ExitCode.TARGET, "no such module"), 1.0)
    assert fleet.next_deadline() == 1.0 + EXIT_SECONDS
    assert fleet.handle(Ticked(), 1.0 + EXIT_SECONDS) == [Kill(1, "no such module")]
    assert fleet.handle(Exited(1, -9, 0.0), 4.0) == [Finish(ExitCode.TARGET)]


def test_a_boot_that_takes_too_long_is_killed_and_counts_as_failed() -> None:
    fleet = new_fleet()
    fleet.handle(Ticked(), 0.0)
    assert fleet.handle(Ticked(), STARTUP - 0.01) == []
    assert fleet.handle(Ticked(), STARTUP) == [Kill(1, "not ready within 60 s")]
    assert fleet.next_deadline() is None
    assert fleet.handle(BecameReady(1), STARTUP) == []  # it was written before the signal arrived
    fleet.handle(Exited(1, -9, 0.0), STARTUP)
    assert (fleet.slots[0].boot_failures, fleet.ever_ready) == (1, False)


# Crash


@pytest.mark.parametrize(("jitter", "share"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_the_back_off_doubles_up_to_its_cap_and_is_spread_by_the_jitter(jitter: float, share: float) -> None:
    fleet = ready_fleet()
    now, waits = 0.0, []
    for _ in range(20):
        assert fleet.handle(Exited(fleet.last_worker, -9, jitter), now)[0] == Unroute(0, fleet.last_worker)
        waits.append(next_deadline(fleet) - now)
        assert fleet.handle(Ticked(), next_deadline(fleet) - 0.001) == []
        now = next_deadline(fleet)
        assert fleet.handle(Ticked(), now) == [Spawn(0, fleet.last_worker, 1)]
        assert fleet.handle(BecameReady(fleet.last_worker), now) == [Route(0, fleet.last_worker)]
    expected = [share * min(MAX_BACKOFF, FIRST_BACKOFF * 2**crashes) for crashes in range(20)]
    assert waits == pytest.approx(expected)
    assert fleet.restarts == 20


def test_a_slot_is_not_given_up_because_the_system_cannot_start_a_process() -> None:
    fleet = ready_fleet()
    fleet.handle(Exited(1, -9, 1.0), 0.0)
    for number in range(50):
        now = next_deadline(fleet)
        assert fleet.handle(Ticked(), now) == [Spawn(0, number + 2, 1)]
        assert fleet.handle(SpawnFailed(number + 2, 1.0), now) == []
    assert next_deadline(fleet) - now == MAX_BACKOFF
    # A program that then fails is judged from its own first failure on.
    assert not fleet.slots[0].boot_failures


def test_a_cluster_of_which_no_process_can_be_started_cannot_start() -> None:
    fleet = new_fleet()
    for number in range(MAX_FIRST_BOOT_FAILURES):
        fleet.handle(Ticked(), next_deadline(fleet) if number else 0.0)
        commands = fleet.handle(SpawnFailed(fleet.last_worker, 0.0), fleet.last_worker * 1.0)
    assert commands[0] == GiveUpSlot(0, "3 boots failed, the last one: its worker ended before it was ready")
    assert commands[-1] == Finish(ExitCode.NOT_STARTED)


def test_a_stable_worker_clears_the_back_off_of_its_slot() -> None:
    for lived, expected in ((STABLE_SECONDS - 0.01, 4 * FIRST_BACKOFF), (STABLE_SECONDS, FIRST_BACKOFF)):
        fleet = ready_fleet()
        for _ in range(2):
            fleet.handle(Exited(fleet.last_worker, 1, 1.0), 0.0)
            fleet.handle(Ticked(), 5.0)
            fleet.handle(BecameReady(fleet.last_worker), 5.0)
        now = 5.0 + lived
        fleet.handle(Exited(fleet.last_worker, 1, 1.0), now)
        assert next_deadline(fleet) - now == pytest.approx(expected)


def test_a_crash_leaves_the_other_slots_alone() -> None:
    fleet = ready_fleet(3)
    assert fleet.handle(Exited(2, -11, 0.0), 1.0) == [Unroute(1, 2)]
    assert fleet.handle(Ticked(), 2.0) == [Spawn(1, 4, 1)]
    assert [slot.worker for slot in fleet.slots] == [1, 4, 3]
    assert fleet.handle(BecameReady(4), 3.0) == [Route(1, 4)]  # and no second Listen


# Beats


def test_a_worker_without_a_beat_is_unrouted_and_killed_at_its_deadline() -> None:
    fleet = ready_fleet()
    fleet.handle(Beaten(1), 10.0)
    assert fleet.next_deadline() == 10.0 + BEAT
    assert fleet.handle(Ticked(), 10.0 + BEAT) == [
        Unroute(0, 1),
        Kill(1, "no beat for 30 s: its event loop is stuck"),
    ]
    assert fleet.handle(Beaten(1), 10.0 + BEAT) == []
    assert fleet.handle(Ticked(), 100.0) == []
    assert fleet.handle(Exited(1, -9, 0.0), 100.0) == []
    assert fleet.handle(Ticked(), 101.0) == [Spawn(0, 2, 1)]


def test_the_beat_of_one_worker_does_not_condemn_another_whose_beat_is_not_read_yet() -> None:
    """A primary that was held up finds the beats of all workers, and reads them one after the other."""
    fleet = ready_fleet(4)
    now = BEAT + 0.5
    for worker in (1, 2, 3, 4):
        assert fleet.handle(Beaten(worker), now) == []
    assert fleet.handle(Ticked(), now) == []


def test_a_deadline_that_is_noticed_far_too_late_gives_the_worker_another_chance() -> None:
    """Ctrl-Z stops the primary and its workers alike: after `fg` nobody has beaten, and nobody is stuck."""
    fleet = ready_fleet(2)
    now = BEAT + LATE_SECONDS + 0.1
    assert fleet.handle(Ticked(), now) == []
    assert fleet.next_deadline() == now + EXIT_SECONDS
    fleet.handle(Beaten(1), now + 0.1)
    assert fleet.handle(Ticked(), now + EXIT_SECONDS) == [
        Unroute(1, 2),
        Kill(2, "no beat for 30 s: its event loop is stuck"),
    ]


# Stop


def test_a_stop_drains_the_ready_kills_the_starting_and_ends_with_0() -> None:
    fleet = ready_fleet(3)
    fleet.handle(Exited(3, 1, 0.0), 1.0)
    fleet.handle(Exited(2, 1, 0.0), 1.0)
    fleet.handle(Ticked(), 1.05)
    fleet.handle(BecameReady(4), 1.1)
    assert fleet.handle(StopAsked(), 2.0) == [
        StopListening(),
        Unroute(0, 1),
        DrainWorker(1, SHUTDOWN_CODE, GRACEFUL),
        Unroute(1, 4),
        DrainWorker(4, SHUTDOWN_CODE, GRACEFUL),
        Kill(5, "stopped while it was starting"),
    ]
    assert fleet.handle(StopAsked(), 2.0) == []
    assert fleet.handle(Exited(5, -9, 0.0), 2.1) == []
    assert fleet.handle(Beaten(4), 2.1) == []
    assert fleet.handle(Exited(1, 0, 0.0), 2.2) == []
    assert fleet.next_deadline() == 2.0 + GRACEFUL + EXIT_SECONDS
    assert fleet.handle(Exited(4, 0, 0.0), 3.0) == [Finish(ExitCode.OK)]
    assert fleet.handle(Ticked(), 100.0) == []


def test_a_stop_waits_for_a_worker_that_is_being_killed_and_asks_nothing_of_it() -> None:
    fleet = ready_fleet(2)
    fleet.handle(Beaten(1), BEAT)
    assert Kill(2, "no beat for 30 s: its event loop is stuck") in fleet.handle(Ticked(), BEAT + 0.1)
    assert fleet.handle(StopAsked(), BEAT + 0.2) == [
        StopListening(),
        Unroute(0, 1),
        DrainWorker(1, SHUTDOWN_CODE, GRACEFUL),
    ]
    assert fleet.handle(Exited(1, 0, 0.0), BEAT + 0.3) == []
    assert fleet.handle(Exited(2, -9, 0.0), BEAT + 0.4) == [Finish(ExitCode.OK)]


def test_a_drain_that_takes_too_long_ends_in_a_kill() -> None:
    fleet = ready_fleet()
    fleet.handle(StopAsked(), 2.0)
    due = 2.0 + GRACEFUL + EXIT_SECONDS
    assert fleet.handle(Ticked(), due) == [Kill(1, "not drained within 20 s")]
    assert fleet.handle(Exited(1, -9, 0.0), due) == [Finish(ExitCode.OK)]


def test_a_program_gets_longer_to_exit_after_its_drain() -> None:
    fleet = Fleet(1, STARTUP, BEAT, GRACEFUL, exit_timeout=PROGRAM_EXIT_SECONDS)
    fleet.handle(Ticked(), 0.0)
    fleet.handle(BecameReady(1), 0.0)
    fleet.handle(StopAsked(), 1.0)
    due = 1.0 + GRACEFUL + PROGRAM_EXIT_SECONDS
    assert fleet.next_deadline() == due
    assert fleet.handle(Ticked(), due) == [Kill(1, f"not drained within {GRACEFUL:g} s")]


def test_a_late_boot_is_told_with_what_may_be_the_reason() -> None:
    fleet = Fleet(1, STARTUP, BEAT, GRACEFUL, late_hint=": it listens nowhere")
    fleet.handle(Ticked(), 0.0)
    assert fleet.handle(Ticked(), STARTUP) == [Kill(1, f"not ready within {STARTUP:g} s: it listens nowhere")]


def test_a_forced_stop_kills_each_worker_once() -> None:
    fleet = ready_fleet(2)
    fleet.handle(StopAsked(), 1.0)
    assert fleet.handle(StopForced(), 2.0) == [Kill(1, "stop forced"), Kill(2, "stop forced")]
    assert fleet.handle(StopForced(), 2.0) == []
    fleet.handle(Exited(2, -9, 0.0), 2.0)
    assert fleet.handle(Exited(1, -9, 0.0), 2.0) == [Finish(ExitCode.OK)]


def test_a_stop_that_is_forced_from_the_start_stops_listening_and_unroutes() -> None:
    assert ready_fleet().handle(StopForced(), 1.0) == [StopListening(), Unroute(0, 1), Kill(1, "stop forced")]


@pytest.mark.parametrize("stop", [StopAsked(), StopForced()])
def test_a_stop_while_nothing_is_ready_kills_all_and_ends_with_0(stop: Event) -> None:
    fleet = new_fleet(2)
    fleet.handle(Ticked(), 0.0)
    assert [type(command) for command in fleet.handle(stop, 1.0)] == [Kill, Kill]
    fleet.handle(Exited(1, -9, 0.0), 1.0)
    assert fleet.handle(Exited(2, -9, 0.0), 1.0) == [Finish(ExitCode.OK)]


@pytest.mark.parametrize("stop", [StopAsked(), StopForced()])
def test_a_stop_without_any_worker_ends_at_once_and_spawns_nothing(stop: Event) -> None:
    fleet = new_fleet()
    assert fleet.handle(stop, 0.0) == [Finish(ExitCode.OK)]
    assert fleet.handle(Ticked(), 100.0) == []
    assert fleet.next_deadline() is None


def test_a_stop_during_the_back_off_starts_no_replacement() -> None:
    fleet = ready_fleet()
    fleet.handle(Exited(1, 1, 0.0), 1.0)
    assert fleet.handle(StopAsked(), 1.0) == [StopListening(), Finish(ExitCode.OK)]
    assert (fleet.handle(Ticked(), 50.0), fleet.next_deadline()) == ([], None)


def test_a_worker_that_a_stop_killed_while_it_was_starting_is_no_reason_to_give_its_slot_up() -> None:
    fleet = new_fleet()
    fail_boots(fleet, MAX_FIRST_BOOT_FAILURES - 1)
    now = next_deadline(fleet)
    fleet.handle(Ticked(), now)
    fleet.handle(StopAsked(), now)
    assert fleet.handle(Exited(MAX_FIRST_BOOT_FAILURES, -9, 0.0), now) == [Finish(ExitCode.OK)]


def test_a_stop_after_the_target_was_at_fault_keeps_the_exit_code_and_a_second_one_forces() -> None:
    fleet = new_fleet()
    fleet.handle(Ticked(), 0.0)
    fleet.handle(BootRefused(1, ExitCode.TARGET, "no such module"), 0.0)
    assert fleet.handle(StopAsked(), 0.1) == []
    assert fleet.stopping, "the primary asks this to know that the next signal forces"
    assert fleet.handle(StopForced(), 0.2) == [Kill(1, "stop forced")]
    assert fleet.handle(Exited(1, -9, 0.0), 0.3) == [Finish(ExitCode.TARGET)]


# What does not fit

_STATES: dict[State, Callable[[], Fleet]] = {
    State.STARTING: lambda: (fleet := new_fleet(), fleet.handle(Ticked(), 0.0))[0],
    State.CANDIDATE: lambda: (fleet := ready_fleet(), fleet.handle(ReloadAsked(), 0.0))[0],
    State.READY: ready_fleet,
    State.DRAINING: lambda: (fleet := ready_fleet(), fleet.handle(StopAsked(), 0.0))[0],
    State.KILLED: lambda: (fleet := ready_fleet(), fleet.handle(StopForced(), 0.0))[0],
}
_EVENTS: list[Callable[[int], Event]] = [
    BecameReady,
    Beaten,
    lambda worker: BootRefused(worker, 3, "why"),
    lambda worker: Exited(worker, 0, 0.5),
    lambda worker: SpawnFailed(worker, 0.5),
]


@pytest.mark.parametrize(("state", "make"), list(itertools.product(_STATES, _EVENTS)))
def test_an_event_raises_exactly_where_the_table_has_no_transition(state: State, make: Callable[[int], Event]) -> None:
    fleet = _STATES[state]()
    event = make(fleet.last_worker)
    assert fleet.workers[fleet.last_worker].state is state
    if (state, type(event)) in TABLE:
        fleet.handle(event, 0.0)
    else:
        with pytest.raises(KeyError):
            fleet.handle(event, 0.0)


def test_an_event_of_a_worker_that_is_not_alive_raises() -> None:
    with pytest.raises(KeyError):
        new_fleet().handle(Beaten(1), 0.0)


def test_every_transition_of_the_table_is_of_a_living_worker() -> None:
    assert {state for state, _ in TABLE} == set(State) - {State.EXITED}


def test_a_slot_that_hangs_in_its_first_boot_keeps_the_others_waiting_once() -> None:
    fleet = new_fleet(2)
    fleet.handle(Ticked(), 0.0)
    assert fleet.handle(BecameReady(1), 1.0) == [Route(0, 1)]
    # The one that is ready beats: it has a deadline of its own.
    fleet.handle(Beaten(1), STARTUP - 1)
    assert fleet.handle(Ticked(), STARTUP) == [Kill(2, "not ready within 60 s"), Listen()]
    assert not fleet.slots[1].failed
