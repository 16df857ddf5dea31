"""The configuration file: ``wscluster.toml``, or the table ``[tool.wscluster]`` of another TOML file."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from wscluster.config import option_fields
from wscluster.sources import Given

TABLE = ("tool", "wscluster")

_TOKEN = re.compile(
    # Strings of several lines may end in up to five quotes.
    r'''"""(?:\\.|[^\\])*?"{3,5}|\'{3}.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|\#[^\n]*|[\[\]{}\n]''',
    re.DOTALL,
)

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

    ``text`` is TOML, and the time is proportional to its length.
    """
    found: dict[str, int] = {}
    within: tuple[str, ...] = ()
    number = 1
    for lines in _split_statements(text):
        statement: Any = tomllib.loads(lines)
        if lines.lstrip().startswith("["):
            within = _path_of(statement)
        else:
            for step in reversed(within):
                statement = {step: statement}
        values = _descend(statement, table)
        for key in values if isinstance(values, dict) else ():
            found.setdefault(key, number)
        number += lines.count("\n")
    return found


def _split_statements(text: str) -> Iterator[str]:
    """Return the statements of a TOML document, each with the line break at its end: its only one outside of lists."""
    begun = depth = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in ("[", "{"):
            depth += 1
        elif token in ("]", "}"):
            depth -= 1
        elif token == "\n" and not depth:
            yield text[begun : match.end()]
            begun = match.end()
    yield text[begun:]


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
