"""One scene with a server's connection and a raw client, played with `websockets` and with wscluster.

A scene is a coroutine function of the connection, as its handler would have it, and of the `Peer` at the other end. It
returns what it noted, and must have noted the same on both.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from websockets.exceptions import ConnectionClosed

from tests.wire.harness import (
    CLOSE,
    PING,
    PONG,
    close_frame,
    frame,
    ours,
    read_frame,
    read_rest,
    request,
    run,
    theirs,
    upgraded,
)

Scene = Callable[[Any, "Peer"], Awaitable[list[object]]]


class Peer:
    """A client that writes frames as the scene says, and answers nothing by itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, *frames: bytes) -> None:
        self._writer.write(b"".join(frames))

    async def arrived(self) -> None:
        """Wait until the server has read all that was sent; only while it reads."""
        self.send(frame(PING, b"arrived?"))
        assert await self.frame() == bytes((0x80 | PONG, 8)) + b"arrived?"

    async def frame(self) -> bytes:
        return await read_frame(self._reader)

    async def rest(self) -> bytes:
        return await read_rest(self._reader)

    async def answer_close(self) -> bytes:
        """Wait for the close frame and answer it; returns what came before it, and it."""
        frames = b""
        while True:
            got = await self.frame()
            frames += got
            if got[0] == 0x80 | CLOSE:
                self.send(frame(CLOSE, got[2:]))
                self.end()
                return frames

    def close(self, code: int = 1000, reason: str = "") -> None:
        self.send(close_frame(code, reason))
        self.end()

    def end(self) -> None:
        self._writer.write_eof()

    def abort(self) -> None:
        self._writer.transport.abort()


@contextlib.asynccontextmanager
async def _meeting(
    port: int, handed: "asyncio.Queue[tuple[Any, asyncio.Event]]", head: bytes
) -> AsyncIterator[tuple[Any, Peer]]:
    async with upgraded(port, head) as (reader, writer):
        ws, over = await handed.get()
        try:
            yield ws, Peer(reader, writer)
        finally:
            over.set()
            writer.transport.abort()


def play(scene: Scene, head: bytes = b"", **config: Any) -> list[object]:
    """Play ``scene`` with both; return what it noted with wscluster, which is what it noted with the library."""
    notes: list[list[object]] = []

    async def main() -> None:
        handed: asyncio.Queue[tuple[Any, asyncio.Event]] = asyncio.Queue()

        async def handler(ws: Any) -> None:
            over = asyncio.Event()
            handed.put_nowait((ws, over))
            await over.wait()

        async with theirs(handler, **config) as port, _meeting(port, handed, head or request()) as (ws, peer):
            notes.append(await asyncio.wait_for(scene(ws, peer), 10))
        async with ours(handler, **config) as served, _meeting(served.port, handed, head or request()) as (ws, peer):
            notes.append(await asyncio.wait_for(scene(ws, peer), 10))

    run(main())
    expected, found = notes
    assert found == expected, f"\n{found}\nwhere websockets has\n{expected}"
    assert found
    return found


async def outcome(awaitable: Awaitable[object]) -> object:
    """Return what ``awaitable`` returned, or what can be said of what it raised."""
    try:
        return await awaitable
    except ConnectionClosed as exc:
        return type(exc).__name__, exc.rcvd, exc.sent, exc.rcvd_then_sent, type(exc.__cause__).__name__
    except ExceptionGroup as exc:
        return type(exc).__name__, exc.message, [(type(each).__name__, str(each)) for each in exc.exceptions]
    except (Exception, asyncio.CancelledError) as exc:
        return type(exc).__name__, str(exc)


async def turns() -> None:
    """Let what was scheduled run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def chunks_of(stream: AsyncIterator[object]) -> list[object]:
    """Return the fragments of a stream, and how it ended."""
    chunks: list[object] = []

    async def read() -> str:
        async for chunk in stream:
            chunks.append(chunk)
        return "whole"

    end = await outcome(read())
    return [*chunks, end]
