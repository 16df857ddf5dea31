"""HTTP clients that cost little: raw sockets that send one request again and again, in the process that measures."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence

REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: benchmark\r\nAccept: */*\r\n\r\n"


class HttpClient(asyncio.Protocol):
    """One keep-alive connection; every response has the length of the first."""

    def __init__(self) -> None:
        self.body = b""
        self.lost = asyncio.get_running_loop().create_future()
        self._left = 0
        self._received = 0
        self._length = 0
        self._head = b""
        self._on_done: Callable[[], None] = lambda: None

    def begin(self, requests: int, on_done: Callable[[], None]) -> None:
        """Send a request, wait for its response, and again, ``requests`` times."""
        self._left = requests
        self._on_done = on_done
        self.transport.write(REQUEST)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if not self._received:
            assert data.startswith(b"HTTP/1.1 200"), data
        self._received += len(data)
        if not self._length and not self._read_first(data):
            return
        if self._received < self._length:
            return
        assert self._received == self._length, "a response is longer than the first"
        self._received = 0
        self._left -= 1
        if self._left:
            self.transport.write(REQUEST)
        else:
            self._on_done()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)

    def _read_first(self, data: bytes) -> bool:
        self._head += data
        head, end, self.body = self._head.partition(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if not end or found is None or len(self.body) < int(found[1]):
            return False
        self._length = len(self._head)
        return True


async def connect(port: int, source: str | None = None) -> HttpClient:
    """Open one connection, from the address ``source`` where one is given."""
    _, client = await asyncio.get_running_loop().create_connection(
        HttpClient, "127.0.0.1", port, local_addr=None if source is None else (source, 0)
    )
    return client


async def request(clients: Sequence[HttpClient], requests: int) -> None:
    """Let every client get ``requests`` responses, one after the other, all clients at once."""
    done = asyncio.get_running_loop().create_future()
    running = len(clients)

    def ended() -> None:
        nonlocal running
        running -= 1
        if not running:
            done.set_result(None)

    for client in clients:
        client.begin(requests, ended)
    await asyncio.wait_for(done, 120)


async def close_all(clients: Sequence[HttpClient]) -> None:
    """Close every connection."""
    for client in clients:
        client.transport.close()
    await asyncio.wait_for(asyncio.gather(*(client.lost for client in clients)), 20)
