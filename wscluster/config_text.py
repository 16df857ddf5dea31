"""A configuration as text for a person: each value with where it came from, without passwords."""

from __future__ import annotations

import json
from typing import Any

from wscluster.config import option_fields
from wscluster.options import hide_secrets
from wscluster.sources import Resolved


def show_config(resolved: Resolved) -> str:
    """Return the lines of a TOML file that says the same, each with where its value came from as its comment.

    Values that are not set stand in a comment, and so does a program, which no file names; passwords are ``***``.
    """
    config = resolved.config
    rows: list[tuple[str, str | None]] = [] if config.run else [("target", _as_toml(config.target))]
    for name, (group, item) in option_fields().items():
        if name not in resolved.origins:
            continue
        value = getattr(getattr(config, group), name)
        if name == "workers" and value is None:
            value = "auto"
        if name in ("host", "port") and (config.listen.bind or config.listen.uds or config.listen.fd is not None):
            value = None  # another way to listen has been chosen
        if value == item.default == ():
            value = None
        rows.append((name, None if value is None else _as_toml(hide_secrets(item, value))))
    texts = [f"# {name} is not set" if text is None else f"{name} = {text}" for name, text in rows]
    width = min(max(map(len, texts)), 60)
    lines = [f"{text:{width}}  # {resolved.origins[name]}\n" for text, (name, _) in zip(texts, rows, strict=True)]
    return "".join([f"# run {_as_toml(config.run)}\n", *lines] if config.run else lines)


def _as_toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_as_toml, value))}]"
    if isinstance(value, float):
        return f"{value:.15g}"
    # What JSON escapes, TOML escapes too, and DEL beside it.
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    # Bytes of the environment that are no UTF-8 can be shown, not written down.
    return text.encode(errors="replace").decode()
