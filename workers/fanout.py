"""One message to many members: framed once, compressed once, written once for each member and turn of the loop."""

from __future__ import annotations

import asyncio
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
        data: All of them.
        compressed: True where a frame is compressed.
    """

    frames: Sequence[bytes]
    data: bytes
    compressed: bool

    @property
    def all_but_last(self) -> int:
        """Bytes that wait for the member when the last frame is looked at."""
        return len(self.data) - len(self.frames[-1])


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
        for member in tuple(self._hub.members(room)):
            if not member.is_open:
                continue
            if excluded and member.id.bytes in excluded:
                own = [message for message in messages if message.excluded != member.id.bytes]
                if own:
                    self._write(member, make_batch(own, member.deflate_bits))
                continue
            bits = member.deflate_bits
            batch = batches.get(bits)
            if batch is None:
                batch = batches[bits] = make_batch(messages, bits)
            self._write(member, batch)

    def _write(self, member: Connection, batch: Batch) -> None:
        limit = self._max_send_queue
        count = len(batch.frames)
        if member.unsent_bytes() + batch.all_but_last <= limit:
            member.write_frames(batch.data, count, batch.compressed)
            self.delivered += count
            return
        for frame in batch.frames:
            if member.unsent_bytes() > limit:
                self.slow_closed += 1
                member.close_slow()
                return
            member.write_frames(frame, 1, batch.compressed)
            self.delivered += 1


def make_batch(messages: Sequence[Envelope], deflate_bits: int) -> Batch:
    """Return ``messages`` framed for members that inflate with a window of ``deflate_bits`` (0: they do not)."""
    frames = []
    compressed = False
    for message in messages:
        small = compress(message.payload, deflate_bits) if deflate_bits >= _MIN_WINDOW_BITS else None
        compressed = compressed or small is not None
        frames.append(build_frame(message.text, message.payload if small is None else small, rsv1=small is not None))
    return Batch(frames, frames[0] if len(frames) == 1 else b"".join(frames), compressed)


def compress(payload: bytes, window_bits: int) -> bytes | None:
    """Return ``payload`` compressed as a message of its own (RFC 7692, 7.2.1); None where that does not make it less.

    It refers to nothing that was sent before, so every client can inflate it whatever else it has received.
    """
    if len(payload) < MIN_COMPRESSED_BYTES:
        return None
    encoder = zlib.compressobj(wbits=-window_bits, memLevel=MEMORY_LEVEL)
    data = (encoder.compress(payload) + encoder.flush(zlib.Z_SYNC_FLUSH)).removesuffix(_SYNC_TAIL)
    return data if len(data) < len(payload) else None
