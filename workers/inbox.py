"""What was received and waits for the handler: whole messages, the unfinished one, and who waits for them."""

from __future__ import annotations

import asyncio
import codecs
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Literal, overload

from websockets.exceptions import ConcurrencyError, ConnectionClosedOK
from websockets.frames import CONT, CloseCode, Frame
from websockets.frames import TEXT as TEXT_OPCODE

from wscluster.workers.closing import Closing
from wscluster.workers.fragments import MAX_FRAGMENTS, Fragments, cut_payload

if TYPE_CHECKING:
    from array import array

    from websockets.server import ServerProtocol

    from wscluster.api import Data
    from wscluster.workers.serve import HandlerServer

    Received = tuple[bool, bytes] | tuple[bool, bytes, array[int]]
    """A whole message: whether it is text, its payload, and where each fragment ends if it came in several."""

# The library's own variable: a handler that needs more there needs more here.
_MAX_FRAGMENTS = int(os.environ.get("WEBSOCKETS_MAX_FRAGMENTS", MAX_FRAGMENTS))
MAX_UNSENDABLE = 1000
"""Messages that a handler may send behind the Close of a drain; the next one waits for the end, and is an error."""
FREE_INFLATED_BYTES = 4096
"""A frame with more payload than that begins a turn, however small it came: compression makes a thousandth of it."""

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Inbox(Closing):
    """Keeps the messages that wait, and pauses reading while too many do."""

    __slots__ = (
        "_dropped", "_dropping", "_finished", "_fragments", "_has_taken", "_inbox", "_paused_reading", "_recv_waiter",
        "_streaming", "_unsendable",
    )  # fmt: skip

    def __init__(self, protocol: ServerProtocol, server: HandlerServer) -> None:
        super().__init__(protocol, server)
        # Whole messages, oldest first: a few more than max_queue at the most, so that a list is good (an empty deque
        # takes 600 bytes). In front of them, while a message is read as a stream: (is last, payload) of its fragments.
        self._inbox: list[Received] = []
        # The message that is not whole yet; while it is read as a stream, its fragments go to the inbox instead.
        self._fragments: Fragments | None = None
        self._streaming = False
        self._paused_reading = False
        self._finished = False
        self._dropping = False
        self._dropped = False
        self._has_taken = False
        # Messages that went nowhere, behind the Close of a drain; None without one.
        self._unsendable: int | None = None
        # Set while somebody receives; done, but still there, while a stream is not read to its end.
        self._recv_waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> AsyncIterator[Data]:
        return self

    async def __anext__(self) -> Data:
        try:
            return await self.recv()
        except ConnectionClosedOK:
            raise StopAsyncIteration from None

    @overload
    async def recv(self, decode: Literal[True]) -> str: ...
    @overload
    async def recv(self, decode: Literal[False]) -> bytes: ...
    @overload
    async def recv(self, decode: bool | None = None) -> Data: ...
    async def recv(self, decode: bool | None = None) -> Data:
        """Return the next message: `str` for text, `bytes` for binary; ``decode`` forces one of them.

        Cancelling it loses nothing: the message is returned by the next call.

        Raises:
            ConnectionClosed: The connection is closed and every message was taken.
            ConcurrencyError: Another task receives already, or a message that is read with `recv_streaming` was not
                read to its end.
        """
        if self._recv_waiter is not None:
            raise ConcurrencyError("cannot call recv while another coroutine is already running recv or recv_streaming")
        inbox = self._inbox
        if not inbox and not self._lost:
            waiter = self._recv_waiter = self.server.loop.create_future()
            try:
                await waiter
            finally:
                self._recv_waiter = None
        if inbox:
            self._has_taken = True
            received = inbox.pop(0)
            if self._paused_reading and len(inbox) <= self.server.max_queue // 4:
                self.resume_reading()
            if not (received[0] if decode is None else decode):
                return received[1]
            try:
                return received[1].decode()
            except UnicodeDecodeError as exc:
                self._fail_decoding(exc)
        raise await self.wait_closed_exception()

    def _fail_decoding(self, exc: UnicodeDecodeError) -> None:
        self.connection_exc = exc
        self.fail(CloseCode.INVALID_DATA, f"{exc.reason} at position {exc.start}")

    @overload
    def recv_streaming(self, decode: Literal[True]) -> AsyncIterator[str]: ...
    @overload
    def recv_streaming(self, decode: Literal[False]) -> AsyncIterator[bytes]: ...
    @overload
    def recv_streaming(self, decode: bool | None = None) -> AsyncIterator[Data]: ...
    async def recv_streaming(self, decode: bool | None = None) -> AsyncIterator[Data]:
        """Iterate over the fragments of the next message, each as it arrives; ``decode`` as for `recv`.

        Cancelling it before the first fragment loses nothing. Once that is there the iterator must be read to its end;
        else nothing can be received any more, and the connection is good for `send` and `close` only. A stream that
        the handler reads too slowly pauses reading from the socket, as waiting messages do.

        Raises:
            ConnectionClosed: The connection was closed before the message was whole.
            ConcurrencyError: As for `recv`.
        """
        if self._recv_waiter is not None:
            raise ConcurrencyError(
                "cannot call recv_streaming while another coroutine is already running recv or recv_streaming"
            )
        opened = await self._open_stream()
        if opened is not None:
            is_text, chunks, is_last = opened
            decoder = _Utf8Decoder() if (is_text if decode is None else decode) else None
            try:
                while True:
                    end = len(chunks) - 1 if is_last else -1
                    for at, chunk in enumerate(chunks):
                        yield chunk if decoder is None else decoder.decode(chunk, at == end)
                    if is_last:
                        self._recv_waiter = None
                        return
                    if (following := await self._next_fragment()) is None:
                        break
                    is_last, chunks = following[0], [following[1]]
            except UnicodeDecodeError as exc:
                self._fail_decoding(exc)
        raise await self.wait_closed_exception()

    async def _open_stream(self) -> tuple[bool, list[bytes], bool] | None:
        """Wait for a fragment of the next message; return (is text, its fragments, whether these are all)."""
        waiter = self._recv_waiter = self.server.loop.create_future()
        if self._inbox or self._fragments is not None or self._lost:
            waiter.set_result(None)
        else:
            self._streaming = True
            try:
                await waiter
            except BaseException:
                self._recv_waiter = None
                raise
            finally:
                self._streaming = False
        if (received := self._take_received()) is not None:
            return received[0], cut_payload(received[1], received[2]) if len(received) == 3 else [received[1]], True
        if (fragments := self._fragments) is not None:
            self._forget_fragments()
            self._streaming = True
            return fragments.is_text, fragments.parts(), False
        self._recv_waiter = None
        return None

    async def _next_fragment(self) -> Received | None:
        if not self._inbox and not self._lost:
            waiter = self._recv_waiter = self.server.loop.create_future()
            await waiter
        return self._take_received()

    def _take_received(self) -> Received | None:
        inbox = self._inbox
        if not inbox:
            return None
        self._has_taken = True
        received = inbox.pop(0)
        if self._paused_reading and len(inbox) <= self.server.max_queue // 4:
            self.resume_reading()
        return received

    def _take_data(self, frame: Frame) -> None:
        """Take a data frame that came through the parser: a whole message or a fragment of one."""
        if len(frame.data) > FREE_INFLATED_BYTES:
            self.server.turns.begin()
        if frame.opcode is CONT:
            fragments = self._fragments
            if fragments is not None:
                fragments.add(frame.data)
                if frame.fin:
                    self._forget_fragments()
                    self._keep((fragments.is_text, fragments.whole(), fragments.ends))
                elif len(fragments) >= _MAX_FRAGMENTS:
                    self._forget_fragments()
                    self.fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            elif self._streaming:
                self._streaming = not frame.fin
                if self._keep((frame.fin, bytes(frame.data))) and not frame.fin:
                    self.server.messages_in -= 1  # which counts what comes to the inbox
        elif frame.fin:
            self._keep((frame.opcode is TEXT_OPCODE, bytes(frame.data)))
        else:
            self._fragments = Fragments(frame.opcode is TEXT_OPCODE, frame.data)
            self.server.message_deadlines.add(self)
            if self._streaming:
                self._wake_reader()

    def _forget_fragments(self) -> None:
        self._fragments = None
        self.server.message_deadlines.discard(self)

    def message_timed_out(self) -> None:
        """A fragmented message is not whole yet: close its connection, unless it grows or waits for us."""
        if self._fragments is not None and (self._paused_reading or self._fragments.has_grown()):
            self.server.message_deadlines.add(self)
        else:
            self._fragments = None
            self.fail(CloseCode.POLICY_VIOLATION, "message not finished in time")

    def _keep(self, received: Received) -> bool:
        """Put it into the inbox; once something had to be dropped, nothing that came later may take its place."""
        if self._dropping and (self._dropped or len(self._inbox) > self.server.max_queue):
            self._dropped = True
            return False
        self._inbox.append(received)
        return True

    def _wake_reader(self) -> None:
        """Say that messages wait, and pause reading while too many do."""
        if self._finished:
            self._inbox.clear()
            return
        waiter = self._recv_waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if len(self._inbox) > self.server.max_queue and not self._paused_reading and not self._dropping:
            self._paused_reading = True
            self.transport.pause_reading()

    def start_drain(self, code: int, reason: str) -> None:
        """Begin the closing handshake of a drain: the handler goes on to hear what the client says until it answers."""
        if self.is_open:
            self._unsendable = 0
            self.start_close(code, reason)

    async def goes_nowhere(self) -> bool:
        """Say whether a message that can be sent no more shall be no error, because the handler has more to hear.

        That is so behind the Close of a drain, until the client has answered it and the handler has taken all that came
        before. A handler that takes nothing, or sends without end, learns from the error that it can end.
        """
        if self._unsendable is None or self._unsendable >= MAX_UNSENDABLE:
            return False
        if (self.protocol.close_rcvd is not None or self._lost) and not (self._inbox and self._has_taken):
            return False
        self._unsendable += 1
        await asyncio.sleep(0)  # a handler that sends in a loop waits nowhere else
        return True

    def stop_taking(self) -> None:
        """Nobody may take messages any more: read on to the client's close frame, and drop what the queue cannot hold.

        A handler that is still alive while its connection is drained goes on taking them instead.
        """
        self._dropping = True
        self.resume_reading()

    def finish_reading(self) -> None:
        """The handler has ended: drop what it did not take, and what is still to come."""
        self._finished = True
        self._inbox.clear()
        if self._fragments is not None:
            self._forget_fragments()
        self.stop_taking()
