"""Hands a primary to the process that takes its place, part by part, and takes it there."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from wscluster import __version__
from wscluster.config import to_json
from wscluster.gateway.carried import Fd
from wscluster.gateway.state import State
from wscluster.packets import PROTOCOL

if TYPE_CHECKING:
    from wscluster.gateway.primary import Primary

logger = logging.getLogger("wscluster.primary")


def carry(primary: Primary) -> State:
    """Return everything that ``primary`` knows and has; it must do nothing more until the next process goes on."""
    ready_fd = primary.config.operate.ready_fd
    return State(
        protocol=PROTOCOL,
        at=time.monotonic(),
        pid=os.getpid(),
        config=to_json(primary.config),
        started_at=primary.started_at,
        fleet=primary.fleet,
        intake=primary.intake.carry(),
        workers=primary.crew.carry(),
        totals=primary.crew.totals,
        asked=primary.asking.asked.carry(),
        bus=primary.bus.server.carry(),
        bus_at=primary.bus.at,
        wants_bus=primary.bus.wanted_by,
        helper=None if primary.helper is None else primary.helper.carry(),
        events=primary.events.carry(),
        output=primary.output.carry(),
        control=primary.control.carry(),
        metrics=None if primary.metrics is None else primary.metrics.carry(),
        ready_fd=None if ready_fd is None else Fd(ready_fd),
        last_poll=primary.crew.poller.last_serial,
        last_inquiry=primary.inquiries.last_serial,
        given_up=primary.boot_faults.given_up,
        shown=primary.boot_faults.shown,
        not_replaced=primary.operations.not_replaced,
        jitter=primary.operations.jitter,
    )


def resume(primary: Primary, state: State) -> None:
    """Have ``primary``, which has the state's fleet already, go on.

    The helper of ``--on-event``, the control socket and the metrics port go on by themselves, when they are started.

    Raises:
        CannotBind: A listener cannot be listened on any more.
    """
    primary.events.resume(state.events)
    primary.output.resume(state.output.pipes)
    primary.boot_faults.given_up, primary.boot_faults.shown = state.given_up, state.shown
    primary.operations.resume(state.not_replaced, state.jitter)
    primary.asking.asked.resume(state.asked)
    # The links before the listeners: what is accepted goes out on them.
    primary.crew.poller.last_serial, primary.inquiries.last_serial = state.last_poll, state.last_inquiry
    primary.crew.resume(state.workers, state.totals)
    primary.intake.resume(state.intake)
    primary.bus.at, primary.bus.wanted_by = state.bus_at, state.wants_bus
    if state.bus is not None:
        primary.bus.server.resume(state.bus)
    pause = time.monotonic() - state.at
    logger.info("upgraded to version %s: nothing was accepted for %d ms", __version__, pause * 1000)
    primary.events.emit("upgraded", pid=os.getpid(), pause_seconds=round(pause, 3))
