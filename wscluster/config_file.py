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
        return {}, [f"{name}:{_find_lines(text, ('tool',))['wscluster']}: tool.wscluster {values!r}: a table is wanted"]
    return _read_table(text, name, table, values)


def _read_table(text: str, name: str, table: tuple[str, ...], values: Mapping[str, Any]) -> Found:
    known = {*option_fields(), "target"}
    found: dict[str, Given] = {}
    problems = []
    lines = _find_lines(text, table)
    for key, value in values.items():
        place = f"{name}:{lines[key]}"
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


def _describe_syntax_fault(fault: str, name: str) -> str:
    match = re.search(r" \(at line (\d+), column (\d+)\)", fault)
    if match is None:
        return f"{name}: this is not TOML: {fault or 'it is nested too deeply'}"
    return f"{name}:{match[1]}: this is not TOML: {fault[: match.start()]} (column {match[2]})"


def _find_lines(text: str, table: tuple[str, ...]) -> dict[str, int]:
    """Return, for each key of ``table``, the number of the line where it is first set, from 1 on.

    No statement of TOML is the beginning of another, so the lines that make a document of their own are a statement.
    """
    found: dict[str, int] = {}
    within: tuple[str, ...] = ()
    begun, waiting = 1, ""
    for number, line in enumerate(re.split(r"(?<=\n)", text), 1):
        waiting += line
        try:
            statement: Any = tomllib.loads(waiting)
        except ValueError:
            continue  # a string or a list goes on
        if waiting.lstrip().startswith("["):
            within = _path_of(statement)
        else:
            for step in reversed(within):
                statement = {step: statement}
        values = _descend(statement, table)
        for key in values if isinstance(values, dict) else ():
            found.setdefault(key, begun)
        begun, waiting = number + 1, ""
    return found


def _path_of(header: Any) -> tuple[str, ...]:
    """Return the path of ``[a.b]`` or ``[[a.b]]``, which a document of nothing else holds."""
    path = []
    while isinstance(header, dict) and header:
        ((step, header),) = header.items()
        path.append(step)
    return tuple(path)


def _descend(document: Any, table: tuple[str, ...]) -> Any:
    for step in table:
        document = document.get(step) if isinstance(document, dict) else None
    return document
