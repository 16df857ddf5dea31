"""The real HAProxy, with the configuration that is delivered, in front of two clusters that share one Valkey."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import psutil
from websockets.asyncio.client import connect

from tests.cluster.raw import slots_of
from tests.cluster.room_support import ROOMS, Member, Valkey
from tests.support import ROOT, require_program, run
from wscluster.testing import Cluster

CONFIG = ROOT / "deploy/haproxy/haproxy.cfg"
HOSTS = ("127.0.0.2", "127.0.0.3")
CLIENTS = [f"127.1.0.{number}" for number in range(1, 25)]
WORKERS = 2
WAIT_SECONDS = 30.0


class HAProxy:
    """HAProxy in the foreground, told its addresses by the environment.

    Its port is reserved by a socket that is bound and does not listen, so that nobody else is given it.
    """

    def __init__(self, machines: list[str]) -> None:
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port: int = self._reserved.getsockname()[1]
        self._env = {"LISTEN": f"127.0.0.1:{self.port}", "MACHINE_ONE": machines[0], "MACHINE_TWO": machines[1]}
        self.output: list[str] = []

    async def __aenter__(self) -> "HAProxy":
        self._process = await asyncio.create_subprocess_exec(
            require_program("haproxy"), "-f", str(CONFIG), env=os.environ | self._env,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        self._reader = asyncio.create_task(self._read())
        async with asyncio.timeout(WAIT_SECONDS):
            while not self._listens():
                assert self._process.returncode is None, "\n".join(self.output)
                await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._reader
        self._reserved.close()

    def _listens(self) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = psutil.Process(self._process.pid).net_connections("tcp")
            return any(item.status == psutil.CONN_LISTEN for item in connections)
        return False

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.output.append(line.decode(errors="replace").rstrip())

    async def wait_said(self, text: str) -> None:
        """Wait for a line with ``text`` in it; past ones count."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not any(text in line for line in self.output):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def member(self, source: str) -> AsyncIterator[Member]:
        """A client of the handler `rooms` that comes from the address ``source``."""
        async with connect(f"ws://127.0.0.1:{self.port}", proxy=None, local_addr=(source, 0)) as ws:
            yield Member(ws)


class Site:
    """Two clusters, one for each of `HOSTS`, a Valkey that they share, and HAProxy in front."""

    def __init__(self, haproxy: HAProxy, clusters: list[Cluster]) -> None:
        self.haproxy = haproxy
        self.clusters = clusters

    async def place_of(self, member: Member) -> tuple[int, int]:
        """Return the number of the cluster and the slot that serve ``member``; its true address must be known there."""
        told = await member.do("who")
        host, port = member.ws.local_address[:2]
        assert told["client"] == told["remote"] == [host, port]
        assert told["slot"] == slots_of(host, WORKERS)[0]
        pids = [set(cluster.worker_pids().values()) for cluster in self.clusters]
        (number,) = [number for number, found in enumerate(pids) if told["pid"] in found]
        return number, told["slot"]

    async def places(self, sources: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Connect once from each address; returns where each was served."""
        found = {}
        for source in sources:
            async with self.haproxy.member(source) as member:
                found[source] = await self.place_of(member)
        return found


def machine(number: int, valkey: Valkey, port: int = 0) -> Cluster:
    return Cluster(ROOMS, workers=WORKERS, host=HOSTS[number], port=port, proxy_protocol="v2", redis_url=valkey.url)


@contextlib.asynccontextmanager
async def site(folder: Path) -> AsyncIterator[tuple[Site, Valkey]]:
    require_program("haproxy")
    with Valkey(folder) as valkey:
        async with machine(0, valkey) as one, machine(1, valkey) as two:
            addresses = [f"{host}:{cluster.port}" for host, cluster in zip(HOSTS, (one, two), strict=True)]
            async with HAProxy(addresses) as haproxy:
                yield Site(haproxy, [one, two]), valkey


def test_a_client_keeps_its_machine_and_worker_and_is_known_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with site(tmp_path) as (here, _):
            first = await here.places(CLIENTS)
            assert {number for number, _ in first.values()} == {0, 1}
            assert len(set(first.values())) == 2 * WORKERS
            assert await here.places(reversed(CLIENTS)) == first

    run(main(), timeout=120)


def test_rooms_span_the_machines(tmp_path: Path) -> None:
    async def main() -> None:
        async with site(tmp_path) as (here, _), contextlib.AsyncExitStack() as stack:
            members = [await stack.enter_async_context(here.haproxy.member(source)) for source in CLIENTS[:12]]
            places = {await here.place_of(member) for member in members}
            assert {number for number, _ in places} == {0, 1}
            for member in members:
                await member.join()
            for number, member in enumerate(members):
                await member.publish(f"from {number}")
            said = [f"from {number}" for number in range(len(members))]
            for member in members:
                await member.wait(lambda member=member: len(member.heard) == len(said))  # type: ignore[misc]
                assert member.heard == said

    run(main(), timeout=120)


def test_when_a_machine_is_killed_its_clients_go_to_the_other_and_nobody_else_moves(tmp_path: Path) -> None:
    async def main() -> None:
        async with site(tmp_path) as (here, valkey), contextlib.AsyncExitStack() as stack:
            before = await here.places(CLIENTS)
            open_members = {source: await stack.enter_async_context(here.haproxy.member(source)) for source in CLIENTS}
            for source, member in open_members.items():
                assert await here.place_of(member) == before[source]
            moving = {source for source, (number, _) in before.items() if number == 0}
            one, two = here.clusters
            port = one.port
            one.process.kill()
            for source in moving:
                async with asyncio.timeout(WAIT_SECONDS):
                    await open_members[source].ws.wait_closed()
            await here.haproxy.wait_said("Server machines/one is DOWN")

            after = await here.places(CLIENTS)
            assert after == {source: (1, slot) for source, (_, slot) in before.items()}
            for source in set(CLIENTS) - moving:
                assert await here.place_of(open_members[source]) == before[source]
            assert (await two.status())["totals"]["rejected"] == 0

            async with machine(0, valkey, port) as again:
                here.clusters[0] = again
                await here.haproxy.wait_said("Server machines/one is UP")
                assert await here.places(CLIENTS) == before

    run(main(), timeout=180)


def test_a_health_check_leaves_no_trace_in_the_log(tmp_path: Path) -> None:
    async def main() -> None:
        async with site(tmp_path) as (here, _):
            for cluster in here.clusters:
                # Nobody connects but HAProxy, to ask for their health.
                await cluster.wait_status(lambda status: status["totals"]["accepted"] >= 2)
                assert (await cluster.status())["totals"]["rejected"] == 0
                ready = next(at for at, line in enumerate(cluster.output) if "listening on" in line)
                assert not cluster.output[ready + 1 :]

    run(main(), timeout=120)
