"""A handler's server on a listening socket of its own, the library's server beside it, and raw clients."""

import asyncio
import base64
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, cast

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from wscluster.config import Handshake, WebSocket
from wscluster.loops import new_event_loop
from wscluster.packets import Offered
from wscluster.workers.connection import Connection
from wscluster.workers.serve import HandlerServer
from wscluster.workers.target import Target

Handler = Callable[[Any], Awaitable[None]]

KEY = base64.b64encode(b"sixteen bytes ok").decode()
REQUEST_LINES = (
    "GET /path HTTP/1.1", "Host: example.com", "Upgrade: websocket", "Connection: Upgrade",
    f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13",
)  # fmt: skip
CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def request(*more: str, without: str = "") -> bytes:
    lines = [line for line in REQUEST_LINES if not without or not line.startswith(without)]
    return "\r\n".join([*lines, *more, "", ""]).encode()


DEFLATE = request("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(asyncio.wait_for(main, 30))


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes | None = b"mask") -> bytes:
    """One frame of a client, right or wrong."""
    size = len(payload)
    masked = 0x80 if mask else 0
    head = bytes((fin << 7 | rsv << 4 | opcode,))
    if size < 126:
        head += bytes((masked | size,))
    elif size < 65536:
        head += struct.pack("!BH", masked | 126, size)
    else:
        head += struct.pack("!BQ", masked | 127, size)
    if not mask:
        return head + payload
    return head + mask + bytes(a ^ b for a, b in zip(payload, mask * (size // 4 + 1), strict=False))


def close_frame(code: int, reason: str = "") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason.encode())


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """Return the bytes of one frame of a server."""
    data = await reader.readexactly(2)
    size = data[1] & 0x7F
    if size > 125:
        more = await reader.readexactly(2 if size == 126 else 8)
        data += more
        size = int.from_bytes(more, "big")
    return data + await reader.readexactly(size)


async def read_rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b"<reset>"


class StubBus:
    """No rooms; remembers whom it was told to forget."""

    def __init__(self) -> None:
        self.forgotten: list[object] = []
        self.calls: list[tuple[object, ...]] = []

    def forget(self, connection: object) -> None:
        self.forgotten.append(connection)

    def rooms_of(self, connection: object) -> frozenset[str]:
        return frozenset({"lobby"})

    def positions_of(self, connection: object) -> dict[str, str]:
        return {"lobby": "1-0"}

    def hold_positions(self, connection: object) -> None:
        pass

    def release_positions(self, connection: object) -> None:
        pass

    async def join(self, connection: object, room: str, since: str | None, on_gap: object) -> str:
        self.calls.append(("join", connection, room))
        return "joined"

    async def leave(self, connection: object, room: str) -> None:
        self.calls.append(("leave", connection, room))

    async def publish(self, room: str, message: object, exclude: object) -> str:
        self.calls.append(("publish", room, message, exclude))
        return "2-0"


class Ours:
    """A `HandlerServer` whose connections come from a listening socket."""

    def __init__(self, target: Target, asked: Handshake, access_log: bool, **config: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.bus = StubBus()
        config.setdefault("ws_ping_interval", 0)
        self.server = HandlerServer(
            target, WebSocket(**config), cast("Any", self.bus), 3, self.loop, handshake=asked, access_log=access_log
        )
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self.loop.add_reader(self.listener, self._accept)

    def _accept(self) -> None:
        sock, (host, port) = self.listener.accept()
        self.server.adopt(sock.detach(), Offered(0, host, port))

    def connect(self, **options: Any) -> connect:
        return connect(f"ws://127.0.0.1:{self.port}/path", proxy=None, **options)

    async def only(self) -> Connection:
        await until(lambda: self.server.connections)
        (connection,) = self.server.connections
        return cast("Connection", connection)


@contextlib.asynccontextmanager
async def ours(
    handler: Handler,
    process_request: Callable[[Any, Any], Any] | None = None,
    *,
    functions: Mapping[str, Any] | None = None,
    asked: Handshake | None = None,
    access_log: bool = False,
    **config: Any,
) -> AsyncIterator[Ours]:
    """Serve ``handler``; ``functions`` are the other marked ones, ``asked`` what is asked of a client beside them."""
    target = Target(handler, process_request=process_request, **(functions or {}))
    served = Ours(target, asked or Handshake(), access_log, **config)
    try:
        yield served
    finally:
        served.loop.remove_reader(served.listener)
        served.listener.close()
        await served.server.drain(1001, "", 1)
        served.server.stop_deadlines()
        assert not served.server.connections


@contextlib.asynccontextmanager
async def theirs(handler: Handler, **config: Any) -> AsyncIterator[int]:
    """Serve ``handler`` with `websockets`; yields the port."""
    async with serve(
        handler,
        "127.0.0.1",
        0,
        ping_interval=None,
        max_size=config.get("ws_max_size", 2**20),
        max_queue=config.get("ws_max_queue", 16),
        close_timeout=config.get("ws_close_timeout", 10),
        compression="deflate" if config.get("ws_per_message_deflate", True) else None,
        **config.get("functions", {}),
    ) as server:
        yield server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def raw(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def upgraded(port: int, head: bytes = b"") -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with raw(port) as (reader, writer):
        writer.write(head or request())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        yield reader, writer
