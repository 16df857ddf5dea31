"""A configuration that is read again: what of it changes in a running cluster, and what cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wscluster.config import GROUPS, Config, flag_of, option_fields
from wscluster.options import hide_secrets, show_value


def reconfigure(running: Config, read: Config) -> tuple[Config, list[str]]:
    """Return the configuration for workers that start from now on, and one line for each value that cannot change.

    A value that is ``fixed`` stays as it is in ``running``; all others are those of ``read``. TLS can neither begin nor
    end, but its files may be other ones.
    """
    kept: list[str] = []
    values: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
    for name, (group, item) in option_fields().items():
        old, new = getattr(getattr(running, group), name), getattr(getattr(read, group), name)
        if old == new or (name == "workers" and new is None):
            continue
        if item.metadata["fixed"] or (name == "ssl_certfile" and None in (old, new)):
            kept.append(f"{flag_of(name)} {_show(item, old)} stays, {_show(item, new)} needs a restart")
        else:
            values[group][name] = new
    groups: dict[str, Any] = {name: replace(getattr(running, name), **changed) for name, changed in values.items()}
    return replace(running, target=read.target, **groups), kept


def _show(item: Any, value: Any) -> str:
    return "(none)" if value in (None, (), "") else show_value(hide_secrets(item, value))
