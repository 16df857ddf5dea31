"""The configuration file: ``wscluster.toml``, or the table ``[tool.wscluster]`` of another TOML file."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from wscluster.config import option_fields
from wscluster.sources import Given

TABLE = ("tool", "wscluster")

Found = tuple[dict[str, Given], list[str]]


def parse_config_file(text: str, name: str) -> Found | None:
    """Return what a file says, by the names of the fields (``target`` is one too), and all that is wrong with it.

    A file with a table ``[tool.wscluster]`` says what stands there, any other what stands at its top. Keys are the
    names of the fields, written with underscores or dashes.

    Args:
        name: What the file is called in faults and origins.

    Returns:
        None where it is a ``pyproject.toml`` without the table.
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        return {}, [_describe_syntax_fault(str(exc), name)]
    tool = document.get("tool")
    table: tuple[str, ...] = TABLE if isinstance(tool, dict) and "wscluster" in tool else ()
    if not table and re.split(r"[/\\]", name)[-1] == "pyproject.toml":
        return None
    values: Any = _descend(document, table)
    if not isinstance(values, dict):
        line = _find_line(text, ("tool",), "wscluster")
        return {}, [f"{_at(name, line)}: tool.wscluster {values!r}: a table is wanted"]
    return _read_table(text, name, table, values)


def _read_table(text: str, name: str, table: tuple[str, ...], values: Mapping[str, Any]) -> Found:
    known = {*option_fields(), "target"}
    found: dict[str, Given] = {}
    problems = []
    for key, value in values.items():
        place = _at(name, _find_line(text, table, key))
        field = key.replace("-", "_")
        if field not in known:
            problems.append(f"{place}: there is no option {key!r}{_hint(key, field, known, value)}")
        elif field in found:
            problems.append(f"{place}: {key} stands in the file twice, as {found[field].place.rpartition(' ')[2]} too")
        else:
            found[field] = Given(f"{place}: {key}", f"file {place}", value, texts=False, rank=3)
    return found, problems


def _hint(key: str, field: str, known: set[str], value: object) -> str:
    if isinstance(value, dict):
        return "; the options stand in no tables of their own"
    close = difflib.get_close_matches(field, sorted(known), n=1)
    if not close:
        return "; `wscluster serve --help` lists what there is"
    return f"; did you mean {close[0].replace('_', '-') if '-' in key else close[0]}?"


def _at(name: str, line: int | None) -> str:
    return name if line is None else f"{name}:{line}"


def _describe_syntax_fault(fault: str, name: str) -> str:
    match = re.search(r" \(at line (\d+), column (\d+)\)", fault)
    if match is None:
        return f"{name}: this is not TOML: {fault or 'it is nested too deeply'}"
    return f"{name}:{match[1]}: this is not TOML: {fault[: match.start()]} (column {match[2]})"


def _find_line(text: str, table: tuple[str, ...], key: str) -> int | None:
    """Return the number of the line where ``key`` of ``table`` is set, from 1 on; None where it is written in a way
    that only a parser finds.

    A line that looks like it is the one when what stands before it is a document without the key, and the least that
    is one with it reaches up to it.
    """
    lines = re.split(r"(?<=\n)", text)
    looks = re.compile(rf"(^|[\s.,{{\"'\[]){re.escape(key)}[\"'\]]*\s*[.=\]]|^\s*\[.*{re.escape(key)}")
    for number, line in enumerate(lines):
        if not looks.search(line):
            continue
        before = _parse("".join(lines[:number]))
        if before is None or _has(before, table, key):
            continue
        for end in range(number + 1, len(lines) + 1):
            after = _parse("".join(lines[:end]))
            if after is not None:
                if _has(after, table, key):
                    return number + 1
                break
    return None


def _parse(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except ValueError:
        return None


def _has(document: Mapping[str, Any], table: tuple[str, ...], key: str) -> bool:
    values = _descend(document, table)
    return isinstance(values, dict) and key in values


def _descend(document: Any, table: tuple[str, ...]) -> Any:
    for step in table:
        document = document.get(step) if isinstance(document, dict) else None
    return document
