"""uvicorn, and how its connections end here: a WebSocket that is closed is read until its client has answered.

uvicorn itself sends its Close and ends the TCP connection in the same moment: what a client was saying is lost, and the
Close with it where the kernel resets the connection because of unread bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import OPEN

from wscluster.asgi_options import parse_header
from wscluster.config import Config, value_for

if TYPE_CHECKING:
    import socket

    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
    from websockets.frames import Frame

    from wscluster.tls import Context
    from wscluster.workers.target import App

SERVICE_RESTART = 1012
LARGE_BYTES = 65536
"""A larger message waits for its app alone: not 32 of 16 MiB for each client."""
MAX_UNSENDABLE = 1000
"""Messages that an app may send to one client behind the Close; with the next one it waits for the end."""


class Leaving:
    """What the connections of a worker know of its end, and it of theirs.

    Attributes:
        close_timeout: Seconds that a closing handshake may take.
        last: Each HTTP response is the last one of its connection.
        patience: Seconds that a client has for its first request, where another worker has taken the place of this one.
        closing: uvicorn has begun to close its connections; who comes later must be closed as well.
        unheard: Messages that came before their client had answered the Close, and that their app did not take: it had
            ended.
    """

    def __init__(self, close_timeout: float) -> None:
        self.close_timeout = close_timeout
        self.last = self.closing = False
        self.patience = 0.0
        self.unheard = 0
        self._listening: set[WebSocket] = set()
        self._when_quiet: Callable[[], None] | None = None

    def when_quiet(self, call: Callable[[], None]) -> None:
        """Call ``call`` once no app hears any more what comes behind a Close: now, or later."""
        self._when_quiet = call
        self._look()

    def begin(self, connection: WebSocket) -> None:
        """The Close is sent, and the app hears what still comes."""
        self._listening.add(connection)

    def end(self, connection: WebSocket) -> None:
        """The app hears no more of it."""
        self._listening.discard(connection)
        self._look()

    def _look(self) -> None:
        if not self._listening and self._when_quiet is not None:
            call, self._when_quiet = self._when_quiet, None
            call()


class Http(HttpToolsProtocol):
    """uvicorn's protocol; while the worker drains, each response says that it is the last one (RFC 9112, 9.6)."""

    def __init__(self, *args: Any, leaving: Leaving, **options: Any) -> None:
        super().__init__(*args, **options)
        self._leaving = leaving
        self._late = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._leaving.closing:
            self.shutdown()

    def shutdown(self) -> None:
        """Close when idle, or after the response; a client that has asked nothing yet has some time for it."""
        if self.cycle is not None or not self._leaving.patience:
            super().shutdown()
        elif not self._late:
            self._late = True
            self.loop.call_later(self._leaving.patience, self._shut_down_late)

    def _shut_down_late(self) -> None:
        if self in self.connections:  # else it has ended, or is a WebSocket by now
            super().shutdown()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self._leaving.last and self.cycle is not None:
            self.cycle.keep_alive = False

    kick = HttpToolsProtocol.shutdown


class WebSocket(WebSocketsSansIOProtocol):
    """uvicorn's protocol, with a closing handshake that the server begins and does not cut short.

    What the client says before it answers reaches the app, and then ``websocket.disconnect`` does. What the app sends
    meanwhile goes nowhere (RFC 6455, 5.5.1: no data behind a Close), and is no error: the app shall go on to listen.
    """

    def __init__(self, *args: Any, leaving: Leaving, **options: Any) -> None:
        super().__init__(*args, **options)
        self.close_timeout = leaving.close_timeout
        self._leaving = leaving
        self._shutdown_asked = leaving.closing
        self._closing = False
        self._taken = ""
        self._unsendable = 0
        self._lost: asyncio.Future[None] = self.loop.create_future()

    def shutdown(self) -> None:
        """Close with 1012; where the app has not said yet whether it accepts, as soon as it has accepted."""
        if not self.handshake_initiated:
            super().shutdown()
        elif not self.handshake_complete:
            self._shutdown_asked = True
        elif self.conn.state is OPEN and not self.close_sent:
            self._begin_close()
        elif self.close_timer is None:  # else a closing handshake is under way
            self.transport.close()

    def kick(self) -> None:
        """Close with 1012 and end the TCP connection, whatever the client is saying."""
        if self.handshake_complete and self.conn.state is not OPEN:  # a Close has been sent
            self.transport.abort()
        else:
            super().shutdown()

    def _begin_close(self) -> None:
        self._closing = True
        self._leaving.begin(self)
        self.stop_keepalive()
        self.conn.send_close(SERVICE_RESTART)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_timer = self.loop.call_later(self._leaving.close_timeout, self.transport.abort)

    def _stop_listening(self) -> None:
        """The app hears no more: only the client's Close is still waited for."""
        if self.close_sent:
            return
        while not self.queue.empty():
            self._leaving.unheard += self.queue.get_nowait()["type"] == "websocket.receive"
        self._tell_end()
        self.close_sent = True
        self._leaving.end(self)
        if self.read_paused and not self.transport.is_closing():
            self.read_paused = False
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closing:
            self._tell_end()
        super().connection_lost(exc)
        if not self._lost.done():
            self._lost.set_result(None)
        self._leaving.end(self)

    def handle_close(self, event: Frame) -> None:
        if self._closing and not self.close_sent:
            self._tell_end()
            self.transport.close()
        else:
            super().handle_close(event)

    def _tell_end(self) -> None:
        self.queue.put_nowait({"type": "websocket.disconnect", "code": SERVICE_RESTART})

    def send_receive_event_to_app(self) -> None:
        if self.close_sent:
            self.frames = []
            self._leaving.unheard += self._closing
            return
        # uvicorn pauses behind every message, whatever `ws_max_queue` is.
        is_large = sum(map(len, self.frames)) > LARGE_BYTES
        self.read_paused = True
        super().send_receive_event_to_app()
        self.read_paused = is_large or self.queue.qsize() >= self.config.ws_max_queue
        if self.read_paused and not self.transport.is_closing():
            self.transport.pause_reading()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        if self._closing:
            self._stop_listening()

    async def receive(self) -> ASGIReceiveEvent:
        event = await self.queue.get()
        self._taken = event["type"]
        if self.read_paused and self.queue.qsize() <= self.config.ws_max_queue // 4:
            self.read_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()
        return event

    async def send(self, message: ASGISendEvent) -> None:
        if self._is_unsendable():
            await self._send_nowhere(message)
        elif (
            message["type"] == "websocket.send"
            and self.conn.state is OPEN
            and self.writable.is_set()
            and not self.disconnected
        ):
            # What is sent most takes the short way: a call of uvicorn's coroutine costs half a microsecond.
            data, text = message.get("bytes"), message.get("text")
            if data is not None:
                self.conn.send_binary(data)
            elif text is not None:
                self.conn.send_text(text.encode())
            self.transport.write(b"".join(self.conn.data_to_send()))
        else:
            await super().send(message)
            if self._shutdown_asked:
                self.shutdown()

    def _is_unsendable(self) -> bool:
        # Once its client has gone, only what an app sends that still takes messages: one that does nothing but send
        # would not learn from anything else that it can end.
        return (
            self._closing
            and not self.close_sent
            and self._taken != "websocket.disconnect"
            and (not self.disconnected or self._taken == "websocket.receive")
        )

    async def _send_nowhere(self, message: ASGISendEvent) -> None:
        if message["type"] == "websocket.close":
            self._stop_listening()
        elif self._unsendable < MAX_UNSENDABLE:
            self._unsendable += 1
            await asyncio.sleep(0)  # an app that sends in a loop waits nowhere else
        else:
            await asyncio.shield(self._lost)
            await super().send(message)


class Server(uvicorn.Server):
    """uvicorn's server; ``up`` is done when it has started."""

    def __init__(self, config: uvicorn.Config, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(config)
        self.up: asyncio.Future[None] = loop.create_future()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone: the primary says when to end."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set_result(None)


def configure(app: App, config: Config, tls: Context | None, leaving: Leaving) -> uvicorn.Config:
    """Return what uvicorn is to do for ``app``."""
    asgi, websocket, handshake = config.asgi, config.websocket, config.handshake
    return uvicorn.Config(
        app.app,
        http=functools.partial(Http, leaving=leaving),  # type: ignore[arg-type]
        ws=functools.partial(WebSocket, leaving=leaving),  # type: ignore[arg-type]
        interface="asgi3",
        workers=1,
        log_config=None,
        lifespan=asgi.lifespan,  # type: ignore[arg-type]
        root_path=asgi.root_path,
        timeout_keep_alive=asgi.timeout_keep_alive,  # type: ignore[arg-type]
        limit_concurrency=asgi.limit_concurrency,
        headers=list(map(parse_header, asgi.header)),
        server_header=asgi.server_header,
        date_header=asgi.date_header,
        proxy_headers=handshake.proxy_headers,
        forwarded_allow_ips=_trusted(handshake.forwarded_allow_ips),
        ws_max_size=value_for("ASGI", websocket, "ws_max_size"),
        ws_max_queue=value_for("ASGI", websocket, "ws_max_queue"),
        ws_ping_interval=websocket.ws_ping_interval or None,
        ws_ping_timeout=websocket.ws_ping_timeout or None,
        ws_per_message_deflate=websocket.ws_per_message_deflate,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
    )


def _trusted(allowed: Sequence[str]) -> list[str] | str:
    return "*" if "*" in allowed else list(allowed)
