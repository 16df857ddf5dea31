"""A file of variables: ``KEY=VALUE`` lines, as `.env` files have them."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*", re.ASCII)
_QUOTED = re.compile(r"""("(?:[^"\\]|\\.)*"|'[^']*')\s*(?:#.*)?""")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable of the file, and the number of its line, from 1 on."""

    value: str
    line: int


def parse_env_file(text: str) -> tuple[dict[str, Variable], list[tuple[int, str]]]:
    """Return the variables, and the faults, each with the number of its line.

    Empty lines and those that begin with ``#`` say nothing; ``export`` may stand before a name. A value in single
    quotes is taken as it is, in one in double quotes a backslash escapes n, r, t, the quotes and itself; without quotes
    it ends at the line's end or before `` #``. Nothing is put in for ``$NAME``. Of a name that comes twice the last
    value counts.
    """
    found: dict[str, Variable] = {}
    problems = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _NAME.match(line)
        value = _read_value(line[match.end() :]) if match is not None else None
        if match is None:
            problems.append((number, "NAME=VALUE is wanted, the name of letters, digits and _"))
        elif value is None:
            problems.append((number, f"the quotes of {match[1]} do not end, or something stands behind them"))
        elif "\0" in value:
            problems.append((number, f"{match[1]} has a NUL, which no variable can hold"))
        else:
            found[match[1]] = Variable(value, number)
    return found, problems


def _read_value(text: str) -> str | None:
    if text[:1] not in ("'", '"'):
        return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].rstrip()
    quoted = _QUOTED.fullmatch(text)
    if quoted is None:
        return None
    inside = quoted[1][1:-1]
    if text[0] == "'":
        return inside
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1] if match[1] in '"\\' else match[0]), inside)
