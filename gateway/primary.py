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
from wscluster.gateway.redis_server import RedisServer
from wscluster.gateway.systemd import Notifier
from wscluster.loops import loop_name
from wscluster.packets import (
    Adopted,
    Answer,
    Beat,
    Bind,
    BootFailed,
    BoundAt,
    BusAt,
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
    ) -> None:
        self.loop = loop
        self._config = config
        self._fleet = make_fleet(config)
        self._crew = Crew(
            loop, to_json(config), self._received, self._link_ended, self._exited, output, own_groups=bool(config.run)
        )
        self._intake = Intake(config, bound, loop, self._crew.send, self._arm)
        self._asking = Asking(loop, self._intake.listening, self._tell_bound, self._bound)
        self._notifier = Notifier(loop)
        self._helper = helper
        self._events = EventLog(config.operate.ready_fd, loop, self._observe)
        self._bus = RedisServer(loop, self._bus_moved)
        self._bus_at: BusAt | None = None
        self._wants_bus: set[int] = set()
        self._boot_faults = BootFaults(output.show)
        self.operations = Operations(
            loop, config, self._fleet, self._events, self._boot_faults, self._configure, self._step, read_config
        )
        self._inquiries = Inquiries(loop, self._crew.send)
        self._timer: asyncio.TimerHandle | None = None
        self._finished: asyncio.Future[int] = loop.create_future()
        self._answers = Answers(
            config=config,
            fleet=self._fleet,
            ledger=self._intake.ledger,
            crew=self._crew,
            bus=self._bus,
            listening=self._intake.listening,
            started_at=loop.time(),
            stop=self.stop,
            force=self.force,
            operations=self.operations,
            connections=Connections(self._fleet, self._intake.ledger, self._inquiries, config.placement.sticky),
            logs=LogPages(output.ring, self._finished),
            finished=self._finished,
        )
        self._metrics: MetricsServer | None = None
        if metrics is not None:
            # Its libraries take a tenth of a second to import: only who needs them pays.
            from wscluster.gateway.metrics import make_server

            self._metrics = make_server(metrics, self._answers, self._intake)
        self._control = ControlServer(config.operate.control_socket, self._answers.answer)
        self._fault: StartError | None = None

    async def run(self) -> int:
        """Live until every worker has exited; returns the exit code.

        Raises:
            StartError: The cluster never came up; the text says why.
        """
        with contextlib.ExitStack() as at_end:
            at_end.callback(self._intake.close)
            at_end.callback(self._notifier.close)
            at_end.callback(self._bus.close)
            at_end.callback(self._intake.stop_accepting)
            at_end.callback(self._asking.close)
            await self._control.start()
            try:
                if self._metrics is not None:
                    await self._metrics.start()
                    logger.info("metrics and dashboard on http://%s", self._metrics.address)
                    self._events.emit("metrics", address=self._metrics.address)
                for name in self._intake.listening.names:
                    self._bound(name)
                self._step(fleet.Ticked())
                exit_code = await self._finished
                at_end.close()
            finally:
                if self._timer is not None:
                    self._timer.cancel()
                await self._control.close()
                if self._metrics is not None:
                    await self._metrics.close()
        if self._fault is not None:
            raise self._fault
        self._events.emit("stopped")
        logger.info("stopped")
        self._events.close()
        return exit_code

    def stop(self) -> None:
        """Stop accepting, drain and end; asked a second time, end now."""
        if self._fleet.stopping:
            self.force()
            return
        logger.info("stopping: %g s for open connections; once more ends them now", self._fleet.graceful_timeout)
        self._step(fleet.StopAsked())

    def _configure(self, config: Config) -> None:
        """Let ``config`` hold from now on, for workers that start and for this process."""
        self._config = config
        self._crew.config = to_json(config)
        self._fleet.startup_timeout = config.fleet.worker_startup_timeout
        self._fleet.beat_timeout = config.fleet.timeout_worker_healthcheck
        self._fleet.graceful_timeout = config.fleet.graceful_timeout
        self._intake.ledger.slot_wait = config.placement.slot_wait
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
        helper = None if self._helper is None else self._helper.pid
        return self._crew.pids() | {self._bus.pid or 0, helper or 0}

    def _observe(self, event: str, facts: dict[str, Any]) -> None:
        self._notifier.event(event, facts)
        if self._helper is not None:
            self._helper.event(event, facts)

    # Decisions and what follows from them

    def _step(self, event: fleet.Event) -> None:
        for command in self._fleet.handle(event, self.loop.time()):
            self._carry_out(command)
        self.operations.look()
        self._arm()

    def _carry_out(self, command: fleet.Command) -> None:
        match command:
            case fleet.Spawn():
                self._spawn(command)
            case fleet.Route(slot, worker):
                self._intake.route(slot, worker)
            case fleet.Unroute(slot, worker):
                self._intake.unroute(slot, worker)
            case fleet.Kill(worker, reason):
                level = logging.DEBUG if self._fleet.exit_code is not None else logging.ERROR
                logger.log(level, "worker %d killed: %s", worker, reason)
                self._crew.kill(worker)
            case fleet.DrainWorker(worker, code, timeout):
                self._crew.send(worker, Drain(code, "", timeout, self._drain_rate()))
            case fleet.GiveUpSlot(slot, reason):
                logger.error("slot %d is given up: %s", slot, reason)
                self._boot_faults.given_up = reason
                self._intake.fail_slot(slot)
                if self._fleet.patient and all(one.failed for one in self._fleet.slots):
                    logger.warning("no worker is left: the next change of a file starts them again")
            case fleet.Listen():
                self._listen()
            case fleet.StopListening():
                self._events.emit("stopping")
                self._intake.stop()
            case fleet.Finish(exit_code):
                self._finish(exit_code)
            case fleet.Resize(size):
                self._intake.resize(size)
                self.operations.carried_out(command)
            case _:
                self.operations.carried_out(command)

    def _drain_rate(self) -> float:
        """Return what one worker may close in a second: all that drain at the same time share ``--drain-rate``."""
        drains = sum(worker.state is fleet.State.DRAINING for worker in self._fleet.workers.values())
        rolling = self._fleet.rolling
        together = len(self._fleet.slots) if rolling is not None and rolling.replaces is None else drains
        return self._config.fleet.drain_rate / max(1, together)

    def _arm(self) -> None:
        """Wake up at the next deadline. A timer that is too early is left alone: it costs one look."""
        deadlines = (self._fleet.next_deadline(), self._intake.next_deadline())
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
        self._crew.receive_all()
        self._intake.tick()
        self._step(fleet.Ticked())

    def _finish(self, exit_code: int) -> None:
        if exit_code in (ExitCode.NOT_STARTED, ExitCode.TARGET):
            self._fault = self._boot_faults.fault(exit_code)
        self.operations.end()
        self._finished.set_result(exit_code)

    # Listening

    def _listen(self) -> None:
        try:
            self._intake.start()
        except StartError as exc:
            self._fault = exc
            logger.error("%s", exc)
            self._step(fleet.StopForced())
            return
        names = self._intake.listening.names
        # What a program speaks is its own matter.
        scheme = "" if self._config.run else "http://" if self._config.tls.ssl_certfile is None else "https://"
        logger.info(
            "listening on %s with %d workers, sticky by %s, on %s; control socket %s",
            ", ".join(name if name.startswith("unix:") else f"{scheme}{name}" for name in names),
            len(self._fleet.slots),
            self._config.placement.sticky,
            loop_name(),
            self._control.path,
        )
        self._events.emit("ready", pid=os.getpid(), port=self._intake.listening.port, listeners=names)

    def _bound(self, name: str) -> None:
        self._events.emit("bound", listener=name)
        if self._fleet.listening:
            logger.info("listening on %s too", name)

    def _tell_bound(self, worker: int, packet: BoundAt) -> None:
        if worker in self._fleet.workers:  # else it has exited since it asked
            self._crew.send(worker, packet)

    # Workers

    def _spawn(self, command: fleet.Spawn) -> None:
        try:
            self._crew.spawn(command.slot, command.worker, command.phase)
        except OSError as exc:
            logger.error("worker %d of slot %d cannot be started: %s", command.worker, command.slot, exc)
            self.loop.call_soon(self._step, fleet.SpawnFailed(command.worker, random.random()))

    def _received(self, worker: int, packet: Packet, fds: list[int]) -> None:
        match packet:
            case Adopted(numbers):
                self._intake.adopt(worker, numbers)
            case Refused(numbers):
                self._intake.refuse(worker, numbers)
            case Beat(_, stats):
                self._intake.ledger.report(worker, stats.connections, stats.adopted)
                self._step(fleet.Beaten(worker))
                self.operations.beaten(worker, stats)
            case Ready():
                self._became_ready(worker)
            case BootFailed():
                self._boot_failed(worker, packet)
            case Returned(connections):
                self._intake.take_back(worker, connections, fds)
            case Answer():
                self._inquiries.answered(worker, packet)
            case Ended(numbers):
                self._intake.end(worker, numbers)
            case Bind() if self._config.run:
                self._asking.ask(worker, self._crew.pid(worker), packet)
            case WantBus():
                self._bus_wanted(worker)
            case _:
                logger.error("worker %d sent %s: ignored", worker, type(packet).__name__)

    def _became_ready(self, worker: int) -> None:
        known = self._fleet.workers[worker]
        if known.state not in (fleet.State.STARTING, fleet.State.CANDIDATE):
            return
        pid = self._crew.pid(worker)
        logger.info("worker %d ready in slot %d, pid %d", worker, known.slot, pid)
        self._events.emit("worker_ready", slot=known.slot, pid=pid, phase=known.phase)
        self.operations.became_ready(known.slot, known.phase)
        self._step(fleet.BecameReady(worker))

    def _boot_failed(self, worker: int, packet: BootFailed) -> None:
        self._boot_faults.tell(worker, packet, ever_ready=self._fleet.ever_ready)
        self._step(fleet.BootRefused(worker, packet.exit_code, packet.reason, packet.hopeless))

    def _exited(self, worker: int, pid: int, status: int) -> None:
        known = self._fleet.workers[worker]
        drained = known.state is fleet.State.DRAINING and status == 0
        expected = drained or known.boot_error or self._fleet.exit_code is not None
        level = logging.DEBUG if expected else logging.ERROR
        by_itself = self._config.run and known.state is fleet.State.READY
        ended = "exited: %s" if not by_itself else "exited: the program ended by itself, %s; it is started again"
        logger.log(level, f"worker %d of slot %d, pid %d, {ended}", worker, known.slot, pid, describe_status(status))
        self._events.emit("worker_exited", slot=known.slot, pid=pid, status=status)
        self._wants_bus.discard(worker)
        self.operations.forget(worker)
        self._inquiries.forget(worker)
        self._step(fleet.Exited(worker, status, random.random()))

    def _link_ended(self, worker: int) -> None:
        self._intake.lose(worker)

    # The bus

    def _bus_wanted(self, worker: int) -> None:
        known = self._bus_at
        self._wants_bus.add(worker)
        self._bus.start()  # says at once where it cannot: a program may have been installed since the last refusal
        if known is not None and self._bus_at is known:
            self._crew.send(worker, known)

    def _bus_moved(self, url: str | None, reason: str) -> None:
        self._bus_at = BusAt(url, reason)
        for worker in self._wants_bus:
            self._crew.send(worker, self._bus_at)
