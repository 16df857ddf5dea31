"""The bytes of a room's message on the bus (docs/bus.md): names, envelope, positions, and the script that publishes.

A room's key, which holds its log, and its channel have one name. Everything here is pure.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

VERSION = 1
_TEXT = 0x01
_EXCLUDES = 0x02
_ID_BYTES = 16

MAX_ROOM_BYTES = 255
MAX_LOGGED_BYTES = 64 * 1024
"""A larger message has a position but its payload is not in the log: a replay over it is a gap."""

FIELD = b"e"
"""Field of a log entry that holds the envelope; an entry without payload has an empty one."""

# Positions are EPOCH-SEQ: the server's milliseconds when the log began, and a count without holes, so that a hole in
# what was received shows, and so does a log that began anew. They are the ids of the stream's entries.
#
# KEYS[1] key and channel of the room; ARGV: envelope, entries kept, milliseconds kept, "1" where the log has payloads.
PUBLISH_SCRIPT = """\
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local id
if last then
  local epoch, seq = string.match(last[1], '^(%d+)%-(%d+)$')
  id = epoch .. '-' .. string.format('%.0f', tonumber(seq) + 1)
else
  local now = redis.call('TIME')
  id = string.format('%.0f', tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)) .. '-1'
end
if ARGV[4] == '1' then
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], id, 'e', ARGV[1])
else
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], id, 'e', '')
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PUBLISH', KEYS[1], id .. ' ' .. ARGV[1])
return id
"""
PUBLISH_SHA1 = hashlib.sha1(PUBLISH_SCRIPT.encode(), usedforsecurity=False).hexdigest()

# Run at the first subscription of a room that has no log: it begins one before the first message, so that a position
# from an empty room says as much as any other. Without memory for it, or the right to write, there is none.
BEGIN_SCRIPT = """\
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if last then return last[1] end
local now = redis.call('TIME')
local id = string.format('%.0f', tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)) .. '-0'
local made = redis.pcall('XADD', KEYS[1], id, 'e', '')
if type(made) == 'table' then return false end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return id
"""

_POSITION = re.compile(rb"([0-9]{1,20})-([0-9]{1,20})")
_MAX_NUMBER = 2**64 - 2  # the server has 64 bits for each, and cannot look for what is beyond the largest
MAX_POSITION_CHARS = 64


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message: its type and payload, and the id of the connection that is not to get it."""

    text: bool
    payload: bytes
    excluded: bytes | None = None


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where a message stands in its room's log."""

    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"


START = Position(0, 0)
"""Position in a room of which nothing is known, and no log could be begun: before everything."""


def check_room(room: object) -> bytes:
    """Return the name of a room as bytes.

    Raises:
        TypeError: It is no `str`.
        ValueError: It is empty, longer than 255 bytes, or no UTF-8.
    """
    if not isinstance(room, str):
        raise TypeError(f"a room's name is a str, not {type(room).__name__}")
    name = room.encode()  # a lone surrogate: UnicodeEncodeError, which is a ValueError
    if not 1 <= len(name) <= MAX_ROOM_BYTES:
        raise ValueError(f"a room's name has 1 to {MAX_ROOM_BYTES} bytes of UTF-8, not {len(name)}")
    return name


def key_of(prefix: str, room: bytes) -> bytes:
    """Return the key and channel of ``room``: ``PREFIX:{ROOM}``; the braces make a cluster keep them together."""
    return b"%s:{%s}" % (prefix.encode(), room)


def encode_message(message: object, excluded: bytes | None = None) -> bytes:
    """Return the envelope of ``message``; ``excluded`` is the id, 16 bytes, of the connection that is not to get it.

    Raises:
        TypeError: The message is neither `str` nor bytes-like.
        ValueError: The text is no UTF-8 (a lone surrogate).
    """
    if isinstance(message, str):
        flags, payload = _TEXT, message.encode()
    elif isinstance(message, (bytes, bytearray, memoryview)):
        flags, payload = 0, bytes(message)
    else:
        raise TypeError(f"a message is str or bytes, not {type(message).__name__}")
    if excluded is None:
        return bytes((VERSION, flags)) + payload
    return bytes((VERSION, flags | _EXCLUDES)) + excluded + payload


def decode_message(data: bytes) -> Envelope | None:
    """Return what `encode_message` made ``data`` of; None where it is no envelope."""
    if len(data) < 2 or data[0] != VERSION or data[1] & ~(_TEXT | _EXCLUDES):
        return None
    at, excluded = 2, None
    if data[1] & _EXCLUDES:
        at += _ID_BYTES
        excluded = data[2:at]
        if len(excluded) != _ID_BYTES:
            return None
    payload = data[at:]
    if data[1] & _TEXT:
        try:
            payload.decode()
        except UnicodeDecodeError:
            return None
    return Envelope(bool(data[1] & _TEXT), payload, excluded)


def parse_position(data: bytes) -> Position | None:
    """Return the position that ``data`` writes; None where it is none."""
    match = _POSITION.fullmatch(data)
    if match is None:
        return None
    position = Position(int(match[1]), int(match[2]))
    # What is shorter cannot hold so large a number.
    if len(data) > 20 and max(position.epoch, position.seq) > _MAX_NUMBER:
        return None
    return position


def parse_since(since: object) -> Position:
    """Return the position that an application gives back, which is what some room once gave it.

    Raises:
        TypeError: It is no `str`.
        ValueError: It is no position.
    """
    if not isinstance(since, str):
        raise TypeError(f"a position is a str, not {type(since).__name__}")
    if len(since) > MAX_POSITION_CHARS:
        raise ValueError(f"a position has at most {MAX_POSITION_CHARS} characters, not {len(since)}")
    position = parse_position(since.encode("ascii", "replace"))
    if position is None:
        raise ValueError(f"{since!r} is no position: it must be one that a join, a publish or `positions` gave")
    return position


def split_published(data: bytes) -> tuple[Position, bytes] | None:
    """Return position and envelope of what came on a channel; None where it is neither."""
    head, _, envelope = data.partition(b" ")
    position = parse_position(head)
    return None if position is None else (position, envelope)


def begin_arguments(key: bytes, ttl_seconds: float) -> tuple[bytes | str | int, ...]:
    """Return the command that answers a log's last position, and begins the log where there is none."""
    return ("EVAL", BEGIN_SCRIPT, 1, key, _milliseconds(ttl_seconds))


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def publish_arguments(key: bytes, envelope: bytes, log: int, ttl_seconds: float) -> tuple[bytes | str | int, ...]:
    """Return the command that publishes ``envelope``; ``log`` entries are kept for ``ttl_seconds``."""
    logged = log > 0 and len(envelope) <= MAX_LOGGED_BYTES
    return ("EVALSHA", PUBLISH_SHA1, 1, key, envelope, max(log, 1), _milliseconds(ttl_seconds), "1" if logged else "0")
