"""What people ask of a running cluster: a reload, other slots, a drain; and workers that have served enough."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from wscluster.config import Config, ConfigError
from wscluster.gateway import fleet_words as words
from wscluster.gateway.boot_faults import BootFaults
from wscluster.gateway.control import InvalidRequest
from wscluster.gateway.draining import DrainProgress
from wscluster.gateway.events import EventLog
from wscluster.gateway.fleet import EXIT_SECONDS, PROGRAM_EXIT_SECONDS, Fleet
from wscluster.gateway.reconfig import reconfigure
from wscluster.gateway.recycling import Recycler
from wscluster.gateway.reloads import Outcome, Reloads, Tell
from wscluster.gateway.scaling import refuse_scale
from wscluster.packets import Stats

LISTENS_NOWHERE = (
    ": the program listens nowhere, or blocks its event loop; one that binds or accepts by itself is served with "
    "`wscluster serve module:app`"
)

logger = logging.getLogger("wscluster.primary")


@dataclass(slots=True)
class _Wait:
    """Somebody waits until ``over`` says what has come of it; ``workers`` drain meanwhile."""

    over: Callable[[], dict[str, Any] | None]
    outcome: asyncio.Future[dict[str, Any]]
    workers: frozenset[int] = frozenset()
    tell: Tell | None = None


@dataclass(slots=True)
class Operations:
    """Asks the fleet for what was asked of the cluster, and tells the outcome.

    Args:
        config: What holds now, and what held before the reload that is under way.
        configure: Lets another configuration hold, for workers that start and for this process.
        step: Gives an event to the fleet.
        read_config: Reads the configuration again; it raises `ConfigError`.
    """

    loop: asyncio.AbstractEventLoop
    config: Config
    fleet: Fleet
    events: EventLog
    boot_faults: BootFaults
    configure: Callable[[Config], None]
    step: Callable[[words.Event], None]
    read_config: Callable[[], Config]
    reloads: Reloads = field(init=False)
    _recycler: Recycler = field(init=False)
    _next_config: Config = field(init=False)
    _last_config: Config = field(init=False)
    _waits: list[_Wait] = field(default_factory=list)
    _drains: DrainProgress = field(default_factory=DrainProgress)
    not_replaced: dict[int, str] = field(default_factory=dict)
    jitter: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reloads = Reloads(self.loop)
        self._next_config = self._last_config = self.config
        self._recycler = make_recycler(self.config)

    # What is asked

    def reload(self, tell: Tell | None = None) -> asyncio.Future[Outcome]:
        """Replace every worker by one that has the newest code and configuration, slot by slot.

        Asked again meanwhile, another reload follows. ``tell`` gets the progress; what is returned gets the outcome.
        """
        if self.fleet.exit_code is not None:
            return self._not_reloaded("everything is about to end")
        try:
            self._next_config, kept = reconfigure(self.config, self.read_config())
        except ConfigError as exc:
            return self._not_reloaded("; ".join(exc.problems))
        for line in kept:
            logger.warning("the configuration has changed: %s", line)
        if self.fleet.rolling is not None:
            under_way = "a reload is under way" if self.fleet.rolling.replaces is None else "a worker is being replaced"
            logger.info("%s: another one follows it", under_way)
        outcome = self.reloads.wait(self.fleet.newest_phase + 1, tuple(kept), tell)
        self.step(words.ReloadAsked())
        return outcome

    def scale(self, slots: str, tell: Tell | None = None) -> asyncio.Future[dict[str, Any]]:
        """Have that many slots: ``4``, or ``+1`` and ``-1`` for more and fewer than now.

        The outcome comes when every new slot has a worker or was given up, or when the workers of those that are gone
        have ended.

        Raises:
            InvalidRequest: It is no number, or there cannot be so many; the text says why.
        """
        before = len(self.fleet.slots)
        size = parse_scale(slots, before)
        refused = refuse_scale(self.fleet, size)
        if refused:
            raise InvalidRequest(refused)
        going = frozenset(worker.id for worker in self.fleet.workers.values() if worker.slot >= size)
        if size != before:
            logger.info("scaling from %d to %d slots", before, size)
        self.step(words.ScaleAsked(size))
        facts = {"slots": size, "before": before}

        def over() -> dict[str, Any] | None:
            new = [(number, slot) for number, slot in enumerate(self.fleet.slots) if before <= number < size]
            if going & self.fleet.workers.keys() or not all(slot.settled for _, slot in new):
                return None
            failed = [number for number, slot in new if slot.failed]
            shown = ", ".join(map(str, failed))
            return facts | {"reason": f"no worker becomes ready in slot {shown}" if failed else ""}

        return self._wait(over, going, tell)

    def drain(self, slot: Any, tell: Tell | None = None) -> asyncio.Future[dict[str, Any]]:
        """Replace the worker of ``slot``; the outcome comes when it has ended.

        Raises:
            InvalidRequest: There is no such slot, or no worker in it that is ready.
        """
        slots = len(self.fleet.slots)
        if not isinstance(slot, int) or isinstance(slot, bool) or not 0 <= slot < slots:
            raise InvalidRequest(f"there is no slot {slot}: there are slots 0 to {slots - 1}")
        worker = self.fleet.workers.get(self.fleet.slots[slot].worker or 0)
        if worker is None or worker.state is not words.State.READY or self.fleet.exit_code is not None:
            raise InvalidRequest(f"slot {slot} has no worker that is ready: there is nothing to drain")
        drained = worker.id
        self.not_replaced.pop(drained, None)

        def over() -> dict[str, Any] | None:
            reason = self.not_replaced.pop(drained, "")
            if drained in self.fleet.workers and not reason:
                return None
            return {"slot": slot, "worker": drained, "reason": reason}

        outcome = self._wait(over, frozenset({drained}), tell)
        self.step(words.ReplaceAsked(drained, "a drain was asked for"))
        return outcome

    def watch_stop(self, finished: asyncio.Future[int], tell: Tell) -> None:
        """Tell how many connections are left, until ``finished``."""
        self._wait(lambda: {} if finished.done() else None, frozenset(self.fleet.workers), tell)

    @property
    def waited_for(self) -> bool:
        """Somebody waits for what comes of a reload, a scale or a drain."""
        return bool(self._waits) or self.reloads.waited_for

    # What happens

    def carried_out(self, command: words.Command) -> None:
        """Log ``command``, tell of it, and do what it means here."""
        match command:
            case words.Reloading(phase):
                logger.info("reloading, phase %d", phase)
                self.events.emit("reloading", phase=phase)
                self.boot_faults.show_again()
                self._last_config = self.config
                self._configure(self._next_config)
            case words.Reloaded(phase):
                logger.info("reloaded: every worker is of phase %d", phase)
                self.events.emit("reloaded", phase=phase)
                self.reloads.ended(Outcome(phase))
                self._resize()
            case words.ReloadFailed(phase, reason, switched):
                slots = f"slots {', '.join(map(str, switched))} have" if switched else "no slot has"
                logger.error("the reload of phase %d has failed, %s a worker of it: %s", phase, slots, reason)
                self.events.emit("reload_failed", phase=phase, reason=reason, switched=list(switched))
                self.reloads.ended(Outcome(phase, reason, self.boot_faults.traceback, switched))
                self._configure(self._last_config)  # what broke it must not stay for who is started next
            case words.Replacing(slot, worker, why):
                logger.info("worker %d of slot %d is being replaced: %s", worker, slot, why)
            case words.Replaced(slot, worker):
                logger.info("worker %d of slot %d is replaced and drains", worker, slot)
            case words.ReplaceFailed(slot, worker, reason):
                logger.error("worker %d of slot %d was not replaced: %s", worker, slot, reason)
                self.not_replaced[worker] = reason
            case words.Resize(size):
                logger.info("there are %d slots from now on", size)
                self.events.emit("scaled", slots=size)

    def beaten(self, worker: int, stats: Stats) -> None:
        """A beat of ``worker``: tell how far its drain has come, or replace it where it has served enough."""
        known = self.fleet.workers[worker]
        if known.state is words.State.DRAINING:
            said = self._drains.beaten(worker, stats.connections, self.loop.time())
            if said is not None:
                logger.info(said)
        if known.state is not words.State.READY:
            for wait in self._waits:
                if wait.tell is not None and worker in wait.workers:
                    wait.tell({"slot": known.slot, "worker": worker, "connections": stats.connections})
        elif self.fleet.exit_code is None and known.ready_at is not None:
            now = self.loop.time()
            jitter = self.jitter.setdefault(worker, random.random())
            age = now - known.ready_at
            why = self._recycler.due(worker, jitter, age, stats.rss_bytes, stats.messages_in, now)
            if why is not None:
                self.step(words.ReplaceAsked(worker, why))

    def resume(self, not_replaced: dict[int, str], jitter: dict[int, float]) -> None:
        """Know of the workers what the process before has known."""
        self.not_replaced, self.jitter = not_replaced, jitter

    def became_ready(self, slot: int, phase: int) -> None:
        """A worker of ``phase`` is ready in ``slot``."""
        self.reloads.progress(phase, slot, len(self.fleet.slots))

    def forget(self, worker: int) -> None:
        """``worker`` has exited."""
        self._recycler.forget(worker)
        self._drains.forget(worker)
        self.not_replaced.pop(worker, None)
        self.jitter.pop(worker, None)
        for wait in self._waits:
            if wait.tell is not None and worker in wait.workers:
                wait.tell({"worker": worker, "connections": 0, "exited": True})

    def look(self) -> None:
        """Something has happened: whoever waits for just that is answered."""
        for wait in list(self._waits):
            outcome = wait.over()
            if outcome is not None or wait.outcome.done():  # else whoever asked is gone
                self._waits.remove(wait)
            if outcome is not None and not wait.outcome.done():
                wait.outcome.set_result(outcome)

    def end(self) -> None:
        """Everything has ended."""
        reason = "everything has ended meanwhile"
        self.reloads.end_all(reason)
        for wait in self._waits:
            if not wait.outcome.done():
                wait.outcome.set_result({"reason": reason})
        self._waits.clear()

    def _configure(self, config: Config) -> None:
        self.config = config
        self._recycler = make_recycler(config)
        self.configure(config)

    def _resize(self) -> None:
        """Where the reload has brought another number of workers, there shall be as many slots."""
        size = self.config.fleet.workers
        if size is None or size == self._last_config.fleet.workers:
            return
        # Not before the fleet is done with the event that brought this.
        self.loop.call_soon(self._scale_as_configured, size)

    def _scale_as_configured(self, size: int) -> None:
        try:
            self.scale(str(size))
        except InvalidRequest as exc:
            logger.error("the configuration wants %d workers: %s", size, exc)

    def _wait(
        self, over: Callable[[], dict[str, Any] | None], workers: Iterable[int], tell: Tell | None
    ) -> asyncio.Future[dict[str, Any]]:
        outcome: asyncio.Future[dict[str, Any]] = self.loop.create_future()
        self._waits.append(_Wait(over, outcome, frozenset(workers), tell))
        self.look()
        return outcome

    def _not_reloaded(self, reason: str) -> asyncio.Future[Outcome]:
        logger.error("not reloaded: %s", reason)
        phase = self.fleet.newest_phase + 1
        self.events.emit("reload_failed", phase=phase, reason=reason, switched=[])
        refused: asyncio.Future[Outcome] = self.loop.create_future()
        refused.set_result(Outcome(phase, reason))
        return refused


def make_fleet(config: Config) -> Fleet:
    """Return the fleet that ``config`` asks for; ``fleet.workers`` is a number."""
    limits = config.fleet
    assert limits.workers is not None
    return Fleet(
        limits.workers,
        limits.worker_startup_timeout,
        limits.timeout_worker_healthcheck,
        limits.graceful_timeout,
        exit_timeout=PROGRAM_EXIT_SECONDS if config.run else EXIT_SECONDS,
        late_hint=LISTENS_NOWHERE if config.run else "",
        patient=config.reload.reload,
    )


def make_recycler(config: Config) -> Recycler:
    """Return what recycles workers as ``config`` says."""
    limits = config.fleet
    return Recycler(limits.workers_lifetime, limits.workers_max_rss, config.websocket.limit_max_messages)


def parse_scale(text: Any, slots: int) -> int:
    """Return the number of slots that ``text`` means where there are ``slots``.

    Raises:
        InvalidRequest: It means none.
    """
    match = re.fullmatch(r"([+-]?)([0-9]{1,6})", str(text), re.ASCII)
    if match is None:
        raise InvalidRequest(f"{text!r} is no number of slots: 4, +1 or -1 is wanted")
    number = int(match[2])
    return slots + number if match[1] == "+" else slots - number if match[1] == "-" else number
