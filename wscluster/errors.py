"""The exceptions of wscluster, and the exit codes of its programs."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a wscluster program's exit status says."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_STARTED = 3
    TARGET = 4


class WsclusterError(Exception):
    """Base of every exception that wscluster raises for a condition of its own."""


class BusUnavailable(WsclusterError):
    """The bus gave no answer within ``--bus-timeout``; whether a publish arrived is unknown."""


class NotInWorker(WsclusterError):
    """The call needs a worker of ``wscluster``, and this process is none."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} works inside a worker only: start this program with `wscluster serve` or `wscluster run`, "
            "or use wscluster.Publisher to publish from outside"
        )


class StartError(WsclusterError):
    """The primary cannot start; ``exit_code`` is the process's exit status, the text is one line for a person."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.NOT_STARTED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class TargetError(WsclusterError):
    """The target cannot be served: unknown module, missing attribute, wrong signature, or it raised on import.

    ``traceback`` is the text of the target's own traceback, empty where the mistake is not in its code.
    """

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback
