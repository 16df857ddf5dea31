"""Clients that cost little: raw sockets with frames made in advance, in the process that measures."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
CLOSE = b"\x88\x82\0\0\0\0\x03\xe8"


def masked_frame(payload: bytes) -> bytes:
    """Return a text frame of fewer than 126 bytes as a client sends it, with a mask of zeros."""
    assert len(payload) < 126
    return bytes((0x81, 0x80 | len(payload))) + bytes(4) + payload


class Client(asyncio.Protocol):
    """One connection that counts the bytes it is sent after its opening handshake."""

    def __init__(self) -> None:
        self.open = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()
        self.received = 0
        self.first_bytes = asyncio.get_running_loop().create_future()
        self.on_bytes: Callable[[Client], None] | None = None
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        if not self.open.done():
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            if not self._head.startswith(b"HTTP/1.1 101"):
                self.open.set_exception(ConnectionError(self._head[:80].decode()))
                return
            self.open.set_result(None)
            data = self._head[end + 4 :]
        self.received += len(data)
        if data and not self.first_bytes.done():
            self.first_bytes.set_result(None)
        if self.on_bytes is not None and data:
            self.on_bytes(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.open.done():
            self.open.set_exception(ConnectionError("lost before it was open"))
        if not self.lost.done():
            self.lost.set_result(exc)


async def connect(port: int) -> Client:
    """Open one connection and finish its opening handshake."""
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    await client.open
    return client


async def connect_many(port: int, count: int, at_once: int = 50) -> list[Client]:
    """Open ``count`` connections, ``at_once`` at a time."""
    clients: list[Client] = []
    for begin in range(0, count, at_once):
        clients += await asyncio.gather(*(connect(port) for _ in range(min(at_once, count - begin))))
    return clients


async def close(client: Client) -> None:
    """Perform the closing handshake and wait for the end of the TCP connection."""
    client.transport.write(CLOSE)
    await asyncio.wait_for(client.lost, 20)


async def close_all(clients: list[Client]) -> None:
    """Close every client."""
    await asyncio.gather(*(close(client) for client in clients))


async def echo(clients: list[Client], messages: int, size: int) -> None:
    """Let every client send a message, wait for its echo, and again, until ``messages`` were echoed to each."""
    done = asyncio.get_running_loop().create_future()
    frame = masked_frame(os.urandom(size // 2).hex().encode())
    answer = len(frame) - 4
    running = len(clients)
    want = {client: client.received + answer * messages for client in clients}
    next_at = {client: client.received + answer for client in clients}

    def received(client: Client) -> None:
        nonlocal running
        if client.received < next_at[client]:
            return
        if client.received >= want[client]:
            client.on_bytes = None
            running -= 1
            if not running:
                done.set_result(None)
            return
        next_at[client] += answer
        client.transport.write(frame)

    for client in clients:
        client.on_bytes = received
        client.transport.write(frame)
    await asyncio.wait_for(done, 120)


async def connects(port: int, count: int, at_once: int = 20) -> None:
    """Connect, upgrade and close ``count`` times, ``at_once`` at a time."""
    left = count

    async def one_after_the_other() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await close(await connect(port))

    await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))


async def fan_out(clients: list[Client], rounds: int, under_way: int, size: int) -> None:
    """Let ``under_way`` clients send a message each, wait until everybody has them all, and again, ``rounds`` times."""
    frame = masked_frame(os.urandom(size // 2).hex().encode())
    answer = (len(frame) - 4) * under_way
    loop = asyncio.get_running_loop()
    missing = 0
    done: asyncio.Future[None] = loop.create_future()
    want = {client: client.received for client in clients}

    def received(client: Client) -> None:
        nonlocal missing
        if client.received == want[client]:
            missing -= 1
            if not missing:
                done.set_result(None)

    for client in clients:
        client.on_bytes = received
    for _ in range(rounds):
        done = loop.create_future()
        missing = len(clients)
        for client in clients:
            want[client] += answer
        for sender in clients[:under_way]:
            sender.transport.write(frame)
        await asyncio.wait_for(done, 60)
    for client in clients:
        client.on_bytes = None
