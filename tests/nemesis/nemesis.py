"""``python -m tests.nemesis.nemesis --seconds 600 --seed 1``: sequenced publishers and subscribers under trouble.

Workers are killed and stopped, the bus is killed, stopped, held back and cut, clients go away and come back with
their last position. At the end everything is well again, a last message goes to each room, and the checker judges what
was published and heard.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import pickle
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.cluster.room_support import Valkey
from tests.nemesis.checker import Began, Heard, Mark, Published, Session, Told, Verdict, judge
from tests.nemesis.relay import Relay
from wscluster.testing import Cluster

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

ROOMS = ("lobby", "news")
PUBLISHERS = 3
MEMBERS = 4
LISTENERS = 2
"""Of each kind, for each room."""
GONE = (ConnectionClosed, InvalidHandshake, OSError, TimeoutError)


class Trouble:
    """One run: its clients, what they did and heard, and what was done to them.

    Attributes:
        done: How often each kind of trouble was made.
    """

    def __init__(self, cluster: Cluster, valkey: Valkey, relay: Relay, seed: int, rate: float) -> None:
        self._cluster = cluster
        self._valkey = valkey
        self._relay = relay
        self._random = random.Random(seed)
        self._rate = rate
        self._publishing = True
        self._restless = True
        self._news = asyncio.Event()
        # Those that have been told something and are still there.
        self._live: set[str] = set()
        self.publishes: list[Published] = []
        self.sessions: list[Session] = []
        self.done: Counter[str] = Counter()
        self.finals: dict[str, str] = {}

    async def run(self, seconds: float) -> Verdict:
        """Make trouble for ``seconds``, let everything heal, and judge."""
        async with asyncio.TaskGroup() as tasks:
            number = 0
            running = []
            for room in ROOMS:
                for kind, count in ((self._publish, PUBLISHERS), (self._follow, MEMBERS), (self._listen, LISTENERS)):
                    for _ in range(count):
                        number += 1
                        running.append(tasks.create_task(kind(room, number)))
            await self._make_trouble(seconds)
            finals = await self._heal()
            for task in running:
                task.cancel()
        self.finals = finals
        return judge(self.publishes, self.sessions, finals)

    # Publishers and subscribers

    async def _publish(self, room: str, number: int) -> None:
        count = 0
        while True:
            try:
                async with self._connect("/publish", number) as ws:
                    while True:
                        await asyncio.sleep(self._random.expovariate(self._rate))
                        if self._publishing:
                            count += 1
                            await self._publish_one(ws, room, f"{number}:{count}")
            except GONE:
                await asyncio.sleep(0.1)

    async def _publish_one(self, ws: ClientConnection, room: str, text: str) -> str | None:
        position: str | None = None
        try:
            await ws.send(f"{room} {text}")
            position = json.loads(await ws.recv()).get("position")
        finally:
            self.publishes.append(Published(room, text, position))
        return position

    async def _follow(self, room: str, number: int) -> None:
        """A member of the room that comes back with its last position, over and over."""
        since: str | None = None
        while True:
            session = Session(f"member {number}", room, since)
            self.sessions.append(session)
            path = f"/member?room={room}" + (f"&since={quote(since)}" if since else "")
            try:
                async with self._connect(path, number) as ws:
                    asking = asyncio.create_task(self._ask(ws))
                    try:
                        await self._hear(ws, session)
                    finally:
                        asking.cancel()
                        await asyncio.wait([asking])
            except GONE:
                pass
            since = session.last_mark()
            await asyncio.sleep(self._random.uniform(0, 0.5))

    async def _ask(self, ws: ClientConnection) -> None:
        """Ask for the position now and then, and go away without a word at times."""
        leave_at = time.monotonic() + self._random.expovariate(1 / 6)
        with contextlib.suppress(*GONE):
            while True:
                await asyncio.sleep(self._random.uniform(0.05, 0.3))
                await ws.send("where?")
                if self._restless and time.monotonic() > leave_at:
                    self.done["member goes away"] += 1
                    ws.transport.abort()
                    return

    async def _listen(self, room: str, number: int) -> None:
        while True:
            session = Session(f"listener {number}", room)
            self.sessions.append(session)
            with contextlib.suppress(*GONE):
                async with self._connect(f"/listen?room={room}", number) as ws:
                    await self._hear(ws, session)
            await asyncio.sleep(0.1)

    async def _hear(self, ws: ClientConnection, session: Session) -> None:
        try:
            async for frame in ws:
                _take(session, frame)
                self._live.add(session.subscriber)
                self._news.set()
        finally:
            self._live.discard(session.subscriber)

    def _connect(self, path: str, number: int) -> Any:
        return self._cluster.connect(path, source=f"127.2.0.{number}", open_timeout=5, ping_interval=None)

    # Trouble

    async def _make_trouble(self, seconds: float) -> None:
        kinds: list[Callable[[], Awaitable[None]]] = [
            self._kill_worker, self._stop_worker, self._kill_bus, self._stop_bus, self._hold_bus, self._cut_bus,
        ]  # fmt: skip
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.sleep(self._random.uniform(0.5, 2.5))
            kind = self._random.choice(kinds)
            self.done[kind.__name__.strip("_").replace("_", " ")] += 1
            await kind()

    def _a_worker(self) -> int | None:
        pids = list(self._cluster.worker_pids().values())
        return self._random.choice(pids) if pids else None

    async def _kill_worker(self) -> None:
        if (pid := self._a_worker()) is not None:
            _send(pid, signal.SIGKILL)

    async def _stop_worker(self) -> None:
        if (pid := self._a_worker()) is not None:
            _send(pid, signal.SIGSTOP)
            await asyncio.sleep(self._random.uniform(0.2, 3))
            _send(pid, signal.SIGCONT)

    async def _kill_bus(self) -> None:
        self._valkey.kill()
        await asyncio.sleep(self._random.uniform(0, 2))
        self._valkey.start()

    async def _stop_bus(self) -> None:
        self._valkey.signal(signal.SIGSTOP)
        await asyncio.sleep(self._random.uniform(0.2, 3))
        self._valkey.signal(signal.SIGCONT)

    async def _hold_bus(self) -> None:
        self._relay.hold()
        await asyncio.sleep(self._random.uniform(0.5, 8))
        if self._random.random() < 0.5:
            self._relay.cut()
        self._relay.release()

    async def _cut_bus(self) -> None:
        self._relay.cut()

    # The end

    async def _heal(self) -> dict[str, str]:
        """Wait until all is well, publish a last message to each room, and wait until all who are there have it."""
        self._restless = self._publishing = False
        await self._cluster.wait_status(
            lambda status: status["bus"]["connected"] and all(row["state"] == "ready" for row in status["workers"]),
            timeout=60,
        )
        finals = {room: f"last of {room}" for room in ROOMS}
        # Whoever only now comes back must be there before the last message, which is not logged for whoever begins.
        await self._wait(lambda: all(session.subscriber in self._live for session in self._latest()), 60)
        async with self._connect("/publish", 99) as ws:
            for room, text in finals.items():
                assert await self._publish_one(ws, room, text) is not None
        with contextlib.suppress(TimeoutError):  # who never hears it is a fault that the checker finds
            await self._wait(lambda: all(finals[one.room] in one.heard() for one in self._latest()), 30)
        return finals

    def _latest(self) -> list[Session]:
        return list({session.subscriber: session for session in self.sessions}.values())

    async def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                self._news.clear()
                await self._news.wait()


def _take(session: Session, frame: str | bytes) -> None:
    """Add what a subscriber was sent to its session: a message of its room, or what the handler says about it."""
    text = str(frame)
    if not text.startswith("{"):
        session.items.append(Heard(text))
        return
    match json.loads(text):
        case {"began": position, "recovered": recovered}:
            session.items.append(Began(position, recovered))
        case {"mark": position}:
            session.items.append(Mark(position))
        case {"after": after, "before": before}:
            if not session.items:
                session.items.append(Began(after, recovered=True))
            session.items.append(Told(after, before))
        case {"heard": data, "position": position}:
            if not session.items:
                session.items.append(Began(position, recovered=True))
            session.items.append(Heard(data, position))


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def trouble(folder: Path, seconds: float, seed: int, rate: float = 30) -> tuple[Verdict, Trouble]:
    """Run a cluster of 3 workers under trouble for ``seconds``; returns the verdict and what it is about.

    Args:
        rate: Messages a second of each publisher.
    """
    with Valkey(folder) as valkey:
        async with Relay(valkey.port) as relay:
            options: dict[str, Any] = {
                "redis_url": f"redis://127.0.0.1:{relay.port}",
                "bus_timeout": 3,
                "room_log": 2000,
            }
            async with Cluster("tests.nemesis.handlers:serve", workers=3, graceful_timeout=2, **options) as cluster:
                run = Trouble(cluster, valkey, relay, seed, rate)
                return await run.run(seconds), run


def main() -> int:
    """Make trouble as the command line says; 0 where the checker finds no fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--rate", type=float, default=30, help="messages a second of each publisher")
    parser.add_argument("--history", type=Path, help="file that gets what was published and heard (pickle)")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        verdict, run = asyncio.run(trouble(Path(folder), arguments.seconds, arguments.seed, arguments.rate))
    print(", ".join(f"{what} {count} times" for what, count in run.done.items()))
    if arguments.history is not None:
        arguments.history.write_bytes(pickle.dumps((run.publishes, run.sessions, run.finals)))
    print(verdict)
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
