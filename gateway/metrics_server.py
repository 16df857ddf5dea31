"""The metrics port: `/metrics`, `/healthz`, `/readyz`, and the dashboard with its live feed. It changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers, MultipleValuesError
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from wscluster.gateway.carried import Fd
from wscluster.gateway.exposition import CONTENT_TYPE

MAX_WATCHERS = 64
"""Of the live feed at the same time; one more gets 503. So does one more at `/metrics`, but no probe ever."""
LIVE_SECONDS = 1.0
JSON = "application/json"
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

logger = logging.getLogger("wscluster.primary")


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the node takes clients."""

    accepting: bool
    slots_ready: int
    slots: int
    bus: str

    def answer(self, query: str) -> tuple[bool, dict[str, Any]]:
        """Return whether it is ready, and the JSON that says so.

        One worker is enough, and the bus does not count, unless the query asks for ``slots=all`` and ``bus=1``.
        """
        wanted = parse_qs(query)
        ready = self.accepting and self.slots_ready > 0
        if wanted.get("slots") == ["all"]:
            ready = ready and self.slots_ready == self.slots
        if wanted.get("bus") == ["1"]:
            ready = ready and self.bus != "disconnected"
        return ready, {"ready": ready, "slots_ready": self.slots_ready, "slots": self.slots, "bus": self.bus}


class MetricsServer:
    """Serves the metrics port.

    Args:
        sock: A bound socket; the server owns it.
        status: Returns what `wscluster status --json` says.
        metrics: Returns the text of `/metrics`, after a look at the workers.
        readiness: Returns whether the node takes clients, now.
    """

    def __init__(
        self,
        sock: socket.socket,
        status: Callable[[], Awaitable[dict[str, Any]]],
        metrics: Callable[[], Awaitable[bytes]],
        readiness: Callable[[], Readiness],
    ) -> None:
        self._sock = sock
        self._status = status
        self._metrics = metrics
        self._readiness = readiness
        self._server: Server | None = None
        self._watchers = 0
        self._scrapes = 0
        self._look: asyncio.Task[str] | None = None

    @property
    def address(self) -> str:
        """``host:port``."""
        host, port = self._sock.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def start(self) -> None:
        """Begin to serve."""
        quiet = logging.getLogger("wscluster.metrics_port")
        quiet.setLevel(logging.CRITICAL)  # every scan would be a traceback
        # A copy: this process, or the next one, can go on listening when the server has ended.
        self._server = await serve(
            self._live, sock=self._sock.dup(), process_request=self._answer, max_size=1024, max_queue=4, open_timeout=5,
            close_timeout=1, compression=None, logger=quiet, server_header=None,
        )  # fmt: skip

    def carry(self) -> Fd:
        """Return the socket, for the next process."""
        return Fd(self._sock.fileno())

    async def pause(self) -> None:
        """End what is open; who connects meanwhile waits in the kernel's queue, for `start` or the next process."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def close(self) -> None:
        """Stop serving."""
        await self.pause()
        self._sock.close()

    async def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.method not in ("GET", "HEAD"):
            return _respond(http.HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"only GET\n", {"Allow": "GET, HEAD"})
        try:
            response = await self._respond_to(request)
        except (ValueError, MultipleValuesError):  # of urlsplit: an address that is none
            response = _respond(http.HTTPStatus.BAD_REQUEST, "text/plain", b"no such address\n")
        if response is not None and request.method == "HEAD":
            response.body = b""
        return response

    async def _respond_to(self, request: Request) -> Response | None:
        path, _, query = request.path.partition("?")
        match path:
            case "/live":
                return self._may_watch(request)
            case "/healthz":
                return _respond(http.HTTPStatus.OK, "text/plain", b"ok\n")
            case "/readyz":
                ready, facts = self._readiness().answer(query)
                status = http.HTTPStatus.OK if ready else http.HTTPStatus.SERVICE_UNAVAILABLE
                return _respond(status, JSON, json.dumps(facts).encode() + b"\n")
            case "/metrics":
                return await self._scrape()
            case "/":
                return _respond(http.HTTPStatus.OK, "text/html; charset=utf-8", _page(), PAGE_HEADERS)
        return _respond(http.HTTPStatus.NOT_FOUND, "text/plain", b"there is /, /metrics, /healthz and /readyz\n")

    async def _scrape(self) -> Response:
        if self._scrapes >= MAX_WATCHERS:
            return _respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"too many callers\n")
        self._scrapes += 1
        try:
            return _respond(http.HTTPStatus.OK, CONTENT_TYPE, await self._metrics())
        finally:
            self._scrapes -= 1

    def _may_watch(self, request: Request) -> Response | None:
        """A page of somebody else, in the browser of whoever can reach this port, may not look."""
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("Host"):
            return _respond(http.HTTPStatus.FORBIDDEN, "text/plain", b"this origin may not watch\n")
        if "Upgrade" not in request.headers:
            return _respond(http.HTTPStatus.UPGRADE_REQUIRED, "text/plain", b"a WebSocket is wanted\n")
        if self._watchers >= MAX_WATCHERS:
            return _respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"too many callers\n")
        return None

    async def _live(self, connection: ServerConnection) -> None:
        self._watchers += 1
        try:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await connection.send(await self._looked())
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LIVE_SECONDS):
                            await connection.wait_closed()
                            return
        finally:
            self._watchers -= 1

    async def _looked(self) -> str:
        """Return the status as JSON; who asks while the workers are being asked gets the same answer."""
        if self._look is None or self._look.done():
            self._look = asyncio.get_running_loop().create_task(self._ask())
        return await asyncio.shield(self._look)

    async def _ask(self) -> str:
        return json.dumps(await self._status(), separators=(",", ":"))


def _respond(
    status: http.HTTPStatus, content_type: str, body: bytes, headers: dict[str, str] | None = None
) -> Response:
    fields = {"Content-Type": content_type, "Content-Length": str(len(body)), "Connection": "close", **(headers or {})}
    return Response(status, status.phrase, Headers(fields), body)


@functools.cache
def _page() -> bytes:
    return files("wscluster.gateway").joinpath("dashboard.html").read_bytes()
