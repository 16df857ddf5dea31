"""Random lives of a fleet: whatever happens to its workers, and in whatever order, the rules are kept."""

import json

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wscluster.errors import ExitCode
from wscluster.gateway.carried import decode, encode
from wscluster.gateway.fleet import SHUTDOWN_CODE, Fleet
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
    ReplaceAsked,
    Replaced,
    ReplaceFailed,
    Replacing,
    Resize,
    Route,
    ScaleAsked,
    Spawn,
    State,
    StopAsked,
    StopForced,
    StopListening,
    Ticked,
    Unroute,
)
from wscluster.gateway.rolling import RELOAD_CODE


class FleetLives(RuleBasedStateMachine):
    """Plays the primary and the processes; keeps its own account of them from the commands alone."""

    patient = False

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet(3, 5.0, 3.0, 4.0, patient=self.patient)
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
        self.decided: int | None = None
        """The exit code that was certain before a stop was asked for, while killed workers were still to end."""
        self.size = 3
        self.least = 3
        """The fewest slots that there were since the reload began."""
        self.reload: int | None = None
        self.replacing: tuple[int, int] | None = None
        self.event: Event = Ticked()
        self.owes_another = False
        self.phases: list[int] = [1]
        self.give(Ticked())

    @property
    def under_way(self) -> bool:
        """Whether a worker may start beside another one of its slot."""
        return self.reload is not None or self.replacing is not None

    def give(self, event: Event) -> list[Command]:
        self.event = event
        if isinstance(event, StopAsked | StopForced):
            self.stopped = True
            self.decided = self.decided or self.fleet.exit_code
        if isinstance(event, Exited):
            del self.alive[event.worker]
        if isinstance(event, BecameReady) and event.worker not in self.killed:
            self.saw[event.worker] = State.READY
        if isinstance(event, ReloadAsked) and self.under_way:
            self.owes_another = True
        routed = dict(self.routed)
        commands = self.fleet.handle(event, self.now)
        for command in commands:
            self.check(command)
        for slot in routed.keys() - self.routed.keys():
            crashed = isinstance(event, Exited) and event.worker == routed[slot]
            gone = slot >= self.size
            assert self.stopped or crashed or gone or routed[slot] in self.killed, "a slot lost its worker for nothing"
        return commands

    @rule()
    def upgrade(self) -> None:
        """Another process goes on with what this one has written down; nobody can tell."""
        before, self.fleet = self.fleet, decode(Fleet, json.loads(json.dumps(encode(self.fleet))))
        assert self.fleet == before

    def check(self, command: Command) -> None:
        assert not self.finishes, f"{command} after Finish"
        match command:
            case Spawn(slot, worker, phase):
                assert not self.stopped
                assert slot < self.size
                assert worker not in self.used
                here = [one for one in self.alive if self.alive[one] == slot and one not in self.killed]
                here = [one for one in here if self.saw[one] is not State.DRAINING]
                assert len(here) <= self.under_way, "two workers in one slot"
                rolling = self.fleet.rolling
                if rolling is not None and rolling.candidate != worker:
                    assert self.alive.get(rolling.candidate or 0) != slot, "a candidate starts there already"
                assert slot not in self.given_up or self.under_way
                assert phase == self.phases[-1]
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
                assert self.alive[worker] == slot < self.size
                assert self.saw[worker] is State.READY
                assert slot not in self.routed
                self.routed[slot] = worker
                self.given_up.discard(slot)
            case Unroute(slot, worker):
                assert self.routed.pop(slot) == worker
            case DrainWorker(worker, code, _):
                assert code == (SHUTDOWN_CODE if self.stopped else RELOAD_CODE)
                gone = isinstance(self.event, ScaleAsked) and self.alive[worker] >= self.size
                assert self.stopped or self.under_way or gone
                assert worker not in self.routed.values()
                assert self.saw[worker] is State.READY
                assert worker not in self.killed
                self.saw[worker] = State.DRAINING
            case GiveUpSlot(slot, _):
                assert not self.stopped, "nobody cares any more"
                assert slot not in self.given_up
                self.given_up.add(slot)
            case _:
                self.check_course(command)

    def check_course(self, command: Command) -> None:
        """Commands about reloads, replacements, slots and the end."""
        match command:
            case Reloading(phase):
                assert not self.stopped
                assert not self.under_way
                assert phase == self.phases[-1] + 1, "a phase is never used again"
                self.reload, self.least = phase, self.size
                self.phases.append(phase)
                self.owes_another = False
            case Reloaded(phase) | ReloadFailed(phase):
                assert phase == self.reload
                assert not self.stopped
                self.reload = None
                running = {slot for slot, worker in self.routed.items() if self.fleet.workers[worker].phase == phase}
                if isinstance(command, Reloaded):
                    # A slot that has come meanwhile has the new code, and its first worker may still be starting.
                    assert running >= set(range(self.least))
                else:
                    assert set(command.switched) == running
                    assert command.reason
            case Replacing(slot, worker, why):
                assert not self.stopped
                assert not self.under_way
                assert self.routed[slot] == worker
                assert why
                self.replacing = (slot, worker)
            case Replaced(slot, worker):
                assert self.replacing == (slot, worker)
                assert self.routed[slot] not in (worker, None)
                self.replacing = None
            case ReplaceFailed(slot, worker, reason):
                assert self.replacing == (slot, worker)
                assert reason
                self.replacing = None
            case Resize(size):
                assert isinstance(self.event, ScaleAsked)
                assert size == self.event.size != self.size
                assert not [slot for slot in self.routed if slot >= size], "a slot that is gone is routed to"
                assert size > self.size or self.routed, "nobody is left to serve"
                self.given_up = {slot for slot in self.given_up if slot < size}
                self.size = size
                self.least = min(self.least, size)
            case Listen():
                self.listens += 1
                assert self.routed or self.saw, "somebody was ready"
            case StopListening():
                self.stop_listens += 1
            case Finish(exit_code):
                assert not self.alive
                assert not self.stopped or exit_code in (ExitCode.OK, ExitCode.TARGET, self.decided)
                assert self.stopped or not self.patient
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
        self.stopped = self.stopped or self.ends_all(worker, code)
        self.give(BootRefused(worker, code, "why"))

    def ends_all(self, worker: int, code: int) -> bool:
        """Say whether this refusal ends the cluster."""
        starting = self.fleet.workers[worker].state is State.STARTING
        return starting and code == 4 and not self.fleet.ever_ready and not self.patient

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

    @rule()
    def ask_for_a_reload(self) -> None:
        idle = not self.under_way and self.fleet.exit_code is None
        assert [type(command) for command in self.give(ReloadAsked())][:1] == ([Reloading] if idle else [])

    @rule(number=st.integers(0, 9))
    def replace(self, number: int) -> None:
        worker = self.pick(number, State.READY, State.DRAINING, State.STARTING)
        if worker is not None:
            commands = self.give(ReplaceAsked(worker, "it is old"))
            ready = self.fleet.exit_code is None and worker in self.routed.values()
            assert not commands or (ready and isinstance(commands[0], Replacing))

    @rule(size=st.sampled_from([0, 1, 1, 2, 2, 3, 4, 5, 2000]))
    def scale(self, size: int) -> None:
        self.give(ScaleAsked(size))
        assert 1 <= self.size <= 1024

    @precondition(lambda self: self.fleet.rolling is not None)
    @rule()
    def let_the_candidate_become_ready(self) -> None:
        assert self.fleet.rolling is not None
        worker = self.fleet.rolling.candidate
        if worker is not None and worker not in self.refused:
            self.give(BecameReady(worker))

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
        candidates = [worker.id for worker in fleet.workers.values() if worker.state is State.CANDIDATE]
        if fleet.exit_code is not None:
            assert fleet.rolling is None
            return
        assert (fleet.rolling is None) == (not self.under_way)
        assert len(fleet.slots) == fleet.size == self.size
        assert fleet.rolling is not None or not fleet.to_replace, "a replacement waits for nothing"
        assert candidates == ([] if fleet.rolling is None else [fleet.rolling.candidate])
        assert self.owes_another == (fleet.rolling is not None and fleet.rolling.again)
        for number, slot in enumerate(fleet.slots):
            ways = (slot.worker is not None) + (slot.respawn_at is not None) + slot.failed
            turn = fleet.rolling is not None and fleet.rolling.slot == number
            assert ways == 1 or (turn and ways == 0), "a dead end"

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


class PatientLives(FleetLives):
    """The same, where somebody mends the program: nothing but a stop ends it."""

    patient = True


TestFleetLives = FleetLives.TestCase
TestFleetLives.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestPatientLives = PatientLives.TestCase
TestPatientLives.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
