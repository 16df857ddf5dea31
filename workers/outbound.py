"""The outbound half of a WebSocket connection: what is written, and what waits for the client to read."""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING

from wscluster.workers.frames import build_frame

if TYPE_CHECKING:
    from websockets.extensions.permessage_deflate import PerMessageDeflate
    from websockets.server import ServerProtocol

    from wscluster.workers.serve import HandlerServer

WRITE_HIGH_BYTES = 32768
"""Unsent bytes above which ``send`` waits, as in `websockets`."""


class Outbound(asyncio.Protocol):
    """Writes messages and frames, compresses the connection's own messages, and knows how much is unsent."""

    __slots__ = (
        "_deflate", "_encoder_stale", "_fragmenting", "_held", "_paused_writing", "_write_waiters", "is_open",
        "protocol", "server", "transport",
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
        self._encoder_stale = False

    @property
    def deflate_bits(self) -> int:
        """Window bits with which messages to this client may be compressed; 0 without permessage-deflate."""
        return 0 if self._deflate is None else self._deflate.local_max_window_bits

    def unsent_bytes(self) -> int:
        """Return how many bytes wait for this client to read."""
        unsent = self.transport.get_write_buffer_size()
        return unsent if self._held is None else unsent + sum(map(len, self._held))

    def write_frames(self, data: bytes, count: int, compressed: bool) -> None:
        """Write ``count`` whole frames; ignored where the connection is not open.

        ``compressed`` says that a compressor of its own made some of them: the client's window then no longer holds
        what ours remembers, so ours begins anew.
        """
        if not self.is_open:
            return
        if self._fragmenting is not None:
            if self._held is None:
                self._held = []
            self._held.append(data)
        else:
            self.transport.write(data)
        if compressed:
            self._encoder_stale = True
        self.server.messages_out += count

    def write_message(self, is_text: bool, payload: bytes) -> None:
        """Write one whole message of this connection's own."""
        if self._deflate is None:
            self.transport.write(build_frame(is_text, payload))
        else:
            self.write_fragment(is_text, payload, fin=True)
        self.server.messages_out += 1

    def write_fragment(self, is_text: bool | None, payload: bytes, *, fin: bool) -> None:
        """Write one frame of a message: its first where ``is_text`` says its type, a later one where that is None."""
        protocol = self.protocol
        if is_text is None:
            protocol.send_continuation(payload, fin)
        else:
            self._renew_compressor()
            if is_text:
                protocol.send_text(payload, fin)
            else:
                protocol.send_binary(payload, fin)
        for data in protocol.data_to_send():
            self.transport.write(data)

    def write_held(self) -> None:
        """Write what rooms sent while a fragmented message was under way."""
        held, self._held = self._held, None
        if held and self.is_open:
            self.transport.write(b"".join(held))

    def _renew_compressor(self) -> None:
        """Give the connection a fresh compressor where the client's window no longer matches it (RFC 7692, 7.1.1)."""
        deflate = self._deflate
        if deflate is not None and self._encoder_stale:
            self._encoder_stale = False
            if not deflate.local_no_context_takeover:
                deflate.encoder = zlib.compressobj(wbits=-deflate.local_max_window_bits, **deflate.compress_settings)

    # Flow control

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
