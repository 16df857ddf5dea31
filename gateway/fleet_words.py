"""The words of the fleet: the states of a worker, what happens to it (events), and what is to be done (commands)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """State of a worker."""

    STARTING = "starting"
    CANDIDATE = "candidate"
    """It starts for a reload, and takes its slot when it is ready; until then the slot is another's."""
    READY = "ready"
    DRAINING = "draining"
    KILLED = "killed"
    EXITED = "exited"


# Events


@dataclass(frozen=True, slots=True)
class BecameReady:
    """The worker says that it is ready."""

    worker: int


@dataclass(frozen=True, slots=True)
class Beaten:
    """The worker's event loop has turned."""

    worker: int


@dataclass(frozen=True, slots=True)
class BootRefused:
    """The worker says why it cannot become ready, and is about to exit; ``hopeless`` is `packets.BootFailed`'s."""

    worker: int
    exit_code: int
    reason: str
    hopeless: bool = False


@dataclass(frozen=True, slots=True)
class Exited:
    """The worker's process has ended. ``jitter`` is a random number of [0, 1) for the back-off."""

    worker: int
    status: int
    jitter: float


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """The system could not start the worker's process. ``jitter`` is a random number of [0, 1) for the back-off."""

    worker: int
    jitter: float


@dataclass(frozen=True, slots=True)
class ReloadAsked:
    """There is new code: replace every worker, slot by slot."""


@dataclass(frozen=True, slots=True)
class ReplaceAsked:
    """``worker``, which is ready, is to be replaced by another one, which comes first; ``why`` is for the log."""

    worker: int
    why: str


@dataclass(frozen=True, slots=True)
class ScaleAsked:
    """There are to be ``size`` slots."""

    size: int


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Somebody wants the primary to stop: drain every worker."""


@dataclass(frozen=True, slots=True)
class StopForced:
    """Somebody does not want to wait: kill every worker."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed; also the first event of all."""


OfWorker = BecameReady | Beaten | BootRefused | Exited | SpawnFailed
Event = OfWorker | ReloadAsked | ReplaceAsked | ScaleAsked | StopAsked | StopForced | Ticked

# Commands


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start ``worker`` in ``slot``."""

    slot: int
    worker: int
    phase: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Send SIGKILL to ``worker``."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class DrainWorker:
    """Tell ``worker`` to close its connections with ``code`` and to exit."""

    worker: int
    code: int
    timeout: float


@dataclass(frozen=True, slots=True)
class Route:
    """New connections of ``slot`` go to ``worker``."""

    slot: int
    worker: int


@dataclass(frozen=True, slots=True)
class Unroute:
    """``worker`` gets no new connections."""

    slot: int
    worker: int


@dataclass(frozen=True, slots=True)
class GiveUpSlot:
    """No more workers for ``slot``."""

    slot: int
    reason: str


@dataclass(frozen=True, slots=True)
class Reloading:
    """A reload begins: its first worker is spawned next."""

    phase: int


@dataclass(frozen=True, slots=True)
class Reloaded:
    """Every slot that was there when it began, and still is, has a worker of ``phase``."""

    phase: int


@dataclass(frozen=True, slots=True)
class ReloadFailed:
    """The reload goes no further; ``switched`` are the slots that have a ready worker of ``phase``."""

    phase: int
    reason: str
    switched: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Replacing:
    """A worker that is to replace ``worker`` of ``slot`` is spawned next."""

    slot: int
    worker: int
    why: str


@dataclass(frozen=True, slots=True)
class Replaced:
    """``worker`` is no longer the slot's: another one is."""

    slot: int
    worker: int


@dataclass(frozen=True, slots=True)
class ReplaceFailed:
    """Nothing took the place of ``worker``, which may serve on."""

    slot: int
    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class Resize:
    """There are ``size`` slots from now on; a new one takes connections from its first `Route` on."""

    size: int


@dataclass(frozen=True, slots=True)
class Listen:
    """Begin to accept."""


@dataclass(frozen=True, slots=True)
class StopListening:
    """Accept nothing more."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Every worker has exited: end the primary with this exit code."""

    exit_code: int


Command = (
    Spawn
    | Kill
    | DrainWorker
    | Route
    | Unroute
    | GiveUpSlot
    | Reloading
    | Reloaded
    | ReloadFailed
    | Replacing
    | Replaced
    | ReplaceFailed
    | Resize
    | Listen
    | StopListening
    | Finish
)
