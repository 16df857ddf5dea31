"""How far a verb has come, on standard error: a bar on a terminal, else lines."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

LINE_SECONDS = 1.0
"""Without a terminal, a line comes at the most so often; the last one comes always."""


class Progress:
    """Shows a count that goes up to a total, or the connections that are left.

    Args:
        label: What is counted.
        quiet: Show nothing.
        bar: A bar of `wscluster.terminal`, where standard error is a terminal.
    """

    def __init__(self, label: str, *, quiet: bool, bar: Any = None) -> None:
        self._label = label
        self._quiet = quiet
        self._bar = bar
        self._task: Any = None
        self._slots: set[int] = set()
        self._left: dict[int, int] = {}
        self._most = 0
        self._shown_at = float("-inf")
        self._last = ""

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def slot(self, told: dict[str, Any]) -> None:
        """A slot is done, of ``told["slots"]``."""
        self._slots.add(told["slot"])
        self._show(len(self._slots), told["slots"], always=True)

    def connections(self, told: dict[str, Any]) -> None:
        """A worker that drains has ``told["connections"]`` left."""
        self._left[told["worker"]] = told["connections"]
        left = sum(self._left.values())
        self._most = max(self._most, left)
        self._show(self._most - left, self._most, always=not left, shown=left)

    def _show(self, done: int, total: int, *, always: bool, shown: int | None = None) -> None:
        if self._quiet:
            return
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(self._label, total=total)
            self._bar.update(self._task, completed=done, total=total)
            return
        line = f"{shown} {self._label}" if shown is not None else f"{done} of {total} {self._label}"
        now = time.monotonic()
        if shown == 0 and not self._last:  # it was over before there was anything to say
            return
        if line != self._last and (always or now - self._shown_at >= LINE_SECONDS):
            self._shown_at, self._last = now, line
            print(line, file=sys.stderr, flush=True)


def make_progress(label: str, *, quiet: bool = False) -> Progress:
    """Return what shows the progress of a verb; ``quiet``: nothing is shown."""
    if quiet or not sys.stderr.isatty():
        return Progress(label, quiet=quiet)
    from wscluster.terminal import make_bar

    return Progress(label, quiet=quiet, bar=make_bar())
