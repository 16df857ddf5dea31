"""The command line and the environment of a test's cluster, and where it is reached."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from wscluster.config import flag_of, knows, option_fields

COMMAND = (sys.executable, "-m", "wscluster")
"""What runs this very copy of wscluster."""

# Where a client of this machine finds what listens on every address.
_REACHED = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def check_options(verb: str, options: Mapping[str, Any]) -> None:
    """See that each of ``options`` is a flag of ``verb`` (``serve``, ``run``).

    Raises:
        TypeError: One is none; the message names it.
    """
    if unknown := sorted(name for name in options if name not in option_fields() or not knows(verb, name)):
        raise TypeError(f"wscluster {verb} has no option {', '.join(unknown)}")


def as_flags(options: Mapping[str, Any]) -> list[str]:
    """Return the flags that mean ``options``."""
    return [text for name, value in options.items() for text in _as_flag(name, value)]


def clean_environment() -> dict[str, str]:
    """Return the environment of this process without the variables that wscluster reads."""
    others = {name for _, item in option_fields().values() for name in item.metadata["env"]}
    return {
        name: value for name, value in os.environ.items() if name not in others and not name.startswith("WSCLUSTER_")
    }


def reached(listeners: Sequence[str]) -> str:
    """Return ``HOST:PORT`` under which a client of this machine reaches the first TCP listener.

    Raises:
        LookupError: There is none.
    """
    for name in listeners:
        if not name.startswith("unix:"):
            host, _, port = name.rpartition(":")
            return f"{_REACHED.get(host, host)}:{port}"
    raise LookupError(f"the cluster has no TCP listener: {', '.join(listeners)}")


def _as_flag(name: str, value: Any) -> list[str]:
    flag = flag_of(name)
    if value is None:
        return []
    if isinstance(value, bool) and option_fields()[name][1].metadata["switch"]:
        return [flag if value else f"--no-{flag[2:]}"]
    values = value if isinstance(value, (list, tuple)) else [value]
    return [text for item in values for text in (flag, str(item).lower() if isinstance(item, bool) else str(item))]
