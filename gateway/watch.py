"""Watches the files of a program that somebody writes at, and says when they have changed (``--reload``)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from wscluster.config import Config, Reload
from wscluster.errors import ExitCode, StartError
from wscluster.gateway.watch_rules import WatchRules, describe_changes, make_rules, outermost

if TYPE_CHECKING:
    from watchfiles import Change

logger = logging.getLogger("wscluster.primary")


@contextlib.asynccontextmanager
async def watching(config: Config, on_change: Callable[[], None]) -> AsyncIterator[None]:
    """Call ``on_change`` after each change of a watched file, while the context lasts; never without ``--reload``.

    Changes within ``--reload-delay`` seconds of the first one are one change.

    Raises:
        StartError: A folder is not there (exit code 2), or watchfiles or the system cannot watch (3).
    """
    if not config.reload.reload:
        if config.reload != replace(Reload(), reload_delay=config.reload.reload_delay):
            logger.warning("nothing is watched without --reload: --reload-dir, -include and -exclude mean nothing")
        yield
        return
    watcher = Watcher(config, on_change)
    await watcher.start()
    try:
        yield
    finally:
        await watcher.close()


class Watcher:
    """Watches folders in a thread of watchfiles."""

    def __init__(self, config: Config, on_change: Callable[[], None]) -> None:
        self._base = Path.cwd()
        self._delay = config.reload.reload_delay
        self._on_change = on_change
        self._rules = _read_rules(config)
        self._roots = _find_roots(config)
        self._loop = asyncio.get_running_loop()
        self._changed: set[PurePath] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin; what changes from now on is noticed.

        Raises:
            StartError: It cannot be watched.
        """
        try:
            import watchfiles  # noqa: F401
        except ImportError:
            raise StartError("--reload needs watchfiles: pip install 'wscluster[reload]'") from None
        # It has a line for each change of any file, of those that are excluded too.
        logging.getLogger("watchfiles").setLevel(logging.WARNING)
        self._task = self._loop.create_task(self._watch())
        # Its first step takes the watches of the kernel.
        await asyncio.sleep(0)
        if self._task.done() and (exc := self._task.exception()) is not None:
            raise StartError(f"--reload: cannot watch {', '.join(map(str, self._roots))}: {exc}")
        self._task.add_done_callback(_check_end)
        logger.info("watching %s for changes", ", ".join(str(root) for root in self._roots))

    async def close(self) -> None:
        """Stop, and wait until the thread has ended."""
        self._stop.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _watch(self) -> None:
        from watchfiles import awatch

        def counts(_change: Change, path: str) -> bool:
            return self._rules.counts(PurePath(path))

        async for changes in awatch(
            *map(str, self._roots), watch_filter=counts, stop_event=self._stop, ignore_permission_denied=True
        ):
            self._changed.update(PurePath(path) for _, path in changes)
            if self._timer is None:
                self._timer = self._loop.call_later(self._delay, self._tell)

    def _tell(self) -> None:
        changed, self._changed, self._timer = self._changed, set(), None
        logger.info("%s changed", describe_changes(changed, self._base))
        self._on_change()


def _check_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (exc := task.exception()) is not None:
        logger.error("files are no longer watched: %s", exc)


def _read_rules(config: Config) -> WatchRules:
    exclude = config.reload.reload_exclude
    folders = {pattern: Path(pattern).resolve() for pattern in exclude if Path(pattern).is_dir()}
    return make_rules(
        config.reload.reload_include, (pattern for pattern in exclude if pattern not in folders), folders.values()
    )


def _find_roots(config: Config) -> list[PurePath]:
    reload = config.reload
    for folder in reload.reload_dir:
        if not Path(folder).is_dir():
            raise StartError(f"--reload-dir {folder}: there is no such folder", ExitCode.USAGE)
    roots = [Path(folder) for folder in (reload.reload_dir or (".", config.operate.app_dir))]
    roots += [Path(pattern) for pattern in reload.reload_include]
    return outermost(root.resolve() for root in roots if root.is_dir())
