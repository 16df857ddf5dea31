"""Why workers cannot become ready: each traceback once, and what a cluster that never came up ends with."""

from __future__ import annotations

import logging
from collections.abc import Callable

from wscluster.errors import ExitCode, StartError
from wscluster.packets import BootFailed

logger = logging.getLogger("wscluster.primary")


class BootFaults:
    """Tells each fault once, however many workers have it.

    Args:
        show: Shows a traceback to a person.

    Attributes:
        given_up: Why the last slot that was given up was so; empty while none was.
        shown: Tracebacks that were shown already.
        traceback: The last one that a worker has sent since a reload began; or empty.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self.given_up = ""
        self.traceback = ""
        self._first: StartError | None = None
        self.shown: set[str] = set()

    def tell(self, worker: int, packet: BootFailed, *, ever_ready: bool) -> None:
        """Show the traceback, and log the reason; before any worker was ready, keep the first one for the end."""
        self.traceback = packet.traceback or self.traceback
        if packet.traceback and packet.traceback not in self.shown:
            self.shown.add(packet.traceback)
            self._show(packet.traceback)
        if not ever_ready and self._first is None:
            self._first = StartError(packet.reason, ExitCode(packet.exit_code))
        level = logging.ERROR if ever_ready else logging.DEBUG
        logger.log(level, "worker %d cannot become ready: %s", worker, packet.reason)

    def show_again(self) -> None:
        """The program may be another one from now on: what was shown before is shown again."""
        self.shown.clear()
        self.traceback = ""

    def fault(self, exit_code: int) -> StartError:
        """Return what to say at the end of a cluster that never came up."""
        told = "no worker became ready" + (f": {self.given_up}" if self.given_up else "")
        return self._first or StartError(told, ExitCode(exit_code))
