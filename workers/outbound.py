"""The outbound half of a WebSocket connection: what is written, and what waits for the client to read."""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING, Any

from wscluster.workers.frames import build_frame

if TYPE_CHECKING:
    from websockets.extensions.permessage_deflate import PerMessageDeflate
    from websockets.server import ServerProtocol

    from wscluster.workers.serve import HandlerServer

WRITE_HIGH_BYTES = 32768
"""Unsent bytes above which ``send`` waits, as in `websockets`."""


class LazyCompressor:
    """A connection's compressor, made at its first message: those that only hear rooms never need its 32 KiB.

    It takes the place of the extension's ``encoder``.
    """

    __slots__ = ("_deflate", "_encoder")

    def __init__(self, deflate: PerMessageDeflate) -> None:
        self._deflate = deflate
        self._encoder: Any = None

    def forget(self) -> None:
        """Begin anew: the client's window no longer holds what this compressor remembers (RFC 7692, 7.1.1)."""
        self._encoder = None

    def compress(self, data: bytes) -> bytes:
        """As `zlib.Compress.compress`."""
        if self._encoder is None:
            deflate = self._deflate
            self._encoder = zlib.compressobj(wbits=-deflate.local_max_window_bits, **deflate.compress_settings)
        compressed: bytes = self._encoder.compress(data)
        return compressed

    def flush(self, mode: int) -> bytes:
        """As `zlib.Compress.flush`."""
        flushed: bytes = self._encoder.flush(mode)
        return flushed


class Outbound(asyncio.Protocol):
    """Writes messages and frames, compresses the connection's own messages, and knows how much is unsent."""

    __slots__ = (
        "_deflate", "_fragmenting", "_held", "_lazy", "_paused_writing", "_write_waiters",
        "deflate_bits", "is_open", "protocol", "server", "transport",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, protocol: ServerProtocol, server: HandlerServer) -> None:
        self.protocol = protocol
        self.server = server
        self.is_open = False
        self._paused_writing = False
        self._write_waiters: list[asyncio.Future[None]] | None = None
        # Set while a fragmented message of our own is under way; frames of rooms are held until it is whole.
        self._fragmenting: asyncio.Future[None] | None = None
        self._held: list[bytes] | None = None
        self._deflate: PerMessageDeflate | None = None
        # Window bits with which messages to this client may be compressed; 0 without permessage-deflate.
        self.deflate_bits = 0
        self._lazy: LazyCompressor | None = None

    def unsent_bytes(self) -> int:
        """Return how many bytes wait for this client to read."""
        unsent = self.transport.get_write_buffer_size()
        return unsent if self._held is None else unsent + sum(map(len, self._held))

    def deliver(self, data: bytes, count: int, compressed: bool, limit: int) -> bool:
        """Write ``count`` whole frames of rooms; False where the connection is not open or has too much unsent.

        One call for each member and turn of the loop: this is the hot path of the fan-out.

        Args:
            compressed: A compressor of its own made some of the frames: the client's window then no longer holds what
                ours remembers, so ours begins anew.
            limit: Unsent bytes above which nothing is written.
        """
        if not self.is_open:
            return False
        if self._fragmenting is None:
            if self.transport.get_write_buffer_size() > limit:
                return False
            self.transport.write(data)
        else:
            if self.unsent_bytes() > limit:
                return False
            if self._held is None:
                self._held = []
            self._held.append(data)
        if compressed and self._lazy is not None:
            self._lazy.forget()
        self.server.messages_out += count
        return True

    def write_message(self, is_text: bool, payload: bytes) -> None:
        """Write one whole message of this connection's own."""
        if self._deflate is None:
            self.transport.write(build_frame(is_text, payload))
        else:
            self.write_fragment(is_text, payload, fin=True)
        server, size = self.server, len(payload)
        server.messages_out += 1
        server.bytes_out += size
        server.sizes_out[size.bit_length()] += 1

    def write_fragment(self, is_text: bool | None, payload: bytes, *, fin: bool) -> None:
        """Write one frame of a message: its first where ``is_text`` says its type, a later one where that is None."""
        protocol = self.protocol
        if is_text is None:
            protocol.send_continuation(payload, fin)
        else:
            if is_text:
                protocol.send_text(payload, fin)
            else:
                protocol.send_binary(payload, fin)
        self.send_data()

    def write_held(self) -> None:
        """Write what rooms sent while a fragmented message was under way."""
        held, self._held = self._held, None
        if held and self.is_open:
            self.transport.write(b"".join(held))

    # What `websockets.asyncio.server.broadcast` asks of a connection

    @property
    def send_in_progress(self) -> asyncio.Future[None] | None:
        """Set while a fragmented message is under way."""
        return self._fragmenting

    def send_data(self) -> None:
        """Write what the protocol wants to send."""
        for data in self.protocol.data_to_send():
            self.transport.write(data)

    # Flow control

    @property
    def is_clear(self) -> bool:
        """Whether the client has read enough, and no fragmented message is under way."""
        return self._fragmenting is None and not self._paused_writing

    def pause_writing(self) -> None:
        self._paused_writing = True

    def resume_writing(self) -> None:
        self._paused_writing = False
        waiters, self._write_waiters = self._write_waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    async def wait_writable(self) -> None:
        """Wait until the client has read enough, or its connection has ended."""
        while self._paused_writing:
            waiter = self.server.loop.create_future()
            if self._write_waiters is None:
                self._write_waiters = []
            self._write_waiters.append(waiter)
            await waiter
