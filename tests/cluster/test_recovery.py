"""Clients that come back: each gets what it missed once, in order, before anything newer, or hears that it cannot."""

import asyncio
import contextlib
import json
import os
import random
import signal
from dataclasses import dataclass, field

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import WebSocketException

import wscluster
from tests.support import run
from wscluster.testing import Cluster

BACK = "tests.cluster.recovery_handlers:room"


@dataclass
class Traveller:
    """A client that drops and comes back with its last position.

    Attributes:
        heard: Numbers of the messages, in the order in which they came, over all of its connections.
        position: The last that it was given, with how many messages it had then.
    """

    cluster: Cluster
    source: str
    away_seconds: float = 0.2
    heard: list[int] = field(default_factory=list)
    position: tuple[str, int] | None = None
    returns: int = 0
    unrecovered: int = 0
    replayed: int = 0

    async def travel(self, until: asyncio.Event) -> None:
        while not until.is_set():
            with contextlib.suppress(WebSocketException, OSError, TimeoutError):
                async with self.cluster.connect(source=self.source, open_timeout=5) as ws:
                    await self._stay(ws, random.uniform(0.05, 0.6), until)
                    ws.transport.abort()
            await asyncio.sleep(random.uniform(0, self.away_seconds))

    async def come_back(self, last: int) -> None:
        """Come back once more, and stay until message ``last`` has come."""
        async with asyncio.timeout(30), self.cluster.connect(source=self.source) as ws:
            await self._join(ws)
            while not self.heard or self.heard[-1] < last:
                self._take(await ws.recv())

    async def _stay(self, ws: ClientConnection, seconds: float, until: asyncio.Event) -> None:
        await self._join(ws)
        asked_at = 0.0
        loop = asyncio.get_running_loop()
        leave_at = loop.time() + seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(leave_at):
                while not until.is_set():
                    if loop.time() - asked_at > 0.03:
                        asked_at = loop.time()
                        await ws.send("where")
                    self._take(await ws.recv())

    async def _join(self, ws: ClientConnection) -> None:
        since, had = self.position or (None, 0)
        await ws.send(json.dumps({"since": since}))
        replayed: list[int] = []
        while not (said := str(await ws.recv())).startswith("!"):
            replayed.append(int(said))
        joined = json.loads(said[1:])
        assert joined["missed"] == len(replayed)
        if since is None or not joined["recovered"]:
            assert not replayed
            self.heard.clear()  # a new beginning: what came before is another chain
            self.unrecovered += since is not None
        else:
            self.returns += 1
            self.replayed += len(replayed)
            # Until its position it had everything; what it heard after that comes again, and then the rest.
            again = self.heard[had:]
            assert replayed[: len(again)] == again
            del self.heard[had:]
            self.heard += replayed
        self.position = joined["at"], len(self.heard)

    def _take(self, message: str | bytes) -> None:
        if str(message).startswith("!"):
            said = json.loads(str(message)[1:])
            assert not said["gaps"]
            self.position = said["at"], len(self.heard)
        else:
            self.heard.append(int(message))

    def check(self) -> None:
        """Each message once and in order since the last new beginning."""
        first = self.heard[0] if self.heard else 0
        assert self.heard == list(range(first, first + len(self.heard)))


async def publish_steadily(cluster: Cluster, rate: int, until: asyncio.Event) -> int:
    """Publish numbers from 0 on at ``rate`` a second, from outside; returns how many."""
    loop = asyncio.get_running_loop()
    sent = 0
    async with wscluster.Publisher(control_socket=str(cluster.control_socket)) as publisher:
        began = loop.time()
        while not until.is_set():
            due = range(sent, int((loop.time() - began) * rate))
            await asyncio.gather(*(publisher.publish("lobby", str(number)) for number in due))
            sent += len(due)
            await asyncio.sleep(0.004)
    return sent


def test_clients_that_drop_and_come_back_under_a_thousand_messages_a_second_hear_each_once_and_in_order() -> None:
    """24 clients drop again and again for eight seconds, and in the middle of it a worker is killed."""

    async def main() -> None:
        until = asyncio.Event()
        async with Cluster(BACK, workers=3, room_log=20_000) as cluster:
            travellers = [Traveller(cluster, f"127.1.{number}.1") for number in range(24)]
            async with asyncio.TaskGroup() as group:
                publishing = group.create_task(publish_steadily(cluster, 1000, until))
                for traveller in travellers:
                    group.create_task(traveller.travel(until))
                await asyncio.sleep(4)
                os.kill(cluster.worker_pids()[1], signal.SIGKILL)
                await asyncio.sleep(4)
                until.set()
            sent = publishing.result()
            async with asyncio.TaskGroup() as group:
                for traveller in travellers:
                    group.create_task(traveller.come_back(sent - 1))
            for traveller in travellers:
                traveller.check()
                assert traveller.heard[-1] == sent - 1
            assert sent > 4000
            assert sum(traveller.returns for traveller in travellers) > 100
            assert sum(traveller.replayed for traveller in travellers) > 5000
            # The log holds 20 s of this: nobody was away for as long.
            assert not sum(traveller.unrecovered for traveller in travellers)
            status = await cluster.status()
            assert status["bus"]["gaps"] == 0
            assert status["totals"]["slow_closed"] == 0

    run(main(), timeout=120)


def test_with_a_short_log_a_client_gets_all_that_it_missed_or_is_told_that_it_cannot() -> None:
    async def main() -> None:
        until = asyncio.Event()
        async with Cluster(BACK, workers=2, room_log=100) as cluster:
            travellers = [Traveller(cluster, f"127.1.{number}.1", away_seconds=0.6) for number in range(10)]
            async with asyncio.TaskGroup() as group:
                publishing = group.create_task(publish_steadily(cluster, 600, until))
                for traveller in travellers:
                    group.create_task(traveller.travel(until))
                await asyncio.sleep(4)
                until.set()
            for traveller in travellers:
                traveller.check()
            assert publishing.result() > 1000
            assert sum(traveller.unrecovered for traveller in travellers) > 5
            assert sum(traveller.returns for traveller in travellers) > 5

    run(main(), timeout=120)
