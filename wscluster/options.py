"""What one field of the configuration may be: how it is declared, and how the text that a person gives is read."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Any


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
) -> Any:
    """Declare one field that a person may set.

    ``env`` names variables that are read beside ``WSCLUSTER_<NAME>``, after it. ``low`` and ``high`` are the least and
    the greatest value, ``above`` a bound that is itself excluded. ``duration`` accepts ``1h30m`` beside seconds,
    ``switch`` makes a flag of a truth value a pair: ``--access-log`` and ``--no-access-log``. A field of the type
    ``tuple[str, ...]`` is a list: its flag may be repeated, and commas part what is in one text.
    """
    metadata = {
        "help": help, "metavar": metavar, "choices": choices, "env": env,
        "low": low, "high": high, "above": above, "duration": duration, "switch": switch,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


def parse_value(item: Any, text: str) -> Any:
    """Return the value of the dataclass field ``item`` that ``text`` means.

    Raises:
        ValueError: It means none; the message says what is wanted.
    """
    kind = str(item.type).removesuffix(" | None")
    facts = item.metadata
    if facts["choices"] and text not in facts["choices"]:
        raise ValueError(f"one of {', '.join(facts['choices'])} is wanted")
    if kind == "tuple[str, ...]":
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind == "str":
        return text
    if kind == "bool":
        return _parse_bool(text)
    if item.name == "workers" and text == "auto":
        return None
    value = _parse_int(text) if kind == "int" else _parse_duration(text) if facts["duration"] else None
    low, high, above = facts["low"], facts["high"], facts["above"]
    if (
        value is None
        or (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    ):
        raise ValueError(f"{_describe_range(kind, low, high, above)} is wanted" + _or_auto(item.name))
    return value


def _or_auto(name: str) -> str:
    return ", or auto" if name == "workers" else ""


def _describe_range(kind: str, low: float | None, high: float | None, above: float | None) -> str:
    what = "a whole number" if kind == "int" else "a number of seconds or a duration like 1h30m"
    if above is not None:
        return f"{what} above {above:g}"
    if high is not None:
        return f"{what} from {low:g} to {high:g}"
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
