"""What the tests of the examples stand on: clients from addresses that are placed on different workers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

import httpx

from tests.cluster.polling_support import source

W = TypeVar("W", bound=Hashable)
MOST_ADDRESSES = 64


async def on_different_workers(ask: Callable[[str], Awaitable[W]], count: int = 2) -> dict[W, str]:
    """Return ``count`` workers and for each an address that it serves; ``ask`` says which worker an address gets."""
    found: dict[W, str] = {}
    for number in range(MOST_ADDRESSES):
        found.setdefault(await ask(source(number)), source(number))
        if len(found) == count:
            return found
    raise AssertionError(f"{MOST_ADDRESSES} addresses reached only {found}")


def http_from(address: str, port: int) -> httpx.AsyncClient:
    """Return an HTTP client that comes from ``address`` and makes a TCP connection for each request."""
    transport = httpx.AsyncHTTPTransport(local_address=address, limits=httpx.Limits(max_keepalive_connections=0))
    return httpx.AsyncClient(transport=transport, base_url=f"http://127.0.0.1:{port}", timeout=30)
