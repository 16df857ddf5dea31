"""The primary: wires intake, fleet, links, bus and control socket; carries out what the fleet decides."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wscluster import logs
from wscluster.config import Config, to_json
from wscluster.errors import ExitCode, StartError
from wscluster.gateway import fleet_words as fleet
from wscluster.gateway.answers import Answers
from wscluster.gateway.asking import Asking
from wscluster.gateway.binding import Bound
from wscluster.gateway.boot_faults import BootFaults
from wscluster.gateway.connections import Connections
from wscluster.gateway.control import ControlServer, InvalidRequest
from wscluster.gateway.crew import Crew, describe_status
from wscluster.gateway.events import EventLog
from wscluster.gateway.inquiries import Inquiries
from wscluster.gateway.intake import Intake
from wscluster.gateway.log_pages import LogPages
from wscluster.gateway.operations import Operations, make_fleet
from wscluster.gateway.output import Output
from wscluster.gateway.systemd import Notifier
from wscluster.gateway.takeover import resume
from wscluster.gateway.workers_bus import WorkersBus
from wscluster.loops import loop_name
from wscluster.packets import (
    Adopted,
    Answer,
    Beat,
    Bind,
    BootFailed,
    BoundAt,
    Drain,
    Ended,
    Packet,
    Ready,
    Refused,
    Returned,
    WantBus,
)

if TYPE_CHECKING:
    from wscluster.gateway.event_helper import EventHelper
    from wscluster.gateway.metrics_server import MetricsServer
    from wscluster.gateway.state import State

logger = logging.getLogger("wscluster.primary")


class Primary:
    """One cluster, from its first worker to its last.

    Args:
        config: What to serve or to run; ``fleet.workers`` is a number here.
        bound: Sockets to accept from; none for a program, which asks for its own.
        read_config: Reads the configuration again, at a reload; it raises `ConfigError`.
        output: The log, and what the workers write.
        metrics: The socket of the metrics port.
        helper: Gets each event too.
        state: What the process before has left; this one goes on with it.
    """

    def __init__(
        self,
        config: Config,
        bound: list[Bound],
        loop: asyncio.AbstractEventLoop,
        read_config: Callable[[], Config],
        output: Output,
        metrics: Bound | None = None,
        helper: EventHelper | None = None,
        state: State | None = None,
    ) -> None:
        self.loop = loop
        self.output = output
        self.started_at = loop.time() if state is None else state.started_at
        self._state = state
        self.config = config
        self.fleet = make_fleet(config) if state is None else state.fleet
        self.crew = Crew(
            loop, to_json(config), self._received, self._link_ended, self._exited, output, own_groups=bool(config.run)
        )
        self.intake = Intake(config, bound, loop, self.crew.send, self._arm)
        self.asking = Asking(loop, self.intake.listening, self._tell_bound, self._bound)
        self.notifier = Notifier(loop)
        self.helper = helper
        self.events = EventLog(config.operate.ready_fd, loop, self._observe)
        self.bus = WorkersBus(loop, self.crew.send)
        self.boot_faults = BootFaults(output.show)
        self.operations = Operations(
            loop, config, self.fleet, self.events, self.boot_faults, self._configure, self._step, read_config
        )
        self.inquiries = Inquiries(loop, self.crew.send)
        self._timer: asyncio.TimerHandle | None = None
        self._finished: asyncio.Future[int] = loop.create_future()
        self.pages = LogPages(output.ring, self._finished)
        self.on_step: Callable[[], None] = lambda: None
        """Called after each step of the fleet."""
        self._answers = Answers(
            config=config,
            fleet=self.fleet,
            ledger=self.intake.ledger,
            crew=self.crew,
            bus=self.bus.server,
            listening=self.intake.listening,
            started_at=self.started_at,
            stop=self.stop,
            force=self.force,
            operations=self.operations,
            connections=Connections(self.fleet, self.intake.ledger, self.inquiries, config.placement.sticky),
            logs=self.pages,
            finished=self._finished,
        )
        self.metrics: MetricsServer | None = None
        if metrics is not None:
            # Its libraries take a tenth of a second to import: only who needs them pays.
            from wscluster.gateway.metrics import make_server

            self.metrics = make_server(metrics, self._answers, self.intake)
        self.control = ControlServer(config.operate.control_socket, self._answers.answer)
        self._fault: StartError | None = None

    async def run(self) -> int:
        """Live until every worker has exited; returns the exit code.

        Raises:
            StartError: The cluster never came up; the text says why.
        """
        with contextlib.ExitStack() as at_end:
            at_end.callback(self.intake.close)
            at_end.callback(self.notifier.close)
            at_end.callback(self.bus.server.close)
            at_end.callback(self.intake.stop_accepting)
            at_end.callback(self.asking.close)
            state = self._state
            if state is not None:
                resume(self, state)
            await self.control.start(None if state is None else state.control)
            try:
                if self.metrics is not None:
                    await self.metrics.start()
                if state is None:
                    self._tell_where()
                self._step(fleet.Ticked())
                exit_code = await self._finished
                at_end.close()
            finally:
                if self._timer is not None:
                    self._timer.cancel()
                await self.control.close()
                if self.metrics is not None:
                    await self.metrics.close()
        if self._fault is not None:
            raise self._fault
        self.events.emit("stopped")
        logger.info("stopped")
        self.events.close()
        return exit_code

    def _tell_where(self) -> None:
        if self.metrics is not None:
            logger.info("metrics and dashboard on http://%s", self.metrics.address)
            self.events.emit("metrics", address=self.metrics.address)
        for name in self.intake.listening.names:
            self._bound(name)

    @property
    def finished(self) -> bool:
        """Whether everything has ended."""
        return self._finished.done()

    def stop(self) -> None:
        """Stop accepting, drain and end; asked a second time, end now."""
        if self.fleet.stopping:
            self.force()
            return
        logger.info("stopping: %g s for open connections; once more ends them now", self.fleet.graceful_timeout)
        self._step(fleet.StopAsked())

    def _configure(self, config: Config) -> None:
        """Let ``config`` hold from now on, for workers that start and for this process."""
        self.config = config
        self.crew.config = to_json(config)
        self.fleet.startup_timeout = config.fleet.worker_startup_timeout
        self.fleet.beat_timeout = config.fleet.timeout_worker_healthcheck
        self.fleet.graceful_timeout = config.fleet.graceful_timeout
        self.intake.ledger.slot_wait = config.placement.slot_wait
        logs.set_level(config.operate.log_level)

    def scale(self, change: str) -> None:
        """Have one slot more (``+1``) or less (``-1``)."""
        try:
            self.operations.scale(change)
        except InvalidRequest as exc:
            logger.warning("not scaled: %s", exc)

    def force(self) -> None:
        """End now: every worker is killed."""
        logger.warning("stopping at once")
        self._step(fleet.StopForced())

    def child_pids(self) -> set[int]:
        """Return the processes that are this one's own: its workers, the private Valkey, the one of ``--on-event``."""
        helper = None if self.helper is None else self.helper.pid
        return self.crew.pids() | {self.bus.server.pid or 0, helper or 0}

    def _observe(self, event: str, facts: dict[str, Any]) -> None:
        self.notifier.event(event, facts)
        if self.helper is not None:
            self.helper.event(event, facts)

    # Decisions and what follows from them

    def _step(self, event: fleet.Event) -> None:
        for command in self.fleet.handle(event, self.loop.time()):
            self._carry_out(command)
        self.operations.look()
        self._arm()
        self.on_step()

    def _carry_out(self, command: fleet.Command) -> None:
        match command:
            case fleet.Spawn():
                self._spawn(command)
            case fleet.Route(slot, worker):
                self.intake.route(slot, worker)
            case fleet.Unroute(slot, worker):
                self.intake.unroute(slot, worker)
            case fleet.Kill(worker, reason):
                level = logging.DEBUG if self.fleet.exit_code is not None else logging.ERROR
                logger.log(level, "worker %d killed: %s", worker, reason)
                self.crew.kill(worker)
            case fleet.DrainWorker(worker, code, timeout):
                self.crew.send(worker, Drain(code, "", timeout, self._drain_rate()))
            case fleet.GiveUpSlot(slot, reason):
                logger.error("slot %d is given up: %s", slot, reason)
                self.boot_faults.given_up = reason
                self.intake.fail_slot(slot)
                if self.fleet.patient and all(one.failed for one in self.fleet.slots):
                    logger.warning("no worker is left: the next change of a file starts them again")
            case fleet.Listen():
                self._listen()
            case fleet.StopListening():
                self.events.emit("stopping")
                self.intake.stop()
            case fleet.Finish(exit_code):
                self._finish(exit_code)
            case fleet.Resize(size):
                self.intake.resize(size)
                self.operations.carried_out(command)
            case _:
                self.operations.carried_out(command)

    def _drain_rate(self) -> float:
        """Return what one worker may close in a second: all that drain at the same time share ``--drain-rate``."""
        drains = sum(worker.state is fleet.State.DRAINING for worker in self.fleet.workers.values())
        rolling = self.fleet.rolling
        together = len(self.fleet.slots) if rolling is not None and rolling.replaces is None else drains
        return self.config.fleet.drain_rate / max(1, together)

    def _arm(self) -> None:
        """Wake up at the next deadline. A timer that is too early is left alone: it costs one look."""
        deadlines = (self.fleet.next_deadline(), self.intake.next_deadline())
        due = min((deadline for deadline in deadlines if deadline is not None), default=None)
        if due is None or self._finished.done():
            return
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = self.loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        # What a worker has said in time is heard before it is judged, however late this process is itself.
        self.crew.receive_all()
        self.intake.tick()
        self._step(fleet.Ticked())

    def _finish(self, exit_code: int) -> None:
        if exit_code in (ExitCode.NOT_STARTED, ExitCode.TARGET):
            self._fault = self.boot_faults.fault(exit_code)
        self.operations.end()
        self._finished.set_result(exit_code)

    # Listening

    def _listen(self) -> None:
        try:
            self.intake.start()
        except StartError as exc:
            self._fault = exc
            logger.error("%s", exc)
            self._step(fleet.StopForced())
            return
        names = self.intake.listening.names
        # What a program speaks is its own matter.
        scheme = "" if self.config.run else "http://" if self.config.tls.ssl_certfile is None else "https://"
        logger.info(
            "listening on %s with %d workers, sticky by %s, on %s; control socket %s",
            ", ".join(name if name.startswith("unix:") else f"{scheme}{name}" for name in names),
            len(self.fleet.slots),
            self.config.placement.sticky,
            loop_name(),
            self.control.path,
        )
        self.events.emit("ready", pid=os.getpid(), port=self.intake.listening.port, listeners=names)

    def _bound(self, name: str) -> None:
        self.events.emit("bound", listener=name)
        if self.fleet.listening:
            logger.info("listening on %s too", name)

    def _tell_bound(self, worker: int, packet: BoundAt) -> None:
        if worker in self.fleet.workers:  # else it has exited since it asked
            self.crew.send(worker, packet)

    # Workers

    def _spawn(self, command: fleet.Spawn) -> None:
        try:
            self.crew.spawn(command.slot, command.worker, command.phase)
        except OSError as exc:
            logger.error("worker %d of slot %d cannot be started: %s", command.worker, command.slot, exc)
            self.loop.call_soon(self._step, fleet.SpawnFailed(command.worker, random.random()))

    def _received(self, worker: int, packet: Packet, fds: list[int]) -> None:
        match packet:
            case Adopted(numbers):
                self.intake.adopt(worker, numbers)
            case Refused(numbers):
                self.intake.refuse(worker, numbers)
            case Beat(_, stats):
                self.intake.ledger.report(worker, stats.connections, stats.adopted)
                self._step(fleet.Beaten(worker))
                self.operations.beaten(worker, stats)
            case Ready():
                self._became_ready(worker)
            case BootFailed():
                self._boot_failed(worker, packet)
            case Returned(connections):
                self.intake.take_back(worker, connections, fds)
            case Answer():
                self.inquiries.answered(worker, packet)
            case Ended(numbers):
                self.intake.end(worker, numbers)
            case Bind() if self.config.run:
                self.asking.ask(worker, self.crew.pid(worker), packet)
            case WantBus():
                self.bus.want(worker)
            case _:
                logger.error("worker %d sent %s: ignored", worker, type(packet).__name__)

    def _became_ready(self, worker: int) -> None:
        known = self.fleet.workers[worker]
        if known.state not in (fleet.State.STARTING, fleet.State.CANDIDATE):
            return
        pid = self.crew.pid(worker)
        logger.info("worker %d ready in slot %d, pid %d", worker, known.slot, pid)
        self.events.emit("worker_ready", slot=known.slot, pid=pid, phase=known.phase)
        self.operations.became_ready(known.slot, known.phase)
        self._step(fleet.BecameReady(worker))

    def _boot_failed(self, worker: int, packet: BootFailed) -> None:
        self.boot_faults.tell(worker, packet, ever_ready=self.fleet.ever_ready)
        self._step(fleet.BootRefused(worker, packet.exit_code, packet.reason, packet.hopeless))

    def _exited(self, worker: int, pid: int, status: int) -> None:
        known = self.fleet.workers[worker]
        drained = known.state is fleet.State.DRAINING and status == 0
        expected = drained or known.boot_error or self.fleet.exit_code is not None
        level = logging.DEBUG if expected else logging.ERROR
        by_itself = self.config.run and known.state is fleet.State.READY
        ended = "exited: %s" if not by_itself else "exited: the program ended by itself, %s; it is started again"
        logger.log(level, f"worker %d of slot %d, pid %d, {ended}", worker, known.slot, pid, describe_status(status))
        self.events.emit("worker_exited", slot=known.slot, pid=pid, status=status)
        self.bus.forget(worker)
        self.operations.forget(worker)
        self.inquiries.forget(worker)
        self._step(fleet.Exited(worker, status, random.random()))

    def _link_ended(self, worker: int) -> None:
        self.intake.lose(worker)
