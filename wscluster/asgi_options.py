"""What the options of an ASGI app may be."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wscluster.config import Config

_HEADER = re.compile(r"([-!#$%&'*+.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")


def asgi_faults(config: Config, place: Callable[[str], str]) -> list[str]:
    """Return one line for each value that cannot be meant; ``place`` says where a field's value stands."""
    faults = [
        f"{place('header')} {text!r}: Name:Value in Latin-1, without control characters, is wanted (RFC 9110, 5.5)"
        for text in config.asgi.header
        if not _HEADER.fullmatch(text)
    ]
    root_path = config.asgi.root_path
    if not root_path.isascii() or not root_path.isprintable():
        faults.append(f"{place('root_path')} {root_path!r}: a path in printable ASCII is wanted")
    if config.asgi.factory and config.operate.interface == "handler":
        faults.append(f"{place('factory')}: what it returns is an ASGI app, but {place('interface')} is handler")
    return faults


def parse_header(text: str) -> tuple[str, str]:
    """Return name and value of a header that has no fault."""
    name, _, value = text.partition(":")
    return name, value.strip(" \t")
