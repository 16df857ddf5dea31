"""The inbound half of a WebSocket connection: from bytes to frames.

`Wire` is the asyncio protocol under a handler's `Connection`. It cuts the stream into whole frames itself and gives the
library's Sans-I/O parser one whole frame at a time, so that the parser always rests at a frame boundary and everything
that is not parsed yet is here, where a move to another process can take it out. A whole, unfragmented, uncompressed
data frame, which is nearly every frame, needs no parser and takes the short way.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, cast

from websockets.exceptions import InvalidMessage
from websockets.frames import PING, PONG, Frame
from websockets.http11 import Request
from websockets.protocol import CLOSING, CONNECTING

from wscluster.workers.frames import BINARY, CONTROL, MASKED, TEXT, apply_mask, measure_frame, refused_at_once
from wscluster.workers.inbox import Inbox
from wscluster.workers.outbound import WRITE_HIGH_BYTES

if TYPE_CHECKING:
    from websockets.server import ServerProtocol

    from wscluster.workers.serve import HandlerServer

HEAD_END = b"\r\n\r\n"
FREE_BYTES = 128
"""A first frame up to this size begins no turn, and a control frame of this size waits for none: it costs little."""
REQUEST_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Wire(Inbox):
    """Feeds a Sans-I/O `ServerProtocol` from the transport, and says what the transport says of its end."""

    __slots__ = ("__weakref__", "_eof", "_need", "_partial", "_pings", "latency", "peer", "request")

    def __init__(self, protocol: ServerProtocol, server: HandlerServer, peer: tuple[str, int] | None) -> None:
        super().__init__(protocol, server)
        self.peer = peer
        self.request: Request | None = None
        self.latency = 0.0
        # What was read and is not parsed: an unfinished frame (of which _need bytes are wanted), or, while the opening
        # handshake goes on, the last bytes of the head and then all that came after it.
        self._partial: bytes | bytearray = b""
        self._need = 0
        self._eof = False
        # Payload -> (waiter or None for a keepalive ping, when it was sent), in the order of sending.
        self._pings: dict[bytes, tuple[asyncio.Future[float] | None, float]] | None = None

    @property
    def is_untouched(self) -> bool:
        """Whether not a byte of the client was read."""
        return self.request is None and not self._partial and not self._eof and self.protocol.state is CONNECTING

    # Transport to protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(WRITE_HIGH_BYTES)
        self.server.connected(self)

    def data_received(self, data: bytes) -> None:
        if self.is_open or (self.protocol.state is CLOSING and not self.protocol.eof_sent):
            # While our close frame waits for the client's, its frames are still cut and checked.
            pending = self._partial
            if pending:
                if not isinstance(pending, bytearray):
                    pending = self._partial = bytearray(pending)
                pending += data
                if len(pending) < self._need or self._paused_reading:
                    return
                data = bytes(pending)
                self._partial = b""
            self._read_frames(data)
        elif self.protocol.state is CONNECTING:
            self._read_head(data)
        else:
            self._parse(data)

    def _read_frames(self, data: bytes) -> None:
        """Cut ``data`` into frames until the inbox is full; the rest waits in ``_partial``."""
        at, end = 0, len(data)
        limit = self.server.max_size
        inbox, turns = self._inbox, self.server.turns
        before = len(inbox)
        while at < end:
            if len(inbox) > self.server.max_queue and not self._dropping:
                self._partial, self._need = data[at:], 0
                break
            first = data[at]
            header, length = measure_frame(data, at)
            stop = at + header + length
            if header and stop <= end and length <= limit:
                if (first == TEXT or first == BINARY) and self._short_way and data[at + 1] & MASKED:
                    body = at + header
                    inbox.append((first == TEXT, apply_mask(data[body:stop], data[body - 4 : body])))
                    at = stop
                    continue
            elif not header or (length <= limit and not refused_at_once(first, data[at + 1])):
                self._partial, self._need = data[at:], stop - at
                break
            # Everything else is for the parser: one whole frame, or all there is of one that it refuses.
            if (at or stop > FREE_BYTES or (turns.begun and not first & CONTROL)) and turns.is_over():
                self._partial, self._need = data[at:], 0
                self._wait_for_turn()
                break
            self._parse(data[at:stop])
            at = stop
            if self.protocol.eof_sent:
                break
        if len(inbox) != before:
            server = self.server
            server.messages_in += len(inbox) - before
            for received in inbox[before:]:
                size = len(received[1])
                server.bytes_in += size
                server.sizes_in[size.bit_length()] += 1
            self._wake_reader()

    def _wait_for_turn(self) -> None:
        self.server.turns.wait(self)
        if not self._paused_reading:
            self._paused_reading = True
            self.transport.pause_reading()

    def go_on(self) -> None:
        """It is this connection's turn again: read on, unless too many messages wait, whose taker does it then."""
        if len(self._inbox) <= self.server.max_queue or self._dropping:
            self.resume_reading()

    def _read_head(self, data: bytes) -> None:
        """Give the parser the opening handshake's head and not a byte more: frames may follow in the same segment."""
        if self.request is not None:
            # An asynchronous function thinks about the request: frames wait, but the client's end is noticed.
            self._partial += data
            if len(self._partial) > WRITE_HIGH_BYTES:
                self.transport.pause_reading()
            return
        head = self._partial + data
        end = head.find(HEAD_END)
        if end < 0:
            self._partial = head[-3:]
            self._parse(data)
            return
        rest = len(head) - end - len(HEAD_END)
        self._partial = data[len(data) - rest :] if rest else b""
        self._parse(data[: len(data) - rest])

    def handshake_timed_out(self) -> None:
        """Say so to a client that has begun a request (408); a silent one is only closed."""
        if self.request is None and self._partial and not self.protocol.eof_sent:
            self.transport.write(REQUEST_TIMEOUT)
            self.transport.close()
            self.server.close_deadlines.add(self)
        else:
            self.abort(TimeoutError("timed out during opening handshake"))

    def read_after_handshake(self) -> None:
        """Read the frames that came together with the opening handshake."""
        data, self._partial = bytes(self._partial), b""
        if data and self.is_open:
            self._read_frames(data)

    def _parse(self, data: bytes) -> None:
        """Feed the library's parser, answer what it answers, and take what it found."""
        protocol = self.protocol
        if self._eof or not data:
            return
        had_ended = protocol.eof_sent
        protocol.receive_data(data)
        for event in protocol.events_received():
            if isinstance(event, Frame):
                self._take_frame(event)
            elif isinstance(event, Request):
                self.request = event
                self.request_received(event)
        if not had_ended and isinstance(protocol.handshake_exc, InvalidMessage):
            # The library ends the stream without a word here.
            self.transport.write(BAD_REQUEST)
        self.protocol_changed()

    def _take_frame(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode is PONG:
            self._take_pong(bytes(frame.data))
        elif opcode is PING:
            if self._paused_writing and not self._paused_reading:
                # Pongs that the client does not read must not pile up: its pings wait in the kernel.
                self._paused_reading = True
                self.transport.pause_reading()
        elif opcode <= 2:
            self._take_data(frame)

    def resume_reading(self) -> None:
        """Read on after a pause: first what was read already and not cut into frames."""
        if not self._paused_reading:
            return
        self._paused_reading = False
        if self._partial and len(self._partial) >= self._need:
            data, self._partial = bytes(self._partial), b""
            if not self.protocol.eof_sent:
                self._read_frames(data)
        if not self._paused_reading and not self.transport.is_closing():
            self.transport.resume_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if len(self._inbox) <= self.server.max_queue:
            self.resume_reading()

    def _take_pong(self, payload: bytes) -> None:
        """Resolve the ping that ``payload`` answers and all before it (RFC 6455, 5.5.3); ignore an unsolicited pong."""
        pings = self._pings
        if pings is None or payload not in pings:
            return
        now = time.perf_counter()
        for sent in list(pings):
            waiter, when = pings.pop(sent)
            self.latency = now - when
            if waiter is None:
                self.server.pong_deadlines.discard(self)
            elif not waiter.done():
                waiter.set_result(self.latency)
            if sent == payload:
                break
        if not pings:
            self._pings = None

    def send_keepalive(self) -> None:
        """Send a keepalive ping, unless the last one is still unanswered."""
        if self.is_open and self not in self.server.pong_deadlines:
            self.send_ping(None, None)
            self.server.pong_deadlines.add(self)

    def send_ping(self, payload: bytes | None, waiter: asyncio.Future[float] | None) -> None:
        """Send a ping of ``payload``, or of four random bytes; ``waiter`` gets the latency in seconds."""
        pings = self._pings or {}
        while payload is None or payload in pings:
            payload = os.urandom(4)
        self.protocol.send_ping(payload)
        pings[payload] = (waiter, time.perf_counter())
        self._pings = pings
        self.protocol_changed()

    def request_received(self, request: Request) -> None:
        """Answer the opening handshake; called once, when the request's head is whole."""
        raise NotImplementedError

    # The end

    def eof_received(self) -> None:
        self._partial = b""
        self._receive_eof()

    def _receive_eof(self) -> None:
        if not self._eof:
            self._eof = True
            self.protocol.receive_eof()
            self.protocol_changed()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.connection_exc is None:
            self.connection_exc = exc
        self._eof = self._lost = True
        self.protocol.receive_eof()
        self.protocol.data_to_send()
        self.is_open = self._short_way = False
        self._partial = b""
        self._held = None
        self.server.disconnected(self)
        self.resume_writing()
        for waiter in (self._recv_waiter, self._lost_waiter):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        pings, self._pings = self._pings, None
        for ping, _ in (pings or {}).values():
            if ping is not None and not ping.done():
                ping.set_exception(self.closed_exception())
                # Taken here, so that a ping whose pong nobody awaits is not reported as an error.
                ping.exception()
