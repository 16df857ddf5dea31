"""The verb ``reload``: asks for a reload and shows how far it comes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from wscluster.control_client import ask
from wscluster.errors import ExitCode


def reload(path: Path, *, as_json: bool) -> ExitCode:
    """Ask the primary at ``path`` for a reload, wait for its outcome and print it; returns the exit code of the verb.

    Raises:
        ControlError: Nobody answers there, or the primary has ended meanwhile.
    """
    done = 0

    def show(progress: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        print(f"slot {progress['slot']} reloaded, {done} of {progress['slots']}", file=sys.stderr)

    outcome = ask(path, "reload", timeout=None, on_progress=None if as_json else show)
    if as_json:
        print(json.dumps(outcome))
    else:
        _tell(outcome)
    return ExitCode.FAILED if outcome["reason"] else ExitCode.OK


def _tell(outcome: dict[str, Any]) -> None:
    for line in outcome["kept"]:
        sys.stderr.write(f"wscluster: {line}\n")
    if not outcome["reason"]:
        print(f"reloaded, phase {outcome['phase']}")
        return
    sys.stderr.write(outcome["traceback"])
    slots = outcome["switched"]
    state = f"slots {', '.join(map(str, slots))} have the new release" if slots else "every worker serves on"
    sys.stderr.write(f"wscluster: the reload has failed, {state}: {' '.join(outcome['reason'].split())}\n")
