"""Slots and their workers: which to start, to route to, to drain, to kill, and when to give up.

One worker's life::

    starting, candidate --became_ready--> ready --stop, replaced--> draining --exited--> exited
        |                                   |                          |
        +----due, stop, replaced------------+-----------due------------+---> killed --exited--> exited

`TABLE` is that picture: for each state and event, what is done. An event that it lacks is a bug and raises. A slot
whose worker has exited gets a new one after a back-off; a slot whose workers fail to boot again and again is `failed`.

A reload goes from slot to slot. A `candidate` starts beside the slot's worker, whatever that one is doing; when it is
ready, it takes the slot, and the other is drained, or killed where it was not ready either. Nothing else is started in
the slot meanwhile. The reload ends at the first candidate that does not become ready, and where a worker that it has
brought is lost: the slots that it has not reached keep their workers. A stop ends it too, without a word of its own.
The replacement of a single worker goes the same way, when no reload is under way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from wscluster.errors import ExitCode
from wscluster.gateway import rolling, scaling
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
    ReplaceAsked,
    Route,
    ScaleAsked,
    Spawn,
    SpawnFailed,
    State,
    StopAsked,
    StopForced,
    StopListening,
    Ticked,
    Unroute,
)
from wscluster.gateway.rolling import NO_REASON, Rolling, Slot, Worker

FIRST_BACKOFF = 0.1
MAX_BACKOFF = 10.0
STABLE_SECONDS = 10.0
"""A worker that was ready for this long clears its slot's back-off."""
MAX_BOOT_FAILURES = 5
"""Boots of one slot that fail one after the other until it is given up."""
MAX_FIRST_BOOT_FAILURES = 3
"""The same, while no worker was ever ready: the fault is then more likely the program than the moment."""
EXIT_SECONDS = 2.0
"""What a worker gets to exit by itself after its last deadline or its failed boot."""
PROGRAM_EXIT_SECONDS = 5.0
"""What a program gets to exit by itself after its last deadline: it is signalled only then."""
LATE_SECONDS = 1.0
"""A deadline that is noticed so much too late says nothing about the worker: this process was held up, by Ctrl-Z or by
the machine, and the worker may have been so too. It gets `EXIT_SECONDS` more."""
SHUTDOWN_CODE = 1001


@dataclass(slots=True)
class Fleet:
    """Decides over the workers: ``handle(event, now)`` returns the commands that follow.

    Args:
        size: Number of slots.
        startup_timeout: Seconds that a worker gets to become ready.
        beat_timeout: Seconds without a beat after which a ready worker is killed.
        graceful_timeout: Seconds that a drain may take.
        patient: Somebody mends the program and asks for a reload then: a boot that fails while no worker was ever ready
            is not tried again by itself, and slots that are all given up are no end.
        exit_timeout: Seconds that a worker gets to exit after its drain.
        late_hint: What more to say of a worker that is not ready in time.

    Attributes:
        phase: Of the last reload that reached every slot.
        newest_phase: Of the last reload that was begun, and of every worker that was started since: they have its code.
        rolling: The reload, or the replacement of one worker, that is under way.
        to_replace: Workers whose replacement waits for its turn.
    """

    size: int
    startup_timeout: float
    beat_timeout: float
    graceful_timeout: float
    patient: bool = False
    exit_timeout: float = EXIT_SECONDS
    late_hint: str = ""
    phase: int = 1
    newest_phase: int = 1
    rolling: Rolling | None = None
    to_replace: list[ReplaceAsked] = field(default_factory=list)
    retired_restarts: int = 0
    slots: list[Slot] = field(default_factory=list)
    workers: dict[int, Worker] = field(default_factory=dict)
    last_worker: int = 0
    ever_ready: bool = False
    listening: bool = False
    stopping: bool = False
    exit_code: int | None = None
    finished: bool = False

    def __post_init__(self) -> None:
        self.slots = [Slot(respawn_at=0.0) for _ in range(self.size)]

    @property
    def restarts(self) -> int:
        """Workers that were started in place of one that had exited."""
        return self.retired_restarts + sum(max(0, slot.spawns - 1) for slot in self.slots)

    def slot_of(self, worker: Worker) -> Slot | None:
        """Return the slot that is the worker's own; None where it is another's by now, or no more."""
        slot = self.slots[worker.slot] if worker.slot < len(self.slots) else None
        return slot if slot is not None and slot.worker == worker.id else None

    def ready_slots(self) -> list[int]:
        """Return the slots that have a ready worker."""
        return [worker.slot for worker in self.workers.values() if worker.state is State.READY]

    def handle(self, event: Event, now: float) -> list[Command]:
        """Return what follows from ``event``, in the order in which it is to be done.

        Only `Ticked` judges who is too late: the beat of one worker may be heard while another's still waits to be
        read. The caller sends it when all is read.

        Raises:
            KeyError: The event does not fit the worker's state: a bug of the caller.
        """
        commands: list[Command] = []
        match event:
            case ReloadAsked():
                rolling.reload(self, now, commands)
            case ReplaceAsked():
                rolling.replace(self, event, now, commands)
            case ScaleAsked(size):
                scaling.scale(self, size, now, commands)
            case StopAsked():
                self._stop(commands, now)
            case StopForced():
                self._force(commands)
            case Ticked():
                self._fire_deadlines(now, commands)
            case _:
                worker = self.workers[event.worker]
                TABLE[worker.state, type(event)](self, worker, event, now, commands)
        self._spawn_due(now, commands)
        self._settle(commands)
        return commands

    def next_deadline(self) -> float | None:
        """When the next `Ticked` is due; None where only events can change anything."""
        due = [worker.deadline for worker in self.workers.values() if worker.deadline is not None]
        if self.exit_code is None:
            due += [slot.respawn_at for _, slot in self._waiting_slots() if slot.respawn_at is not None]
        return min(due, default=None)

    # Transitions: (worker, event, now, commands)

    def became_ready(self, worker: Worker, _event: Event, now: float, commands: list[Command]) -> None:
        slot = self.slots[worker.slot]
        worker.state = State.READY
        worker.ready_at = now
        worker.deadline = now + self.beat_timeout
        slot.boot_failures = 0
        slot.settled = self.ever_ready = True
        commands.append(Route(worker.slot, worker.id))

    def _beaten(self, worker: Worker, _event: Event, now: float, _commands: list[Command]) -> None:
        worker.deadline = now + self.beat_timeout

    def _candidate_refused(self, worker: Worker, event: BootRefused, now: float, _commands: list[Command]) -> None:
        worker.boot_error = event.reason
        worker.deadline = now + EXIT_SECONDS

    def _boot_refused(self, worker: Worker, event: BootRefused, now: float, commands: list[Command]) -> None:
        self._candidate_refused(worker, event, now, commands)
        hopeless = event.hopeless or event.exit_code == ExitCode.TARGET
        if hopeless and not self.ever_ready and not self.patient:
            self._finish(ExitCode(event.exit_code), commands)

    def _boot_exited(self, worker: Worker, event: Exited | SpawnFailed, now: float, commands: list[Command]) -> None:
        slot = self.slots[worker.slot]
        slot.boot_failures += 1
        limit = MAX_BOOT_FAILURES if self.ever_ready else 1 if self.patient else MAX_FIRST_BOOT_FAILURES
        if slot.boot_failures >= limit and self.exit_code is None:
            slot.failed = slot.settled = True
            count = f"{slot.boot_failures} boots failed, the last one: " if limit > 1 else ""
            commands.append(GiveUpSlot(worker.slot, count + (worker.boot_error or NO_REASON)))
        self.exited(worker, event, now, commands)

    def _not_spawned(self, worker: Worker, event: SpawnFailed, now: float, commands: list[Command]) -> None:
        """The system lacks something, descriptors or memory, and may have it again: the slot is not given up."""
        if self.ever_ready:
            self.exited(worker, event, now, commands)
        else:
            self._boot_exited(worker, event, now, commands)

    def _crashed(self, worker: Worker, event: Exited, now: float, commands: list[Command]) -> None:
        commands.append(Unroute(worker.slot, worker.id))
        self.exited(worker, event, now, commands)
        rolling.lose(self, worker, "it ended while the reload went on", now, commands)

    def _kill_done(self, worker: Worker, event: Exited, now: float, commands: list[Command]) -> None:
        if worker.ready_at is None and self.slot_of(worker) is not None:
            self._boot_exited(worker, event, now, commands)
        else:
            self.exited(worker, event, now, commands)

    def exited(self, worker: Worker, event: Exited | SpawnFailed, now: float, _commands: list[Command]) -> None:
        worker.state = State.EXITED
        worker.deadline = None
        del self.workers[worker.id]
        slot = self.slot_of(worker)
        if slot is None:  # it was drained or replaced, or was a candidate
            return
        slot.worker = None
        if worker.ready_at is not None and now - worker.ready_at >= STABLE_SECONDS:
            slot.crashes = 0
        if not slot.failed and self.exit_code is None:
            backoff = min(MAX_BACKOFF, FIRST_BACKOFF * 2.0**slot.crashes)
            slot.crashes = min(slot.crashes + 1, 16)
            slot.respawn_at = now + backoff * (0.5 + event.jitter / 2)

    def _nothing(self, worker: Worker, event: Event, now: float, commands: list[Command]) -> None:
        """What the worker wrote before it read our last word, or before the signal reached it."""

    # Deadlines, starts and ends

    def _fire_deadlines(self, now: float, commands: list[Command]) -> None:
        for worker in list(self.workers.values()):
            if worker.deadline is None or worker.deadline > now:
                continue
            if now - worker.deadline > LATE_SECONDS:
                worker.deadline = now + EXIT_SECONDS
                continue
            match worker.state:
                case State.STARTING:
                    late = worker.boot_error = worker.boot_error or self._late()
                    # It has had its time: the others are not kept waiting while it is tried again.
                    self.slots[worker.slot].settled = True
                    self.kill(worker, late, commands)
                case State.CANDIDATE:
                    late = worker.boot_error or self._late()
                    self.kill(worker, late, commands)
                    rolling.abort(self, worker, late, now, commands)
                case State.READY:
                    stuck = f"no beat for {self.beat_timeout:g} s: its event loop is stuck"
                    self.kill(worker, stuck, commands)
                    rolling.lose(self, worker, stuck, now, commands)
                case _:  # draining: the others have no deadline
                    self.kill(worker, f"not drained within {self.graceful_timeout:g} s", commands)

    def _late(self) -> str:
        return f"not ready within {self.startup_timeout:g} s{self.late_hint}"

    def kill(self, worker: Worker, reason: str, commands: list[Command]) -> None:
        if worker.state is State.KILLED:
            return
        if worker.state is State.READY:
            commands.append(Unroute(worker.slot, worker.id))
        worker.state = State.KILLED
        worker.deadline = None
        commands.append(Kill(worker.id, reason))

    def _waiting_slots(self) -> list[tuple[int, Slot]]:
        """Return the slots that get a worker at their `respawn_at`: not the one in which a candidate starts."""
        turn = None if self.rolling is None else self.rolling.slot
        return [
            (number, slot) for number, slot in enumerate(self.slots) if slot.respawn_at is not None and number != turn
        ]

    def _spawn_due(self, now: float, commands: list[Command]) -> None:
        if self.exit_code is not None:
            return
        for number, slot in self._waiting_slots():
            if slot.respawn_at is not None and slot.respawn_at <= now:
                slot.respawn_at = None
                slot.spawns += 1
                slot.worker = self.spawn(number, State.STARTING, now, commands).id

    def spawn(self, slot: int, state: State, now: float, commands: list[Command]) -> Worker:
        self.last_worker += 1
        due = now + self.startup_timeout
        worker = Worker(self.last_worker, slot, self.newest_phase, now, state, deadline=due)
        self.workers[worker.id] = worker
        commands.append(Spawn(slot, worker.id, worker.phase))
        return worker

    def _settle(self, commands: list[Command]) -> None:
        """Begin to accept when every slot has come up or was given up; end when nothing is left."""
        if self.exit_code is None:
            if all(slot.failed for slot in self.slots) and self.rolling is None and not self.patient:
                self._finish(ExitCode.FAILED if self.ever_ready else ExitCode.NOT_STARTED, commands)
            elif not self.listening and self.ever_ready and all(slot.settled for slot in self.slots):
                self.listening = True
                commands.append(Listen())
        if self.exit_code is not None and not self.workers and not self.finished:
            self.finished = True
            commands.append(Finish(self.exit_code))

    def _finish(self, exit_code: int, commands: list[Command]) -> None:
        """End with ``exit_code`` as soon as every worker is gone."""
        self.exit_code = exit_code
        self._halt(commands)
        for worker in self.workers.values():
            if worker.state in (State.READY, State.DRAINING) or not worker.boot_error:
                self.kill(worker, "the cluster cannot run", commands)

    def _stop(self, commands: list[Command], now: float) -> None:
        self.stopping = True
        if self.exit_code is not None:
            return
        self.exit_code = ExitCode.OK
        self._halt(commands)
        for worker in self.workers.values():
            if worker.state is State.READY:
                commands.append(Unroute(worker.slot, worker.id))
                self.drain(worker, SHUTDOWN_CODE, now, commands)
            elif worker.state in (State.STARTING, State.CANDIDATE):
                self.kill(worker, "stopped while it was starting", commands)

    def _force(self, commands: list[Command]) -> None:
        self.stopping = True
        if self.exit_code is None:
            self.exit_code = ExitCode.OK
            self._halt(commands)
        for worker in self.workers.values():
            self.kill(worker, "stop forced", commands)

    def drain(self, worker: Worker, code: int, now: float, commands: list[Command]) -> None:
        worker.state = State.DRAINING
        worker.deadline = now + self.graceful_timeout + self.exit_timeout
        commands.append(DrainWorker(worker.id, code, self.graceful_timeout))

    def _halt(self, commands: list[Command]) -> None:
        """Nothing new begins any more."""
        self.rolling = None
        self.to_replace.clear()
        if self.listening:
            self.listening = False
            commands.append(StopListening())


Transition = Callable[..., None]

TABLE: dict[tuple[State, type[Event]], Transition] = {
    (State.STARTING, BecameReady): Fleet.became_ready,
    (State.STARTING, Beaten): Fleet._nothing,
    (State.STARTING, BootRefused): Fleet._boot_refused,
    (State.STARTING, Exited): Fleet._boot_exited,
    (State.STARTING, SpawnFailed): Fleet._not_spawned,
    (State.CANDIDATE, BecameReady): rolling.take_over,
    (State.CANDIDATE, Beaten): Fleet._nothing,
    (State.CANDIDATE, BootRefused): Fleet._candidate_refused,
    (State.CANDIDATE, Exited): rolling.candidate_exited,
    (State.CANDIDATE, SpawnFailed): rolling.candidate_exited,
    (State.READY, Beaten): Fleet._beaten,
    (State.READY, Exited): Fleet._crashed,
    (State.DRAINING, Beaten): Fleet._nothing,
    (State.DRAINING, Exited): Fleet.exited,
    (State.DRAINING, SpawnFailed): Fleet.exited,
    (State.KILLED, BecameReady): Fleet._nothing,
    (State.KILLED, Beaten): Fleet._nothing,
    (State.KILLED, BootRefused): Fleet._nothing,
    (State.KILLED, Exited): Fleet._kill_done,
    (State.KILLED, SpawnFailed): Fleet.exited,
}
