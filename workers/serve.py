"""What runs a handler: the connections of this worker, their opening handshakes, their deadlines and their end."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import CloseCode

from wscluster.config import Handshake, value_for
from wscluster.packets import Offered
from wscluster.workers.access import Access, CountingConnection
from wscluster.workers.closing import Closing
from wscluster.workers.connection import Connection
from wscluster.workers.deadlines import Deadlines
from wscluster.workers.described import Described
from wscluster.workers.handshake import Handshakes
from wscluster.workers.inbox import Inbox
from wscluster.workers.pace import paced
from wscluster.workers.service import Figures
from wscluster.workers.turns import Turns
from wscluster.workers.wire import Wire

if TYPE_CHECKING:
    from wscluster.config import WebSocket
    from wscluster.tls import Context
    from wscluster.workers.bus import Bus
    from wscluster.workers.endings import Endings
    from wscluster.workers.giving_back import GivingBack
    from wscluster.workers.target import Target

SLOW_CLOSE_SECONDS = 1.0
"""What a slow consumer gets to take its close frame before it is reset."""

logger = logging.getLogger("wscluster.worker")


class HandlerServer:
    """Runs one handler for every connection that the worker adopts.

    Args:
        target: The handler and the marked functions of its module.
        config: Limits and timeouts of the protocol.
        bus: Rooms of this worker.
        slot: The worker's slot.
        handshake: What is asked of a client before its connection is upgraded; nothing by default.
        access_log: Write a line for each opening handshake and each end.
        tls: Ends TLS on every connection; None: they speak plain HTTP.
    """

    def __init__(
        self,
        target: Target,
        config: WebSocket,
        bus: Bus,
        slot: int,
        loop: asyncio.AbstractEventLoop,
        *,
        handshake: Handshake | None = None,
        access_log: bool = False,
        tls: Context | None = None,
    ) -> None:
        self.loop = loop
        self.bus = bus
        self.slot = slot
        self.max_size: int = value_for("handlers", config, "ws_max_size")
        self.max_queue: int = value_for("handlers", config, "ws_max_queue")
        # The parameters of `websockets`: windows of 4 KiB, a fifth of the default's memory.
        deflate = ServerPerMessageDeflateFactory(
            server_max_window_bits=12, client_max_window_bits=12, compress_settings={"memLevel": 5}
        )
        self.extensions = [deflate] if config.ws_per_message_deflate else []
        # The library logs two lines at INFO for each connection; they are of use only to somebody who debugs.
        self.protocol_logger = logging.getLogger("wscluster.protocol")
        self.protocol_logger.setLevel(logging.DEBUG if logger.isEnabledFor(logging.DEBUG) else logging.WARNING)
        self.adopted = 0
        self.messages_in = self.messages_out = self.bytes_in = self.bytes_out = 0
        # At n: messages whose size has n bits.
        self.sizes_in, self.sizes_out = [0] * 64, [0] * 64
        self.connections: set[Wire] = set()
        self.endings: Endings | None = None
        self.giving_back: GivingBack | None = None
        self.draining = self.refusing = self.aborting = False
        self._target = target
        self._tasks: set[asyncio.Task[object]] = set()
        self._access = Access() if access_log else None
        self._make_connection = CountingConnection if access_log else Connection
        self._handshakes = Handshakes(self, target, handshake or Handshake(), self._access)
        self.answer = self._handshakes.answer
        self._tls: dict[str, Any] = {}
        if tls is not None:
            self._tls = {
                "ssl": tls,
                "ssl_handshake_timeout": config.ws_open_timeout,
                "ssl_shutdown_timeout": config.ws_close_timeout,
            }
        self._tls_handshakes: set[asyncio.Task[object]] = set()
        self._idle: asyncio.Future[None] | None = None
        self._replaced: tuple[int, str] | None = None
        self.open_deadlines = Deadlines(loop, config.ws_open_timeout, Wire.handshake_timed_out)
        self.ping_deadlines: Deadlines[Wire] = Deadlines(loop, config.ws_ping_interval, self._ping)
        self.pong_deadlines: Deadlines[Wire] = Deadlines(loop, config.ws_ping_timeout, self._pong_missing)
        self.close_deadlines: Deadlines[Closing] = Deadlines(loop, config.ws_close_timeout, self._close_timed_out)
        self.slow_deadlines: Deadlines[Closing] = Deadlines(loop, SLOW_CLOSE_SECONDS, self._reset_slow)
        self.message_deadlines = Deadlines(loop, config.ws_message_timeout, Inbox.message_timed_out)
        self._all_deadlines: tuple[Deadlines[Any], ...] = (
            self.open_deadlines, self.ping_deadlines, self.pong_deadlines, self.close_deadlines, self.slow_deadlines,
            self.message_deadlines,
        )  # fmt: skip
        self.turns = Turns(loop, Wire.go_on)

    # A connection's life

    def takes(self, _offered: Offered) -> bool:
        """Say yes: whatever listener it came by, there is one handler."""
        return True

    def figures(self) -> Figures:
        """Return the figures of now."""
        return Figures(
            len(self.connections), self.adopted, self.messages_in, self.messages_out,
            self.sizes_in[: self.bytes_in.bit_length() + 1], self.sizes_out[: self.bytes_out.bit_length() + 1],
            self.bytes_in, self.bytes_out,
        )  # fmt: skip

    def described(self) -> Iterable[Described]:
        """Return each connection whose opening handshake is done, by its id."""
        opened = (one for one in self.connections if isinstance(one, Connection) and one.request is not None)
        for one in sorted(opened, key=lambda connection: connection.id):
            path = one.request.path if one.request is not None else None
            yield Described(str(one.id), one.peer, path, one.rooms, one.unsent_bytes())

    def kick(self, connection: str) -> bool:
        """Close the connection with this id: 1008."""
        for one in self.connections:
            if isinstance(one, Connection) and str(one.id) == connection:
                one.start_close(CloseCode.POLICY_VIOLATION, "kicked")
                return True
        return False

    def adopt(self, fd: int, offered: Offered) -> None:
        """Make a connection of the socket ``fd``."""
        # The family is asked of the socket: behind a balancer the client has an address of another one.
        sock = socket.socket(-1, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=fd)
        sock.setblocking(False)
        self.adopted += 1
        factory: Callable[[], Connection] = functools.partial(
            self._make_connection, self, (offered.host, offered.port) if offered.host else None
        )
        done: Callable[[asyncio.Task[object]], None] = self._transport_made
        if self.endings is not None:
            factory = self.endings.follow(factory, offered.number)
            done = functools.partial(self._transport_followed, offered.number)
        opening = self.spawn(self.loop.connect_accepted_socket(factory, sock, **self._tls), done)
        if self._tls:
            self._tls_handshakes.add(opening)

    def _transport_followed(self, number: int, task: asyncio.Task[object]) -> None:
        assert self.endings is not None
        self.endings.began(number, failed=task.cancelled() or task.exception() is not None)
        self._transport_made(task)

    def _transport_made(self, task: asyncio.Task[object]) -> None:
        self._tls_handshakes.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            # Every scanner of ports does this.
            logger.debug("a client's connection ended before it began: %s", exc)
        self.finished(task)

    def connected(self, connection: Wire) -> None:
        """The transport is there: the opening handshake's time runs."""
        self.connections.add(connection)
        self.open_deadlines.add(connection)
        if self._replaced is not None:  # it was adopted just before the drain
            self.loop.call_soon(self._give_back, [connection])

    def disconnected(self, connection: Wire) -> None:
        """The transport has ended."""
        self.connections.discard(connection)
        for deadlines in self._all_deadlines:
            deadlines.discard(connection)
        self.turns.discard(connection)
        if isinstance(connection, Connection):
            self.bus.forget(connection)
        self._handshakes.forget(connection)
        if self._access is not None:
            self._access.ended(connection)
        if self.endings is not None:
            self.endings.ended(connection)
        self.check_idle()

    def opened(self, connection: Connection) -> None:
        """The opening handshake is done: run the handler, which hears what the client says until it answers a Close."""
        self.ping_deadlines.add(connection)
        self.spawn(self._target.handler(connection), functools.partial(self._handled, connection))
        if self._replaced is not None:
            # After the handler's first step, as if the handshake had been done before the drain.
            self.loop.call_soon(connection.start_drain, *self._replaced)

    def _handled(self, connection: Connection, task: asyncio.Task[object]) -> None:
        """The handler has ended: close its connection, with 1011 where it raised."""
        code = CloseCode.NORMAL_CLOSURE
        if task.cancelled():
            code = CloseCode.GOING_AWAY if self.draining else CloseCode.INTERNAL_ERROR
        elif (exc := task.exception()) is not None and not isinstance(exc, ConnectionClosed):
            connection.logger.error("handler failed", exc_info=exc)
            code = CloseCode.INTERNAL_ERROR
        connection.finish_reading()
        connection.start_close(code)
        self.finished(task)

    def spawn(self, coroutine: Awaitable[object], done: Callable[[asyncio.Task[object]], None]) -> asyncio.Task[object]:
        """Run ``coroutine`` as a task that a drain waits for; ``done`` is called with it at its end, for `finished`."""
        task: asyncio.Task[object] = self.loop.create_task(coroutine)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(done)
        return task

    def finished(self, task: asyncio.Task[object]) -> None:
        """A task of `spawn` has ended."""
        self._tasks.discard(task)
        self.check_idle()

    # Deadlines

    def _ping(self, connection: Wire) -> None:
        if connection.is_open:
            connection.send_keepalive()
            self.ping_deadlines.add(connection)

    def _pong_missing(self, connection: Wire) -> None:
        connection.fail(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")

    def _close_timed_out(self, connection: Closing) -> None:
        connection.abort(TimeoutError("timed out while closing connection"))

    def _reset_slow(self, connection: Closing) -> None:
        if connection.unsent_bytes():
            connection.abort(TimeoutError("slow consumer"))

    # The end

    async def drain(self, code: int, reason: str, timeout: float, rate: float = 0.0) -> None:
        """Close every connection with ``code``; those that are still there after ``timeout`` seconds are reset.

        With 1012 another worker is here for those who come back. Connections that have not said a word go to it as
        they are; a client that is in its opening handshake is not turned away, but closed with that code as soon as
        that is done.

        Args:
            rate: Connections that are closed in a second; 0 for all at once.
        """
        self.draining = True
        give_up_at = self.loop.time() + timeout
        if code == CloseCode.SERVICE_RESTART:
            self._replaced = (code, reason)
            self._give_back([connection for connection in self.connections if connection.is_untouched])
        else:
            self.refusing = True
            for handshake in list(self._tls_handshakes):
                handshake.cancel()
        async for connection in paced(list(self.connections), rate, timeout, self.loop):
            if connection.request is None and self._replaced is not None:
                continue
            if connection.request is None:
                # TLS would wait for the client's last word, and this one has not yet said its first.
                end = connection.transport.abort if self._tls else connection.transport.close
                end()
            else:
                connection.start_drain(code, reason)
        if await self._wait_idle(give_up_at - self.loop.time()):
            return
        logger.warning(
            "%d connections and %d handlers did not end within %g s: cancelled",
            len(self.connections),
            len(self._tasks),
            timeout,
        )
        await self.abort()

    def _give_back(self, connections: Iterable[Wire]) -> None:
        """Give those of them back to the primary that have not said a word; with TLS that is not known."""
        if self.giving_back is None or self._tls:
            return
        given: list[tuple[Offered, int, Callable[[], None]]] = []
        for connection in connections:
            if connection.is_untouched and not connection.transport.is_closing():
                host, port = connection.peer or ("", 0)
                fd = connection.transport.get_extra_info("socket").fileno()
                given.append((Offered(0, host, port), fd, connection.transport.abort))
        self.giving_back.give(given)

    async def abort(self) -> None:
        """Reset every connection and cancel every handler; waits half a second for them."""
        self.draining = self.refusing = self.aborting = True
        for task in list(self._tasks):
            task.cancel()
        for connection in list(self.connections):
            connection.abort()
        await self._wait_idle(0.5)

    def stop_deadlines(self) -> None:
        """Forget every deadline."""
        for deadlines in self._all_deadlines:
            deadlines.stop()

    async def _wait_idle(self, timeout: float) -> bool:
        if self._is_idle():
            return True
        self._idle = self.loop.create_future()
        await asyncio.wait([self._idle], timeout=timeout)
        return self._idle.done()

    def check_idle(self) -> None:
        """Something has ended: a drain that waits for the last one goes on."""
        if self._idle is not None and self._is_idle() and not self._idle.done():
            self._idle.set_result(None)

    def _is_idle(self) -> bool:
        giving = self.giving_back is not None and self.giving_back.unsent
        return not (self.connections or self._tasks or giving)
