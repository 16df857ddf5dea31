"""Where the primary listens, as a person writes it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from wscluster.config import Listen

WANTED = "HOST:PORT, [V6]:PORT, unix:PATH or fd:N is wanted"


@dataclass(frozen=True, slots=True)
class Tcp:
    """Every address of ``host`` at ``port`` (0: the kernel chooses)."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class UnixPath:
    """A Unix socket that is made at ``path``."""

    path: str


@dataclass(frozen=True, slots=True)
class Inherited:
    """A bound socket that this process was started with."""

    fd: int


Address = Tcp | UnixPath | Inherited


def parse_address(text: str) -> Address:
    """Return the address that ``text`` means.

    Raises:
        ValueError: It means none; the message says what is wanted.
    """
    kind, colon, rest = text.partition(":")
    if kind == "unix" and colon:
        return UnixPath(_check_path(rest))
    if kind == "fd" and colon:
        if not re.fullmatch(r"[0-9]{1,9}", rest):
            raise ValueError("fd:N with the number of an open socket is wanted")
        return Inherited(int(rest))
    match = re.fullmatch(r"(?:\[([^\[\]]*)\]|([^\[\]:]*)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise ValueError(WANTED)
    return Tcp(match[2] if match[1] is None else match[1], int(match[3]))


def show_address(address: Address) -> str:
    """Return the text of ``address``, as `parse_address` reads it."""
    if isinstance(address, UnixPath):
        return f"unix:{address.path}"
    if isinstance(address, Inherited):
        return f"fd:{address.fd}"
    return f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"


def listen_addresses(listen: Listen) -> tuple[Address, ...]:
    """Return what ``listen`` says to listen on: ``--bind``, else ``--uds`` or ``--fd``, else ``--host`` and ``--port``.

    Raises:
        ValueError: One of them is no address, or stands there twice; the message says which.
    """
    if listen.uds is not None:
        return (UnixPath(_check_path(listen.uds)),)
    if listen.fd is not None:
        return (Inherited(listen.fd),)
    if not listen.bind:
        return (Tcp(listen.host, listen.port),)
    found: list[Address] = []
    for text in listen.bind:
        try:
            address = parse_address(text)
        except ValueError as exc:
            raise ValueError(f"{text!r}: {exc}") from None
        # The kernel may be asked for as many ports as one likes.
        if address in found and not (isinstance(address, Tcp) and address.port == 0):
            raise ValueError(f"{text!r} stands there twice")
        found.append(address)
    return tuple(found)


def _check_path(path: str) -> str:
    if not path or "\0" in path:
        raise ValueError("the path of a Unix socket is wanted")
    return path
