"""The verbs ``reload``, ``scale``, ``drain`` and ``stop``: they ask, show how far it has come, and tell the outcome."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from wscluster import control_client
from wscluster.control_client import ask
from wscluster.errors import ExitCode
from wscluster.progress import make_progress


def reload(path: Path, *, as_json: bool) -> ExitCode:
    """Ask the primary at ``path`` for a reload, wait for its outcome and print it; returns the exit code of the verb.

    Raises:
        ControlError: Nobody answers there, or the primary has ended meanwhile.
    """
    with make_progress("slots reloaded", quiet=as_json) as progress:
        outcome = ask(path, "reload", timeout=None, on_progress=progress.slot)
    if not as_json:
        for line in outcome["kept"]:
            sys.stderr.write(f"wscluster: {line}\n")
        sys.stderr.write(outcome["traceback"])
    slots = outcome["switched"]
    state = f"slots {', '.join(map(str, slots))} have the new release" if slots else "every worker serves on"
    return _tell(outcome, as_json, f"reloaded, phase {outcome['phase']}", f"the reload has failed, {state}")


def scale(path: Path, slots: str, *, as_json: bool) -> ExitCode:
    """Ask for ``slots`` (``4``, ``+1``, ``-1``) and wait until the new ones serve, or those that go have drained.

    Raises:
        ControlError: Nobody answers there, or the primary refuses.
    """
    with make_progress("connections left", quiet=as_json) as progress:
        outcome = ask(path, "scale", timeout=None, on_progress=progress.connections, slots=slots)
    return _tell(
        outcome, as_json, f"{outcome.get('slots')} slots, before {outcome.get('before')}", "not scaled as asked"
    )


def drain(path: Path, slot: int, *, as_json: bool) -> ExitCode:
    """Replace the worker of ``slot`` by another one, and wait until it has ended.

    Raises:
        ControlError: Nobody answers there, or the primary refuses.
    """
    with make_progress("connections left", quiet=as_json) as progress:
        outcome = ask(path, "drain", timeout=None, on_progress=progress.connections, slot=slot)
    done = f"slot {slot} has another worker, worker {outcome.get('worker')} has ended"
    return _tell(outcome, as_json, done, f"slot {slot} is not drained, its worker serves on")


def stop(path: Path, *, force: bool) -> int:
    """Stop the cluster and wait until its processes have ended; returns the exit code of the primary.

    Raises:
        ControlError: Nobody answers there, or the primary died while it was stopping.
    """
    with make_progress("connections left", quiet=force) as progress:
        return control_client.stop(path, force=force, on_progress=progress.connections)


def _tell(outcome: dict[str, Any], as_json: bool, done: str, failed: str) -> ExitCode:
    if as_json:
        print(json.dumps(outcome))
    elif outcome["reason"]:
        sys.stderr.write(f"wscluster: {failed}: {' '.join(outcome['reason'].split())}\n")
    else:
        print(done)
    return ExitCode.FAILED if outcome["reason"] else ExitCode.OK
