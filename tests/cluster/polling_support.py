"""Socket.IO clients by hand: long polling from a chosen address, some with an upgrade to WebSocket.

Engine.IO 4 over HTTP: a GET opens the session, a POST sends packets, a GET waits for packets, several of them parted by
0x1e; `2probe` and `5` on a WebSocket take the session over. They speak to examples/socketio_app/main.py.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

APP = "examples.socketio_app.main:app"
PATH = "/socket.io/"
EVENTS = 3
CLIENT_SECONDS = 60.0
AT_ONCE = 50
START_SECONDS = 60.0


class Failed(Exception):
    """The server did not do what the protocol says; the message tells the step and what came."""


def source(number: int) -> str:
    """Return an address of the loopback net; each number has another."""
    return f"127.1.{number // 250}.{number % 250 + 1}"


async def count_failed(port: int, clients: int, *, kept: bool = True) -> tuple[int, list[str]]:
    """Send ``clients`` through a visit, every second one with an upgrade; returns how many failed, and why."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> str | None:
        async with turns:
            try:
                async with asyncio.timeout(CLIENT_SECONDS):
                    await visit(port, source(number), upgrade=number % 2 == 1, kept=kept)
            except Failed as problem:
                return str(problem)
            except TimeoutError:
                return "no end"
            return None

    ends = await asyncio.gather(*map(one, range(clients)))
    reasons = [end for end in ends if end is not None]
    return len(reasons), reasons


async def visit(port: int, address: str, *, upgrade: bool, kept: bool = True) -> int:
    """Be one client: open, connect, add numbers, maybe upgrade and add more, close; returns the worker's process.

    Args:
        kept: It keeps its TCP connections, as a browser does: one has the poll that is always under way, another what
            it sends, a third the WebSocket. False: each request has a connection of its own.

    Raises:
        Failed: A request was answered with anything but 200, or with another answer than the protocol's.
    """

    def session() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(local_addr=(address, 0), force_close=not kept, limit=0)
        return aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector)

    async with session() as http, session() as websockets:
        polling = _Polling(http)
        try:
            return await _visit(polling, websockets if upgrade else None)
        except aiohttp.ClientError as problem:
            raise Failed(f"{type(problem).__name__}: {problem}") from problem
        finally:
            await polling.end()


async def _visit(polling: _Polling, websockets: aiohttp.ClientSession | None) -> int:
    await polling.open()
    await polling.send("40")
    await polling.wait("40{")
    worker = int(json.loads((await polling.wait('42["welcome"'))[2:])[1]["worker"])
    await _add(polling.send, polling.wait, range(1, EVENTS + 1), 0)
    if websockets is None:
        await polling.send("41")
        return worker
    async with polling.upgrade(websockets) as ws:

        async def wait(beginning: str) -> str:
            async for message in ws:
                if str(message.data).startswith(beginning):
                    return str(message.data)
                if message.data == "2":
                    await ws.send_str("3")
            raise Failed(f"WebSocket: closed with {ws.close_code} instead of {beginning}")

        before = sum(range(1, EVENTS + 1))
        await _add(ws.send_str, wait, range(EVENTS + 1, 2 * EVENTS + 1), before)
    return worker


async def _add(
    send: Callable[[str], Awaitable[None]], wait: Callable[[str], Awaitable[str]], numbers: range, total: int
) -> None:
    for number in numbers:
        total += number
        await send(f'42{number}["add",{number}]')
        if (said := await wait(f"43{number}[")) != (right := f"43{number}[{total}]"):
            raise Failed(f"add: {said} instead of {right}")


class _Polling:
    """The session of one client over HTTP: from its opening on, a poll is always under way."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self._query = {"EIO": "4", "transport": "polling"}
        self._packets: list[str] = []
        self._poll: asyncio.Task[str] | None = None

    async def open(self) -> None:
        packet = await self._request("open", "GET")
        if not packet.startswith("0{"):
            raise Failed(f"open: {packet[:40]}")
        self._query["sid"] = json.loads(packet.split("\x1e")[0][1:])["sid"]
        self._poll = asyncio.create_task(self._request("poll", "GET"))

    async def send(self, packet: str) -> None:
        await self._request(f"POST {packet[:2]}", "POST", packet)

    async def wait(self, beginning: str) -> str:
        """Poll until there is a packet with this beginning, and return it; the others are kept."""
        while not (found := [packet for packet in self._packets if packet.startswith(beginning)]):
            assert self._poll is not None
            packets = (await self._poll).split("\x1e")
            self._poll = asyncio.create_task(self._request("poll", "GET"))
            if "2" in packets:
                await self.send("3")
            self._packets += [packet for packet in packets if packet != "2"]
        self._packets.remove(found[0])
        return found[0]

    @asynccontextmanager
    async def upgrade(self, websockets: aiohttp.ClientSession) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Move the session to a WebSocket, amid a poll."""
        query = {**self._query, "transport": "websocket"}
        try:
            async with websockets.ws_connect(PATH, params=query) as ws:
                await ws.send_str("2probe")
                if (answer := (await ws.receive()).data) != "3probe":
                    raise Failed(f"upgrade: {answer} instead of 3probe")
                assert self._poll is not None
                await self._poll  # the server ends it with a noop packet
                await ws.send_str("5")
                yield ws
        except aiohttp.WSServerHandshakeError as problem:
            raise Failed(f"upgrade: HTTP {problem.status}") from problem

    async def end(self) -> None:
        """End the poll that is under way."""
        if self._poll is not None:
            self._poll.cancel()
            await asyncio.gather(self._poll, return_exceptions=True)

    async def _request(self, what: str, method: str, body: str | None = None) -> str:
        async with self._http.request(method, PATH, params=self._query, data=body) as response:
            text = await response.text()
            if response.status != 200:
                raise Failed(f"{what}: HTTP {response.status} {text[:16]}")
            return text


@asynccontextmanager
async def uvicorn(*arguments: str, workers: int) -> AsyncIterator[int]:
    """Run real uvicorn with that many worker processes, until the block ends; gives its port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "uvicorn", *arguments, "--workers", str(workers), "--port", "0", "--no-access-log",
        "--timeout-graceful-shutdown", "1",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    reading: asyncio.Task[Any] | None = None
    try:
        async with asyncio.timeout(START_SECONDS):
            port = await wait_uvicorn_started(process.stderr, workers)
        reading = asyncio.create_task(process.stderr.read())
        yield port
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()
        if reading is not None:
            await reading


async def wait_uvicorn_started(lines: asyncio.StreamReader, workers: int) -> int:
    port, started = 0, 0
    while not (port and started == workers):
        line = (await lines.readline()).decode()
        if not line:
            raise RuntimeError("uvicorn ended before it had started")
        if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
            port = int(found[1])
        started += "Application startup complete" in line
    return port
