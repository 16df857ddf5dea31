"""A TCP relay that can hold everything back, or cut every connection, or come from another address."""

from __future__ import annotations

import asyncio
from typing import Self


class Relay:
    """Forwards connections to ``port`` on the loopback address, from ``source``; `port` of its own after entering."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self._to = port
        self._source = source
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        self._open.set()
        self.cut()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        await self._server.wait_closed()

    def hold(self) -> None:
        """Forward nothing, as a link whose packets are dropped: no byte, no end, no reset."""
        self._open.clear()

    def release(self) -> None:
        """Forward again, beginning with what was held."""
        self._open.set()

    def cut(self) -> None:
        """Reset every connection, with whatever was under way."""
        for writer in self._writers:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            other_reader, other_writer = await asyncio.open_connection(
                "127.0.0.1", self._to, local_addr=(self._source, 0)
            )
        except OSError:
            writer.transport.abort()
            self._writers.discard(writer)
            return
        self._writers.add(other_writer)
        for source, sink in ((reader, other_writer), (other_reader, writer)):
            pump = asyncio.ensure_future(self._pump(source, sink))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._open.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            pass  # one side was reset: so is the other
        finally:
            await self._open.wait()
            sink.transport.abort()
            self._writers.discard(sink)
