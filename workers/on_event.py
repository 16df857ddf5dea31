"""``python -m wscluster.workers.on_event MODULE:FUNCTION FOLDER``: calls a function with each lifecycle event.

Events come as JSON lines on standard input. A line ``ok``, or ``failed`` with the reason, goes to the descriptor of the
third argument once the function is imported, or cannot be. What the function raises is shown, and the next event comes;
one that never returns holds up those behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import signal
import sys
import traceback

from wscluster.errors import ExitCode, TargetError
from wscluster.workers.target import import_path, user_traceback


def main(name: str, folder: str, tell: int) -> int:
    """Serve until standard input ends; returns the exit code."""
    # Ctrl-C reaches every process of the terminal: the primary decides, and its end is the end of standard input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.path.insert(0, folder)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        _, function = import_path(name, folder)
        if not callable(function):
            raise TargetError(f"{name!r} is no function, but of the type {type(function).__name__!r}")
    except TargetError as exc:
        sys.stderr.write(exc.traceback)
        _tell(tell, f"failed {' '.join(str(exc).split())}\n")
        return ExitCode.TARGET
    _tell(tell, "ok\n")
    for line in sys.stdin.buffer:
        try:
            outcome = function(json.loads(line))
            if inspect.isawaitable(outcome):
                asyncio.run(_wait(outcome))
        except Exception as exc:
            sys.stderr.write(user_traceback(exc) or traceback.format_exc())
            sys.stderr.flush()
    return ExitCode.OK


def _tell(fd: int, text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # it is started again, and nobody waits for it
        os.write(fd, text.encode())
    os.close(fd)


async def _wait(outcome: object) -> None:
    await outcome  # type: ignore[misc]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
