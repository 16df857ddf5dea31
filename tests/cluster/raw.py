"""Clients without a library, for what a library would not send or not show; and where an address belongs."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from wscluster.gateway.placement import ByAddress

RESET = struct.pack("ii", 1, 0)


def handshake(path: str = "/", *headers: str, version: str = "13") -> bytes:
    """Return the opening handshake of a client."""
    lines = [
        f"GET {path} HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", f"Sec-WebSocket-Version: {version}", *headers,
    ]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def frame(text: str) -> bytes:
    """Return a text frame of a client, masked with zeros."""
    payload = text.encode()
    assert len(payload) < 126
    return bytes((0x81, 0x80 | len(payload))) + bytes(4) + payload


CLOSE = b"\x88\x82" + bytes(4) + b"\x03\xe8"


class Raw:
    """One connection to a cluster; ``port`` is its own, 0 on a Unix socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        name = writer.get_extra_info("sockname")
        self.port: int = name[1] if isinstance(name, tuple) else 0

    @classmethod
    async def connect(cls, port: int, source: str = "127.0.0.1", data: bytes = b"") -> "Raw":
        """Connect from ``source`` and send ``data``."""
        raw = cls(*await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0)))
        raw.writer.write(data)
        return raw

    async def head(self) -> str:
        """Return the head of the answer; empty where the connection ends without one."""
        try:
            async with asyncio.timeout(20):
                return (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, ConnectionError):
            return ""

    async def message(self) -> str:
        """Return the next short text message."""
        async with asyncio.timeout(20):
            first, length = await self.reader.readexactly(2)
            assert first == 0x81
            if length == 126:
                length = int.from_bytes(await self.reader.readexactly(2), "big")
            return (await self.reader.readexactly(length)).decode()

    async def rest(self) -> bytes:
        """Return what comes until the end of the connection; a reset is an end too."""
        data = b""
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                while chunk := await self.reader.read(65536):
                    data += chunk
        return data

    def reset(self) -> None:
        """End the connection with RST."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.writer.transport.abort()

    async def close(self) -> None:
        """Close the connection, whatever its other end does."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


async def ask(port: int, data: bytes, source: str = "127.0.0.1") -> tuple[str, bytes]:
    """Send ``data``; return the head of the answer, and what follows until the end of the connection.

    Both are empty where the connection is reset, which may be seen before it is seen that it stands.
    """
    try:
        raw = await Raw.connect(port, source, data)
    except ConnectionResetError:
        return "", b""
    try:
        return await raw.head(), await raw.rest()
    finally:
        await raw.close()


def slots_of(address: str, slots: int) -> Sequence[int]:
    """Return the slots in the order of ``address``: its own, and where it goes when that one is away."""
    return ByAddress(slots)(0, address, ())


def addresses_of(slot: int, slots: int) -> Iterator[str]:
    """Yield source addresses that belong to ``slot``."""
    for number in range(1, 255):
        if slots_of(f"127.1.0.{number}", slots)[0] == slot:
            yield f"127.1.0.{number}"


def unread_bytes(server_port: int, client_port: int) -> int | None:
    """Return how many bytes of a client the kernel holds that no process has read; None: no such connection."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        if int(local.split(":")[1], 16) == server_port and int(remote.split(":")[1], 16) == client_port:
            return int(queues.split(":")[1], 16)
    return None
