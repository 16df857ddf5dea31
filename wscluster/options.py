"""What one field of the configuration may be: how it is declared, and how the value that a person gives is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from wscluster.urls import hide_password

MAX_SECONDS = 36500 * 86400
"""The longest duration: what takes a hundred years is meant to take for ever."""


def option(
    default: Any,
    help: str,  # noqa: A002
    *,
    metavar: str = "",
    choices: tuple[str, ...] = (),
    env: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    duration: bool = False,
    switch: bool = False,
    secret: bool = False,
    kinds: Mapping[str, Any] | None = None,
    only: str = "",
    whole: bool = False,
    fixed: bool = False,
) -> Any:
    """Declare one field that a person may set.

    ``env`` names variables that are read beside ``WSCLUSTER_<NAME>``, after it. ``low`` and ``high`` are the least and
    the greatest value, ``above`` a bound that is itself excluded. ``duration`` accepts ``1h30m`` beside seconds,
    ``switch`` makes a flag of a truth value a pair: ``--access-log`` and ``--no-access-log``. A ``secret`` is never
    shown. ``kinds`` has the default for each kind of target where they differ, and ``default`` is then None. ``only``
    is the one verb that knows the field, where not both that serve do. A field of the type ``tuple[str, ...]`` is a
    list: its flag may be repeated, and commas part what is in one text unless it is taken ``whole``. What is ``fixed``
    cannot change in a running cluster.
    """
    metadata = {
        "help": help, "metavar": metavar, "choices": choices, "env": env, "low": low, "high": high, "above": above,
        "duration": duration, "switch": switch, "secret": secret,
        "kinds": kinds or {}, "only": only, "whole": whole, "fixed": fixed,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


def default_text(item: Any) -> str:
    """Return the default of the dataclass field ``item`` in words; empty where there is none to name."""
    if item.metadata["kinds"]:
        return ", ".join(f"{show_value(value)} for {kind}" for kind, value in item.metadata["kinds"].items())
    if item.name == "workers":
        return "auto"
    return "" if item.default in (None, (), "") else show_value(item.default)


def is_list(item: Any) -> bool:
    """Say whether the dataclass field ``item`` holds several values."""
    return str(item.type) == "tuple[str, ...]"


def parse_value(item: Any, text: str) -> Any:
    """Return the value of the dataclass field ``item`` that ``text`` means.

    Raises:
        ValueError: It means none; the message says what is wanted.
    """
    kind = _kind(item)
    if is_list(item):
        texts = [text] if item.metadata["whole"] else text.split(",")
        parts = tuple(part.strip() for part in texts if part.strip())
        if not parts:  # a shell variable that is not set: an allow-list must not be off because of it
            raise ValueError("at least one is wanted")
        return parts
    if kind == "str":
        return _check_choice(item, text)
    if kind == "bool":
        return _parse_bool(text)
    if item.name == "workers" and text == "auto":
        return None
    return _check_range(item, _parse_int(text) if kind == "int" else _parse_duration(text))


def take_value(item: Any, value: Any) -> Any:
    """Return the value of the dataclass field ``item`` that ``value``, a value of TOML or Python, means.

    Text stands for a duration, for a list and for ``auto``; a number or a truth value must be one.

    Raises:
        ValueError: It means none; the message says what is wanted.
    """
    kind = _kind(item)
    if is_list(item):
        if isinstance(value, str):
            return parse_value(item, value)
        if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
            if not value and item.name == "allowed_origins":  # it would read as nobody, and mean everybody
                raise ValueError("at least one is wanted")
            return tuple(map(_check_text, value))
        raise ValueError("a list of texts is wanted")
    if kind == "bool":
        if isinstance(value, bool):
            return value
        raise ValueError("true or false is wanted")
    if kind == "str":
        if isinstance(value, str):
            return _check_choice(item, value)
        raise ValueError("a text is wanted" if not item.metadata["choices"] else _wanted_choice(item))
    if isinstance(value, str) and (item.metadata["duration"] or value == "auto"):
        return parse_value(item, value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind == "int":
        return _check_range(item, value if whole else None)
    number = (whole and abs(value) < 10**18) or (isinstance(value, float) and math.isfinite(value))
    return _check_range(item, float(value) if number else None)


def show_value(value: Any) -> str:
    """Return the text that means ``value``, as a person would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def hide_secrets(item: Any, value: Any) -> Any:
    """Return ``value`` of the dataclass field ``item`` as it may be shown: without a password."""
    if item.metadata["secret"]:
        return "***"
    return hide_password(value) if item.name == "redis_url" and isinstance(value, str) else value


def _kind(item: Any) -> str:
    return str(item.type).removesuffix(" | None")


def _check_text(text: str) -> str:
    if "\0" in text:  # no path, name or address may hold one
        raise ValueError("a text without NUL is wanted")
    return text


def _check_choice(item: Any, text: str) -> str:
    if item.metadata["choices"] and text not in item.metadata["choices"]:
        raise ValueError(_wanted_choice(item))
    return _check_text(text)


def _wanted_choice(item: Any) -> str:
    return f"one of {', '.join(item.metadata['choices'])} is wanted"


def _check_range(item: Any, value: float | None) -> float:
    low, high, above = (item.metadata[name] for name in ("low", "high", "above"))
    if (
        value is None
        or (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    ):
        auto = ", or auto" if item.name == "workers" else ""
        raise ValueError(f"{_describe_range(_kind(item), low, high, above)} is wanted{auto}")
    if item.metadata["duration"] and value > MAX_SECONDS:
        raise ValueError(f"a duration of at most {MAX_SECONDS // 86400}d is wanted")
    return value


def _describe_range(kind: str, low: float | None, high: float | None, above: float | None) -> str:
    what = "a whole number" if kind == "int" else "a number of seconds or a duration like 1h30m"
    if above is not None:
        return f"{what} above {above:g}"
    if high is not None:
        return f"{what} from {low:g} to {high:.15g}"
    return f"{what} of {low:g} or more" if low is not None else what


def _parse_bool(text: str) -> bool:
    match text.lower():
        case "true" | "yes" | "on" | "1":
            return True
        case "false" | "no" | "off" | "0":
            return False
    raise ValueError("true or false is wanted")


def _parse_int(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else None


_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)


def _parse_duration(text: str) -> float | None:
    """Return seconds: of a number (``2.5``) or of days, hours, minutes and seconds (``1h30m``)."""
    if re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)", text, re.ASCII) and len(text) <= 18:
        return float(text)
    match = _DURATION.fullmatch(text)
    if not text or match is None or len(text) > 32:
        return None
    return sum(float(part) * scale for part, scale in zip(match.groups(), (86400, 3600, 60, 1), strict=True) if part)
