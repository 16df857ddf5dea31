"""One message to many members: framed once, compressed once, written once for each member and turn of the loop."""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wscluster.envelope import Envelope
from wscluster.workers.frames import build_frame

if TYPE_CHECKING:
    from wscluster.workers.connection import Connection
    from wscluster.workers.hub import Hub

MAX_TURN_BYTES = 256 * 1024
"""Bytes of one room that a turn of the loop writes to each member; a single message may be larger."""
MIN_COMPRESSED_BYTES = 200
"""Below this a compressor that knows nothing of earlier messages saves next to nothing."""
MEMORY_LEVEL = 5
_MIN_WINDOW_BITS = 9
"""zlib has no raw stream with a window of 8 bits."""
_SYNC_TAIL = b"\x00\x00\xff\xff"


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages as one kind of member gets them.

    Attributes:
        frames: One frame for each message.
        count: Number of frames.
        data: All of them.
        all_but_last: Bytes that wait for the member when the last frame is looked at.
        compressed: True where a frame is compressed.
    """

    frames: Sequence[bytes]
    count: int
    data: bytes
    all_but_last: int
    compressed: bool


class Fanout:
    """Gathers each room's messages during one turn of the loop and writes them at its end.

    Args:
        max_send_queue: Unsent bytes of a member above which the next message closes it.

    Attributes:
        delivered: Messages written, once for each member.
        slow_closed: Members closed because they did not read.
    """

    def __init__(self, hub: Hub[Connection], max_send_queue: int, loop: asyncio.AbstractEventLoop) -> None:
        self._hub = hub
        self._max_send_queue = max_send_queue
        self._loop = loop
        self._waiting: dict[str, list[Envelope]] = {}
        self._scheduled = False
        self.delivered = 0
        self.slow_closed = 0

    def deliver(self, room: str, message: Envelope) -> None:
        """Write ``message`` to the members of ``room`` in this turn of the loop, or the next ones where it is much."""
        waiting = self._waiting.get(room)
        if waiting is not None:
            waiting.append(message)
            return
        self._waiting[room] = [message]
        self._schedule()

    def flush(self, room: str) -> None:
        """Write what waits for ``room`` now: before its members change."""
        while room in self._waiting:
            self._write_turn(room)

    def write_to(self, member: Connection, messages: Sequence[Envelope]) -> int:
        """Write ``messages`` to ``member`` alone, whatever is unsent; returns how many were for it."""
        own = [message for message in messages if message.excluded != member.id.bytes]
        if not own:
            return 0
        batch = make_batch(own, member.deflate_bits)
        if not member.deliver(batch.data, batch.count, batch.compressed, sys.maxsize):
            return 0
        self.delivered += batch.count
        return batch.count

    def close_slow(self, member: Connection) -> None:
        """Close ``member``, which does not read, and count it."""
        self.slow_closed += 1
        member.close_slow()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._write_all)

    def _write_all(self) -> None:
        self._scheduled = False
        for room in list(self._waiting):
            self._write_turn(room)
        if self._waiting:
            self._schedule()

    def _write_turn(self, room: str) -> None:
        """Write the oldest messages of ``room``, at least one."""
        waiting = self._waiting.pop(room)
        size = count = 0
        for message in waiting:
            size += len(message.payload)
            if count and size > MAX_TURN_BYTES:
                self._waiting[room] = waiting[count:]
                break
            count += 1
        messages = waiting if count == len(waiting) else waiting[:count]
        excluded = {message.excluded for message in messages if message.excluded is not None}
        batches: dict[int, Batch] = {}
        limit = self._max_send_queue
        delivered = 0
        for member in tuple(self._hub.members(room)):
            if excluded and member.id.bytes in excluded:
                own = [message for message in messages if message.excluded != member.id.bytes]
                if not own:
                    continue
                batch = make_batch(own, member.deflate_bits)
            else:
                bits = member.deflate_bits
                if bits not in batches:
                    batches[bits] = make_batch(messages, bits)
                batch = batches[bits]
            if member.deliver(batch.data, batch.count, batch.compressed, limit - batch.all_but_last):
                delivered += batch.count
            elif member.is_open:
                delivered += self._deliver_singly(member, batch)
        self.delivered += delivered

    def _deliver_singly(self, member: Connection, batch: Batch) -> int:
        """Deliver frame by frame up to the bound, then close the member; returns how many frames it got."""
        for number, frame in enumerate(batch.frames):
            if not member.deliver(frame, 1, batch.compressed, self._max_send_queue):
                self.close_slow(member)
                return number
        return batch.count


def make_batch(messages: Sequence[Envelope], deflate_bits: int) -> Batch:
    """Return ``messages`` framed for members that inflate with a window of ``deflate_bits`` (0: they do not)."""
    frames = []
    compressed = False
    for message in messages:
        small = compress(message.payload, deflate_bits) if deflate_bits >= _MIN_WINDOW_BITS else None
        compressed = compressed or small is not None
        frames.append(build_frame(message.text, message.payload if small is None else small, rsv1=small is not None))
    data = frames[0] if len(frames) == 1 else b"".join(frames)
    return Batch(frames, len(frames), data, len(data) - len(frames[-1]), compressed)


def compress(payload: bytes, window_bits: int) -> bytes | None:
    """Return ``payload`` compressed as a message of its own (RFC 7692, 7.2.1); None where that does not make it less.

    It refers to nothing that was sent before, so every client can inflate it whatever else it has received.
    """
    if len(payload) < MIN_COMPRESSED_BYTES:
        return None
    encoder = zlib.compressobj(wbits=-window_bits, memLevel=MEMORY_LEVEL)
    data = (encoder.compress(payload) + encoder.flush(zlib.Z_SYNC_FLUSH)).removesuffix(_SYNC_TAIL)
    return data if len(data) < len(payload) else None
