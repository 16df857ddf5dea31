"""Starts the primary in this process: what the command line, and whoever serves from Python, go through."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from typing import Any

from wscluster.config import knows, option_fields
from wscluster.errors import ExitCode, StartError
from wscluster.settings import SettingsSource
from wscluster.sources import STATE_VARIABLE, argument_values


def run_primary(source: SettingsSource) -> int:
    """Serve a target or run a program, as ``source`` says, until somebody stops it; returns the exit code.

    Raises:
        ConfigError: The configuration makes no sense.
        StartError: It could not start; ``exit_code`` is 4 where the file of a program is not there.
    """
    # A process that goes on for another one has its configuration from there; what the files say now is not asked.
    config = None if os.environ.get(STATE_VARIABLE, "").startswith("go:") else source.read_config()
    if config is not None and config.run and config.run[0] != "-m":
        _look_at_program(config.run[0])

    from wscluster.gateway.run import run

    return run(config, source.read_config)


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
    return _start("serve", target, (), config, options)


def run(
    program: str | os.PathLike[str],
    *arguments: str | os.PathLike[str],
    config: str | os.PathLike[str] | None = None,
    **options: Any,
) -> int:
    """Run a program as ``wscluster run`` does, until somebody stops it; returns the exit code.

    It has the same rules as `serve`: ``wscluster.run("server.py", "--verbose", workers=4)``.

    Args:
        program: Path of the program, or ``"-m"``: the first of ``arguments`` is then the name of a module.
        arguments: What the program finds in ``sys.argv`` behind its own name.
        config: Path of the configuration file, as ``--config``.
        options: The flags of ``run`` under their names, with values of Python.

    Raises:
        ConfigError: A value makes no sense; a `ValueError` that lists every fault.
        TypeError: There is no such option, an argument is no text, or ``-m`` stands without a module.
        RuntimeError: This is not the main thread, or an event loop runs in it.
    """
    words = tuple(os.fsdecode(word) for word in (program, *arguments))
    if words == ("-m",):
        raise TypeError('wscluster.run("-m") needs the name of a module')
    return _start("run", None, words, config, options)


def _start(
    verb: str,
    target: str | None,
    program: tuple[str, ...],
    config: str | os.PathLike[str] | None,
    options: dict[str, Any],
) -> int:
    if unknown := sorted(name for name in options if name not in option_fields() or not knows(verb, name)):
        raise TypeError(f"wscluster.{verb}() has no option {', '.join(unknown)}")
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            f"wscluster.{verb}() must be called from the main thread: it takes the signals of the process"
        )
    if _is_loop_running():
        raise RuntimeError(f"wscluster.{verb}() runs an event loop of its own: call it where none is running")
    values = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in options.items()}
    file = None if config is None else os.fsdecode(config)
    source = SettingsSource(target, argument_values(values), file, program)
    try:
        with _signal_handlers_kept():
            return run_primary(source)
    except StartError as exc:
        sys.stderr.write(f"wscluster: {' '.join(str(exc).split())}\n")
        return exc.exit_code


def _look_at_program(path: str) -> None:
    """Say early what Python would say of this path in each worker.

    Raises:
        StartError: There is no such file, it may not be read, or it is a folder that is no program.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        fault = f"there is no file {path}"
    except (OSError, ValueError) as exc:
        fault = f"{path!r} cannot be run: {exc.strerror if isinstance(exc, OSError) else exc}"
    else:
        if stat.S_ISDIR(mode) and not os.path.exists(os.path.join(path, "__main__.py")):
            fault = f"{path} is a folder without a file __main__.py"
        elif not stat.S_ISDIR(mode) and not os.access(path, os.R_OK):
            fault = f"{path} cannot be run: {os.strerror(errno.EACCES)}"
        else:
            return
    raise StartError(fault, ExitCode.TARGET)


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
