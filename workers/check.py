"""Imports the target as a worker does and says what it is, without serving it: what `wscluster check` starts."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from wscluster.config import Config, from_json
from wscluster.errors import TargetError
from wscluster.workers.kinds import ASGI, HANDLER
from wscluster.workers.target import ROLES, App, load_target

MAX_NAME, MAX_FAULT, MAX_TRACEBACK = 200, 1000, 4000
"""Characters, each 12 bytes of JSON at most: the answer fits into a pipe that nobody reads yet."""


def run(fd: int) -> int:
    """Read a configuration from standard input and write what its target is to ``fd``, as a line of JSON.

    The object has ``kind`` (`kinds.HANDLER`, `kinds.ASGI`) and ``functions`` (the name of each function that is marked
    or named, by its role), or ``fault`` and ``traceback`` as `TargetError` has them. The process ends at once
    afterwards, whatever threads the target has started.
    """
    config = from_json(sys.stdin.read())
    with os.fdopen(fd, "w") as answer:
        answer.write(json.dumps(_describe(config)) + "\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _describe(config: Config) -> dict[str, Any]:
    try:
        target = load_target(config)
    except TargetError as exc:
        return {"fault": str(exc)[:MAX_FAULT], "traceback": exc.traceback[-MAX_TRACEBACK:]}
    if isinstance(target, App):
        return {"kind": ASGI, "functions": {}}
    found = {role: getattr(target, role) for role in ROLES}
    return {
        "kind": HANDLER,
        "functions": {role: _name(value) for role, value in found.items() if value is not None},
    }


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))[:MAX_NAME]
