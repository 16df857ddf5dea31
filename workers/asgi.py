"""What serves an ASGI app: uvicorn's own server, whose connections come over the link."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from wscluster.config import counts_open
from wscluster.errors import ExitCode
from wscluster.packets import BootFailed
from wscluster.workers.asgi_uvicorn import SERVICE_RESTART, Leaving, Server, configure
from wscluster.workers.endings import Endings
from wscluster.workers.fed_server import FedServer, FedSocket
from wscluster.workers.giving_back import GivingBack
from wscluster.workers.pace import paced
from wscluster.workers.service import Figures
from wscluster.workers.worker import WorkerFailed

if TYPE_CHECKING:
    from wscluster.packets import Offered
    from wscluster.tls import Context
    from wscluster.workers.asgi_log import AsgiLog
    from wscluster.workers.described import Described
    from wscluster.workers.target import App
    from wscluster.workers.worker import Worker

OVERTIME_SECONDS = 0.9
"""What the app's lifespan gets after the graceful timeout, where requests have used all of it."""
FIRST_REQUEST_SECONDS = 3.0
"""What a client gets for its first request, where its worker was replaced in the moment in which it connected: its TLS
handshake and what it says may need a few times its way through the network, and a lost packet a second more."""
TICK_SECONDS = 0.2
"""How long uvicorn takes to notice that it is to exit, and to begin to count."""

logger = logging.getLogger("wscluster.worker")


class AsgiServer:
    """Serves one ASGI app for every connection that the worker adopts.

    Args:
        app: The app.
        worker: The worker that it is in.
        tls: Ends TLS on every connection; None: they speak plain HTTP.
        log: What uvicorn logs.
    """

    def __init__(self, app: App, worker: Worker, tls: Context | None, log: AsgiLog) -> None:
        self.draining = False
        self._worker = worker
        self._config = worker.config
        self._loop = worker.loop
        self._tls = tls
        self._log = log
        self._leaving = Leaving(worker.config.websocket.ws_close_timeout)
        self._uvicorn = Server(configure(app, worker.config, tls, self._leaving), self._loop)
        self._fed: FedServer | None = None
        self._life: asyncio.Task[None] | None = None
        self._sent: asyncio.Future[None] = worker.loop.create_future()
        self._giving_back = GivingBack(worker.link, self._all_sent)

    # What the link asks

    def takes(self, offered: Offered) -> bool:
        """Say yes while it serves."""
        return self._fed is not None and self._fed.takes(offered)

    def adopt(self, fd: int, offered: Offered) -> None:
        """Make a connection of the socket ``fd``."""
        assert self._fed is not None
        self._fed.adopt(fd, offered)

    def figures(self) -> Figures:
        """Return the figures of now; what a message is, only the app knows."""
        return Figures(len(self._uvicorn.server_state.connections), self._fed.adopted if self._fed is not None else 0)

    def described(self) -> Iterable[Described]:
        """Return each connection; what it speaks, only uvicorn knows."""
        return () if self._fed is None else self._fed.described(self._worker.this_worker.id)

    def kick(self, connection: str) -> bool:
        """End the connection with this id as uvicorn does at its own end: a WebSocket with 1012, HTTP when idle."""
        found = None if self._fed is None else self._fed.find(self._worker.this_worker.id, connection)
        if found is None:
            return False
        for protocol in list(self._uvicorn.server_state.connections):
            if getattr(protocol, "transport", None) is found:
                protocol.kick()  # type: ignore[union-attr]
                return True
        found.close()
        return True

    async def abort(self) -> None:
        """Reset every connection."""
        self.draining = True
        if self._fed is not None:
            self._fed.abort_clients()
            await asyncio.sleep(0)

    # Its life

    async def start(self, deadline: float) -> None:
        """Begin the app's lifespan; returns when uvicorn serves.

        Args:
            deadline: Time of the loop at which a lifespan that has not answered is given up.

        Raises:
            WorkerFailed: The lifespan has failed, or does not answer.
        """
        self._feed_loop()
        self._log.catch()
        self._life = self._loop.create_task(self._live())
        await asyncio.wait(
            {self._life, self._uvicorn.up}, timeout=deadline - self._loop.time(), return_when=asyncio.FIRST_COMPLETED
        )
        caught = self._log.caught()
        if self._uvicorn.up.done():
            return
        if not self._life.done():
            limit = f"{self._config.fleet.worker_startup_timeout:g} s (--worker-startup-timeout)"
            reason = f"the app's lifespan did not answer 'lifespan.startup' within {limit}"
        else:
            said = [line for line in caught.splitlines() if line.strip()]
            reason = f"the app's lifespan failed: {said[-1].strip()}" if said else "the app's lifespan failed"
        raise WorkerFailed(BootFailed(ExitCode.NOT_STARTED, reason, caught))

    async def drain(self, code: int, timeout: float, rate: float = 0.0) -> bool:
        """Let uvicorn shut down: requests in flight finish, WebSockets are closed with 1012 and read until they answer.

        What has not ended after ``timeout`` seconds is cancelled, and nothing holds it more than a second longer.
        Returns False where the app has not come to its end. With the ``code`` 1012 another worker is here for those who
        come back: connections of which nothing was read go to it as they are, and clients that are just beginning get
        some time for their first request. Every response tells from now on that the connection ends with it.

        Args:
            rate: Connections that are closed in a second; 0 for all at once.
        """
        assert self._life is not None
        self.draining = True
        give_up_at = self._loop.time() + timeout
        self._leaving.last = True
        if code == SERVICE_RESTART and self._fed is not None:
            self._giving_back.give(self._fed.unread())
            self._leaving.patience = min(FIRST_REQUEST_SECONDS, timeout / 2)
        if rate:
            left = give_up_at - self._loop.time()
            async for connection in paced(list(self._uvicorn.server_state.connections), rate, left, self._loop):
                if connection in self._uvicorn.server_state.connections:
                    connection.shutdown()
        timeout = give_up_at - self._loop.time()
        # Who streams a room over HTTP waits for those who are still heard, and needs time of its own.
        self._leaving.close_timeout = min(self._leaving.close_timeout, timeout / 2)
        # With nothing at all it would complain even where nothing is open.
        left = max(timeout - TICK_SECONDS, 0.05)
        self._uvicorn.config.timeout_graceful_shutdown = left  # type: ignore[assignment]
        self._uvicorn.should_exit = True
        await asyncio.wait({self._life}, timeout=timeout + OVERTIME_SECONDS)
        if ended := self._life.done():
            self._life.result()
        else:
            logger.error("the app's lifespan did not answer 'lifespan.shutdown' within the graceful timeout")
        await self.abort()
        if unheard := self._leaving.unheard:
            logger.info("messages that came while their connection closed, and that the app did not take: %d", unheard)
        if self._giving_back.unsent:
            await asyncio.wait([self._sent], timeout=OVERTIME_SECONDS)
        return ended

    async def _live(self) -> None:
        # Its loop and its signals are the worker's; only the socket is not its own.
        with contextlib.suppress(SystemExit):  # a lifespan that has failed; `start` says why
            await self._uvicorn.serve(sockets=[FedSocket()])

    def _all_sent(self) -> None:
        if not self._sent.done():
            self._sent.set_result(None)

    def _feed_loop(self) -> None:
        """Let ``create_server()`` of this loop know a `FedSocket`; with anything else it is what it was."""
        create_server = self._loop.create_server

        async def create(factory: Any, *args: Any, **options: Any) -> Any:
            sock = options.get("sock")
            if isinstance(sock, FedSocket):
                return self._make_server(factory, sock)
            return await create_server(factory, *args, **options)

        self._loop.create_server = create  # type: ignore[method-assign, assignment]

    def _make_server(self, factory: Any, sock: FedSocket) -> FedServer:
        websocket, worker = self._config.websocket, self._worker
        timeouts: dict[str, Any] = {}
        if self._tls is not None:
            timeouts = {
                "ssl_handshake_timeout": websocket.ws_open_timeout,
                "ssl_shutdown_timeout": websocket.ws_close_timeout,
            }
        self._fed = FedServer(
            self._loop, factory, [sock], ssl=self._tls, proxied=self._config.listen.proxy_protocol != "off", **timeouts
        )
        if counts_open(self._config.listen):
            self._fed.on_ended = Endings(worker.link, self._loop).tell
        # uvicorn closes its servers and then, in the same turn, its connections. An app whose loop over a room ends
        # before would close its WebSocket itself, with 1000, and hear no more of what its client says.
        self._fed.on_close = self._closed
        self._fed.begin_serving()
        return self._fed

    def _closed(self, server: FedServer) -> None:
        self._leaving.closing = True
        # uvicorn knows nothing of a connection in its TLS handshake, and would wait for it.
        self._loop.call_later(self._leaving.patience, server.cancel_opening)
        self._loop.call_soon(self._leaving.when_quiet, self._worker.bus.end_subscriptions)
