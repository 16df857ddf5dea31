"""What a primary hands to the process that takes its place: everything that it knows, and every descriptor that it has.

`carried` turns it into JSON and back. A field that a later version adds needs a default; one that is gone, or means
something else, is refused by the trial of the upgrade, and the running primary stays.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Any

from wscluster.gateway.carried import Fd
from wscluster.gateway.durations import Durations
from wscluster.gateway.fleet import Fleet
from wscluster.gateway.handoff import Books
from wscluster.gateway.log_lines import Origin
from wscluster.gateway.proxyproto import Header
from wscluster.gateway.status import Figures, Totals
from wscluster.packets import BusAt


@dataclass(slots=True)
class ChildState:
    """A child process."""

    pid: int
    pidfd: Fd


@dataclass(slots=True)
class ListenerState:
    """A listener; ``identity`` is that of the file at ``path``, which it has made."""

    fd: Fd
    path: str | None
    identity: tuple[int, int] | None
    backlog: int


@dataclass(slots=True)
class PeekState:
    """A connection whose PROXY header is not whole."""

    fd: Fd
    host: str
    port: int
    listener: int
    due: float
    seen: int
    header: Header | None
    left: int


@dataclass(slots=True)
class AdmissionState:
    """What `Admission` counts."""

    open: dict[int, bytes]
    per_ip: Counter[bytes]
    adopted: dict[int, set[int]]
    left: OrderedDict[bytes, tuple[float, float]]


@dataclass(slots=True)
class IntakeState:
    """Listeners, and every connection that was accepted and is not adopted yet."""

    listeners: list[ListenerState]
    accepting: bool
    books: Books
    sockets: dict[int, Fd]
    accepted_at: dict[int, float]
    last_number: int
    handoff_seconds: Durations
    admission: AdmissionState | None
    peeking: list[PeekState]


@dataclass(slots=True)
class WorkerState:
    """A worker's process, the link to it unless that has ended, and what it said last.

    ``outbox`` waits for it to read.
    """

    child: ChildState
    link: Fd | None
    outbox: list[tuple[bytes, list[int]]]
    figures: Figures


@dataclass(slots=True)
class AskedState:
    """What programs have asked to listen on."""

    names: list[Any]
    requests: dict[tuple[str, int, str, int, int], tuple[int, ...]]
    addresses: dict[tuple[int, tuple[Any, ...]], int]


@dataclass(slots=True)
class BusState:
    """The private Valkey, which ``child`` runs unless it is about to be started again."""

    program: str
    folder: str
    child: ChildState | None
    pipe: Fd | None
    output: bytes
    failures: int
    ready_at: float | None
    address: str | None


@dataclass(slots=True)
class HelperState:
    """The process of ``--on-event``, unless it is about to be started again."""

    child: ChildState | None
    input: Fd | None
    waiting: list[bytes]
    failures: int


@dataclass(slots=True)
class PipeState:
    """What a worker prints; without an origin, the process of ``--on-event``."""

    fd: Fd
    origin: Origin | None
    stream: str
    part: bytes
    goes_on: bool


@dataclass(slots=True)
class OutputState:
    """The log: its file, what is not written yet, and what is kept, as `Ring.carry` writes it."""

    file: Fd | None
    waiting: dict[str, list[bytes]]
    pipes: list[PipeState]
    kept: str
    next: int


@dataclass(slots=True)
class CallState:
    """A caller of the control socket, who has ``said`` part of a request."""

    fd: Fd
    said: bytes


@dataclass(slots=True)
class ControlState:
    """The control socket; ``identity`` is that of its file."""

    fd: Fd
    identity: tuple[int, int]
    calls: list[CallState]


@dataclass(slots=True)
class State:
    """A primary.

    Args:
        protocol: `packets.PROTOCOL`: its workers speak it.
        at: When it stopped to accept, in seconds of CLOCK_MONOTONIC.
        config: What holds, as JSON.
        last_poll, last_inquiry: Serials that workers may still answer.
    """

    protocol: int
    at: float
    pid: int
    config: str
    started_at: float
    fleet: Fleet
    intake: IntakeState
    workers: dict[int, WorkerState]
    totals: Totals
    asked: AskedState
    bus: BusState | None
    bus_at: BusAt | None
    wants_bus: set[int]
    helper: HelperState | None
    events: list[bytes]
    output: OutputState
    control: ControlState
    metrics: Fd | None
    ready_fd: Fd | None
    last_poll: int
    last_inquiry: int
    given_up: str = ""
    shown: set[str] = field(default_factory=set)
    not_replaced: dict[int, str] = field(default_factory=dict)
    jitter: dict[int, float] = field(default_factory=dict)
