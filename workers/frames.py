"""WebSocket frames on the wire (RFC 6455, 5.2): building those that a server sends, measuring those that it receives.

Only what is hot or must be known before the library's parser sees a byte stands here; parsing and checking is the
library's. This is the one file that uses what `websockets` does not document: its C function that unmasks a payload.
"""

from __future__ import annotations

import struct

try:
    from websockets.speedups import apply_mask as apply_mask
except ImportError:  # pragma: no cover  (a platform without the library's C extension)
    from websockets.utils import apply_mask as apply_mask

TEXT = 0x81
"""First byte of a whole text frame: FIN and opcode 1."""
BINARY = 0x82
"""First byte of a whole binary frame: FIN and opcode 2."""
RSV1 = 0x40
"""Says that a message is compressed (RFC 7692, 6)."""

CONTROL = 0x08
"""Bit of the opcode of control frames (RFC 6455, 5.5)."""

MASKED = 0x80
_OPCODES = frozenset((0, 1, 2, 8, 9, 10))
_SHORT_HEADS = {first: tuple(bytes((first, n)) for n in range(126)) for first in (TEXT, BINARY)}
_HEAD_16 = struct.Struct("!BBH")
_HEAD_64 = struct.Struct("!BBQ")
_UINT_16 = struct.Struct("!H")
_UINT_64 = struct.Struct("!Q")


def build_frame(text: bool, payload: bytes, *, rsv1: bool = False) -> bytes:
    """Return one whole, unmasked data frame; ``rsv1`` says that ``payload`` is compressed."""
    first = TEXT if text else BINARY
    length = len(payload)
    if rsv1:
        first |= RSV1
    elif length < 126:
        return _SHORT_HEADS[first][length] + payload
    if length < 126:
        return bytes((first, length)) + payload
    if length < 65536:
        return _HEAD_16.pack(first, 126, length) + payload
    return _HEAD_64.pack(first, 127, length) + payload


def measure_frame(data: bytes, at: int) -> tuple[int, int]:
    """Return header size and payload length, in bytes, of the masked frame that begins at ``data[at]``.

    ``(0, 0)`` where the header is not whole yet. An unmasked frame is measured as it is: refusing it is the parser's.
    """
    have = len(data) - at
    if have < 2:
        return 0, 0
    second = data[at + 1]
    length = second & 0x7F
    size = 6 if second & MASKED else 2
    if length == 126:
        if have < 4:
            return 0, 0
        return size + 2, _UINT_16.unpack_from(data, at + 2)[0]
    if length == 127:
        if have < 10:
            return 0, 0
        return size + 8, _UINT_64.unpack_from(data, at + 2)[0]
    return size, length


def refused_at_once(first: int, second: int) -> bool:
    """Say whether the parser refuses a client's frame by its first two bytes: a reserved opcode, or no mask.

    Such a frame must not be waited for.
    """
    return not second & MASKED or (first & 0x0F) not in _OPCODES
