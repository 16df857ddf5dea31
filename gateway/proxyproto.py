"""The PROXY protocol, versions 1 and 2: what a balancer in front says about the client, before the client's own bytes.

A header is a line of text or a binary block, see `doc/proxy-protocol.txt` of HAProxy, sections 2.1 and 2.2. Nothing
here raises on a client's bytes, and no more than `LOOK_BYTES` of them are ever looked at.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

V1_PREFIX = b"PROXY "
V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
MAX_V1_BYTES = 107
"""The longest line of version 1, its CRLF included."""

_V2_PREFIX_BYTES = 16
_LOCAL = 0
_INET, _INET6, _UNIX = 1, 2, 3
_STREAM = 1
_ADDRESS_BYTES = {_INET: 12, _INET6: 36, _UNIX: 216}
_FAMILIES = {b"TCP4": socket.AF_INET, b"TCP6": socket.AF_INET6}

LOOK_BYTES = _V2_PREFIX_BYTES + max(_ADDRESS_BYTES.values())
"""So many bytes of a stream decide: version 2 has its addresses first, and its TLVs are skipped unread."""


@dataclass(frozen=True, slots=True)
class Header:
    """The stream begins with a header of ``length`` bytes, 0 where it may have none and has none.

    At most 16 + 65,535 bytes; the last of them, TLVs, may not have come yet. ``source`` is the true client: host and
    port, host empty for one on a Unix socket; None where the connection's own address counts (LOCAL: the balancer
    itself asks, a health check; UNKNOWN and UNSPEC: it cannot say; datagrams: not this connection).
    """

    length: int
    source: tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class NeedMore:
    """The bytes are the beginning of a header."""


@dataclass(frozen=True, slots=True)
class Invalid:
    """The bytes do not begin with a header that is wanted; ``reason`` has no byte of the client in it."""

    reason: str


Outcome = Header | NeedMore | Invalid


def parse(data: bytes, mode: str) -> Outcome:
    """Return what the first bytes of a stream are.

    Whatever follows the header may stand in ``data`` too. An outcome that is not `NeedMore` stays the same when more
    bytes come.

    Args:
        data: The stream from its first byte; `LOOK_BYTES` are enough.
        mode: ``v1`` or ``v2`` demand a header of this version, ``auto`` takes both and streams without a header.
    """
    for version, signature, parse_version in _VERSIONS:
        if not signature.startswith(data[: len(signature)]):
            continue
        if len(data) < len(signature):
            return NeedMore()
        if mode not in (version, "auto"):
            return Invalid(f"a PROXY header of {version} where {mode} is wanted")
        return parse_version(data)
    return Header(0, None) if mode == "auto" else Invalid("no PROXY header")


def _parse_v1(data: bytes) -> Outcome:
    end = data.find(b"\r\n", 0, MAX_V1_BYTES)
    if end < 0 and len(data) >= MAX_V1_BYTES:
        return Invalid(f"a PROXY line of more than {MAX_V1_BYTES} bytes")
    line = data[:end] if end >= 0 else data.removesuffix(b"\r")
    if b"\r" in line or b"\n" in line:
        return Invalid("a PROXY line with a lone CR or LF")
    if end < 0:
        return NeedMore()
    match line.split(b" "):
        case [_, b"UNKNOWN", *_]:
            return Header(end + 2, None)
        case [_, b"TCP4" | b"TCP6" as family, *fields] if len(fields) == 4:
            return _parse_fields(_FAMILIES[family], fields, end + 2)
    return Invalid("a PROXY line that is neither TCP4, TCP6 nor UNKNOWN, or has not four fields")


def _parse_fields(family: int, fields: list[bytes], length: int) -> Outcome:
    try:
        # Back from its bytes: the text that the kernel would give for this address.
        source, _ = (socket.inet_pton(family, field.decode("ascii")) for field in fields[:2])
        port, _ = map(_parse_port, fields[2:])
    except (OSError, ValueError):  # ValueError: no ASCII, a NUL, no port
        return Invalid("a PROXY line with a malformed address or port")
    return Header(length, (socket.inet_ntop(family, source), port))


def _parse_port(text: bytes) -> int:
    # `int` would take signs, blanks, underscores and leading zeros.
    if not text.isdigit() or (text[0] == ord("0") and text != b"0") or len(text) > 5 or int(text) > 65535:
        raise ValueError("no port")
    return int(text)


def _parse_v2(data: bytes) -> Outcome:
    # Byte 13 is version and command, 14 family and transport; each is judged as soon as it is there.
    if len(data) < 13:
        return NeedMore()
    version, command = divmod(data[12], 16)
    if version != 2 or command > 1:
        return Invalid("a PROXY header of an unknown version or command")
    if len(data) < 14:
        return NeedMore()
    family, transport = divmod(data[13], 16)
    if command != _LOCAL and (family > _UNIX or transport > 2):
        return Invalid("a PROXY header of an unknown address family or transport")
    if len(data) < _V2_PREFIX_BYTES:
        return NeedMore()
    length = int.from_bytes(data[14:16], "big")
    whole = _V2_PREFIX_BYTES + length
    if command == _LOCAL or family not in _ADDRESS_BYTES or transport == 0:
        return Header(whole, None)
    needed = _ADDRESS_BYTES[family]
    if length < needed:
        return Invalid("a PROXY header that is too short for its addresses")
    if len(data) < _V2_PREFIX_BYTES + needed:
        return NeedMore()
    return Header(whole, _source(family, data[_V2_PREFIX_BYTES:]) if transport == _STREAM else None)


def _source(family: int, block: bytes) -> tuple[str, int]:
    """Return the client of an address block: source, destination, source port, destination port."""
    if family == _UNIX:
        return "", 0
    kind, size = (socket.AF_INET, 4) if family == _INET else (socket.AF_INET6, 16)
    return socket.inet_ntop(kind, block[:size]), int.from_bytes(block[2 * size : 2 * size + 2], "big")


_VERSIONS = (("v1", V1_PREFIX, _parse_v1), ("v2", V2_SIGNATURE, _parse_v2))
