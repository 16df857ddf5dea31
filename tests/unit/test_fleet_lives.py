"""Random lives of a fleet: whatever happens to its workers, and in whatever order, the rules are kept."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wscluster.errors import ExitCode
from wscluster.gateway.fleet import Fleet
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
    Route,
    Spawn,
    State,
    StopAsked,
    StopForced,
    StopListening,
    Ticked,
    Unroute,
)


class FleetLives(RuleBasedStateMachine):
    """Plays the primary and the processes; keeps its own account of them from the commands alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet(3, 5.0, 3.0, 4.0)
        self.now = 0.0
        self.alive: dict[int, int] = {}
        self.saw: dict[int, State] = {}
        self.refused: set[int] = set()
        self.routed: dict[int, int] = {}
        self.killed: set[int] = set()
        self.used: set[int] = set()
        self.given_up: set[int] = set()
        self.listens = self.stop_listens = self.finishes = 0
        self.stopped = False
        self.give(Ticked())

    def give(self, event: Event) -> list[Command]:
        if isinstance(event, StopAsked | StopForced):
            self.stopped = True
        if isinstance(event, Exited):
            del self.alive[event.worker]
        if isinstance(event, BecameReady) and event.worker not in self.killed:
            self.saw[event.worker] = State.READY
        commands = self.fleet.handle(event, self.now)
        for command in commands:
            self.check(command)
        return commands

    def check(self, command: Command) -> None:
        assert not self.finishes, f"{command} after Finish"
        match command:
            case Spawn(slot, worker, _):
                assert not self.stopped
                assert worker not in self.used
                assert slot not in self.alive.values(), "two workers in one slot"
                assert slot not in self.given_up
                self.used.add(worker)
                self.alive[worker] = slot
                self.saw[worker] = State.STARTING
            case Kill(worker, reason):
                assert worker in self.alive
                assert worker not in self.killed
                assert reason
                assert worker not in self.routed.values()
                self.killed.add(worker)
            case Route(slot, worker):
                assert self.alive[worker] == slot
                assert self.saw[worker] is State.READY
                assert slot not in self.routed
                self.routed[slot] = worker
            case Unroute(slot, worker):
                assert self.routed.pop(slot) == worker
            case DrainWorker(worker, _, _):
                assert self.stopped
                assert self.saw[worker] is State.READY
                assert worker not in self.killed
                self.saw[worker] = State.DRAINING
            case GiveUpSlot(slot, _):
                assert not self.stopped, "nobody cares any more"
                assert slot not in self.given_up
                self.given_up.add(slot)
            case Listen():
                self.listens += 1
                assert self.routed or self.saw, "somebody was ready"
            case StopListening():
                self.stop_listens += 1
            case Finish(exit_code):
                assert not self.alive
                assert not self.stopped or exit_code in (ExitCode.OK, ExitCode.TARGET)
                self.finishes += 1

    def pick(self, number: int, *states: State) -> int | None:
        fitting = [worker for worker in self.alive if self.saw[worker] in states and worker not in self.refused]
        return fitting[number % len(fitting)] if fitting else None

    @precondition(lambda self: self.pick(0, State.STARTING) is not None)
    @rule(number=st.integers(0, 9))
    def become_ready(self, number: int) -> None:
        worker = self.pick(number, State.STARTING)
        assert worker is not None
        self.give(BecameReady(worker))

    @precondition(lambda self: self.pick(0, State.STARTING) is not None)
    @rule(number=st.integers(0, 9), code=st.sampled_from([3, 3, 3, 4]))
    def refuse_to_boot(self, number: int, code: int) -> None:
        worker = self.pick(number, State.STARTING)
        assert worker is not None
        self.refused.add(worker)
        self.stopped = self.stopped or (code == 4 and not self.fleet.ever_ready and worker not in self.killed)
        self.give(BootRefused(worker, code, "why"))

    @precondition(lambda self: self.pick(0, State.READY, State.DRAINING) is not None)
    @rule(number=st.integers(0, 9))
    def beat(self, number: int) -> None:
        worker = self.pick(number, State.READY, State.DRAINING)
        assert worker is not None
        assert not any(isinstance(command, Kill) for command in self.give(Beaten(worker)))

    @precondition(lambda self: self.alive)
    @rule(number=st.integers(0, 9), jitter=st.floats(0, 1, exclude_max=True), status=st.sampled_from([0, 1, -9]))
    def exit(self, number: int, jitter: float, status: int) -> None:
        self.give(Exited(list(self.alive)[number % len(self.alive)], status, jitter))

    @precondition(lambda self: self.killed & self.alive.keys())
    @rule()
    def die_of_the_kill(self) -> None:
        self.give(Exited(min(self.killed & self.alive.keys()), -9, 0.0))

    @rule(seconds=st.sampled_from([0.001, 0.1, 0.9, 2.0, 20.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.give(Ticked())

    @precondition(lambda self: self.fleet.next_deadline() is not None)
    @rule()
    def reach_the_deadline(self) -> None:
        self.now = max(self.now, self.fleet.next_deadline() or 0.0)
        self.give(Ticked())
        due = self.fleet.next_deadline()
        assert due is None or due > self.now, "the primary would spin"

    @precondition(lambda self: len(self.used) > 4)
    @rule(event=st.sampled_from([StopAsked(), StopForced()]))
    def stop(self, event: Event) -> None:
        self.give(event)

    @invariant()
    def holds(self) -> None:
        fleet = self.fleet
        assert self.listens <= 1
        assert self.stop_listens <= self.listens
        assert self.finishes <= 1
        assert fleet.listening == (self.listens > self.stop_listens)
        assert self.alive.keys() == fleet.workers.keys()
        ready = {worker.slot: worker.id for worker in fleet.workers.values() if worker.state is State.READY}
        assert self.routed == ready
        assert {worker for worker in self.alive if fleet.workers[worker].state is State.KILLED} == (
            self.killed & self.alive.keys()
        )
        assert bool(self.finishes) == (fleet.exit_code is not None and not self.alive)
        if fleet.exit_code is None:
            for number, slot in enumerate(fleet.slots):
                assert (number in self.alive.values()) + (slot.respawn_at is not None) + slot.failed == 1, "a dead end"

    def teardown(self) -> None:
        """Whatever has happened: a stop ends, with nothing but time and exits of what was told to go."""
        self.give(StopAsked())
        for _ in range(20):
            due = self.fleet.next_deadline()
            if due is not None:
                self.now = max(self.now, due)
                self.give(Ticked())
            for worker in sorted(self.killed & self.alive.keys()):
                self.give(Exited(worker, -9, 0.0))
        assert self.finishes == 1


TestFleetLives = FleetLives.TestCase
TestFleetLives.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
