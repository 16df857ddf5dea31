"""The same play with `websockets.asyncio.server.serve` and with ``wscluster serve``.

What the library is given as arguments of `serve`, wscluster is given as flags.
"""

import asyncio
import contextlib
import http.client
import importlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import serve

from tests.support import run
from wscluster.testing import Cluster

Play = Callable[["Server"], Awaitable[None]]


class Server:
    """One of both, seen by a client."""

    def __init__(self, url: str) -> None:
        self.url = url

    def connect(self, path: str = "/", **options: Any) -> connect:
        return connect(self.url + path, proxy=None, **options)

    @contextlib.asynccontextmanager
    async def clients(self, count: int) -> AsyncIterator[list[ClientConnection]]:
        async with contextlib.AsyncExitStack() as stack:
            yield [await stack.enter_async_context(self.connect()) for _ in range(count)]

    async def get(self, path: str) -> tuple[int, str, dict[str, str]]:
        """Return status, body and headers of a plain HTTP request."""

        def fetch() -> tuple[int, str, dict[str, str]]:
            http_client = http.client.HTTPConnection(self.url.removeprefix("ws://"), timeout=20)
            try:
                http_client.request("GET", path)
                response = http_client.getresponse()
                return response.status, response.read().decode(), dict(response.getheaders())
            finally:
                http_client.close()

        return await asyncio.to_thread(fetch)


def on_both(target: str, play: Play, **functions: str) -> None:
    """Play with the library's server and with wscluster.

    Args:
        target: ``module:handler``, both in this folder.
        functions: Those of the handshake, in the same module.
    """
    name, handler = target.split(":")
    name = f"tests.cluster.{name}"
    module = importlib.import_module(name)

    async def main() -> None:
        arguments = {role: getattr(module, function) for role, function in functions.items()}
        async with serve(getattr(module, handler), "127.0.0.1", 0, **arguments) as server:
            host, port = server.sockets[0].getsockname()
            await play(Server(f"ws://{host}:{port}"))
        flags: dict[str, Any] = {role: f"{name}:{function}" for role, function in functions.items()}
        async with Cluster(f"{name}:{handler}", workers=1, **flags) as cluster:
            await play(Server(cluster.url))
            assert "Traceback" not in "\n".join(cluster.output)

    run(main())


async def hear_json(ws: ClientConnection) -> Any:
    return json.loads(await ws.recv())


async def tell_json(ws: ClientConnection, **what: Any) -> None:
    await ws.send(json.dumps(what))
