"""What was received and waits for the handler: whole messages, the unfinished one, and who waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Literal, overload

from websockets.exceptions import ConcurrencyError, ConnectionClosedOK
from websockets.frames import CONT, CloseCode, Frame
from websockets.frames import TEXT as TEXT_OPCODE

from wscluster.workers.closing import Closing
from wscluster.workers.fragments import MAX_FRAGMENTS, Fragments

if TYPE_CHECKING:
    from websockets.server import ServerProtocol

    from wscluster.api import Data
    from wscluster.workers.serve import HandlerServer


class Inbox(Closing):
    """Keeps the messages that wait, and pauses reading while too many do."""

    __slots__ = ("_dropping", "_finished", "_fragments", "_inbox", "_paused_reading", "_recv_waiter")

    def __init__(self, protocol: ServerProtocol, server: HandlerServer) -> None:
        super().__init__(protocol, server)
        # (is text, payload) of whole messages, oldest first: a few more than max_queue at the most, so that a list is
        # good (an empty deque takes 600 bytes). Then the fragments of the message that is not whole yet.
        self._inbox: list[tuple[bool, bytes]] = []
        self._fragments: Fragments | None = None
        self._paused_reading = False
        self._finished = False
        self._dropping = False
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
            ConcurrencyError: Another task waits in `recv` already.
        """
        if self._recv_waiter is not None:
            raise ConcurrencyError("cannot call recv while another coroutine is already running recv")
        inbox = self._inbox
        if not inbox and not self._lost:
            waiter = self._recv_waiter = self.server.loop.create_future()
            try:
                await waiter
            finally:
                self._recv_waiter = None
        if inbox:
            is_text, payload = inbox.pop(0)
            if self._paused_reading and len(inbox) <= self.server.max_queue // 4:
                self.resume_reading()
            if not (is_text if decode is None else decode):
                return payload
            try:
                return payload.decode()
            except UnicodeDecodeError as exc:
                self.connection_exc = exc
                self.fail(CloseCode.INVALID_DATA, f"{exc.reason} at position {exc.start}")
        raise await self.wait_closed_exception()

    def _take_data(self, frame: Frame) -> None:
        """Take a data frame that came through the parser: a whole message or a fragment of one."""
        if frame.opcode is CONT:
            fragments = self._fragments
            if fragments is not None:
                fragments.add(frame.data)
                if frame.fin:
                    self._forget_fragments()
                    self._take_message(fragments.is_text, fragments.whole())
                elif len(fragments) >= MAX_FRAGMENTS:
                    self._forget_fragments()
                    self.fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
        elif frame.fin:
            self._take_message(frame.opcode is TEXT_OPCODE, bytes(frame.data))
        else:
            self._fragments = Fragments(frame.opcode is TEXT_OPCODE, frame.data)
            self.server.message_deadlines.add(self)

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

    def _take_message(self, is_text: bool, payload: bytes) -> None:
        if not self._dropping or len(self._inbox) <= self.server.max_queue:
            self._inbox.append((is_text, payload))

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
        self.stop_taking()
