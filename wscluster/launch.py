"""Starts the primary in this process: what the command line, and whoever serves from Python, go through."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from wscluster.config import Config, option_fields
from wscluster.errors import StartError
from wscluster.settings import read_settings
from wscluster.sources import argument_values


def run_primary(config: Config) -> int:
    """Serve ``config.target`` until somebody stops it; returns the exit code.

    Raises:
        StartError: It could not start.
    """
    from wscluster.gateway.run import run

    return run(config)


def serve(target: str | None = None, *, config: str | os.PathLike[str] | None = None, **options: Any) -> int:
    """Serve a target as ``wscluster serve`` does, until somebody stops it; returns the exit code.

    Call it from the main thread, without a running event loop, in a program that the workers do not import unguarded
    (``if __name__ == "__main__":``). What is not given is looked for in the environment, then in the file. The signal
    handlers of the program are its own again afterwards.

    Args:
        target: ``module:attribute``; None where the file names it.
        config: Path of the configuration file, as ``--config``.
        options: The flags of ``serve`` under their names, with values of Python: ``workers=4``, ``slot_wait="1m"``,
            ``access_log=True``, ``bind=["127.0.0.1:80", "unix:/run/app.sock"]``, a `Path` for a path. None is as good
            as not given.

    Raises:
        ConfigError: A value makes no sense; a `ValueError` that lists every fault.
        TypeError: There is no such option, or ``config`` is no path.
        RuntimeError: This is not the main thread, or an event loop runs in it.
    """
    if unknown := sorted(options.keys() - option_fields().keys()):
        raise TypeError(f"wscluster.serve() has no option {', '.join(unknown)}")
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("wscluster.serve() must be called from the main thread: it takes the signals of the process")
    if _is_loop_running():
        raise RuntimeError("wscluster.serve() runs an event loop of its own: call it where none is running")
    values = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in options.items()}
    settings = read_settings(
        target, argument_values(values), os.environ, None if config is None else os.fsdecode(config)
    )
    settings.set_variables()
    try:
        with _signal_handlers_kept():
            return run_primary(settings.resolved.config)
    except StartError as exc:
        sys.stderr.write(f"wscluster: {' '.join(str(exc).split())}\n")
        return exc.exit_code


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    # uvloop leaves its own behind when its loop is closed: a signal would do nothing any more.
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            # None: not installed from Python, and so not from there to be put back.
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _is_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
