"""The core of the suite where it is hardest: as nobody with 1,024 file descriptors, as process 1, at the fd limit."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest

from tests.cluster.room_support import ROOMS, pair
from tests.cluster.test_limits import (
    SERVE,
    UNSHARE,
    cluster_of_nobody,
    cpu_seconds,
    fd_limit,
    leave_fds,
    primary_of,
    require_unshare,
    set_soft_limit,
)
from tests.support import run
from wscluster.testing import Cluster


@asynccontextmanager
async def as_nobody(**options: Any) -> AsyncIterator[tuple[Cluster, psutil.Process]]:
    async with cluster_of_nobody(ROOMS, **options) as cluster:
        assert fd_limit(cluster.pid) == ["1024", "1024"]
        yield cluster, psutil.Process(cluster.pid)


@asynccontextmanager
async def as_process_1(**options: Any) -> AsyncIterator[tuple[Cluster, psutil.Process]]:
    require_unshare()
    async with Cluster(ROOMS, command=(*UNSHARE, *SERVE), **options) as cluster:
        assert (await cluster.status())["primary"]["pid"] == 1
        yield cluster, primary_of(cluster)


def workers_of(primary: psutil.Process) -> set[psutil.Process]:
    return {child for child in primary.children() if "wscluster.workers" in child.cmdline()}


async def speak(cluster: Cluster) -> None:
    """An echo, and a room across two workers, in order."""
    async with pair(cluster) as (one, other):
        await one.do("say", text="an echo")
        await one.wait_for("an echo")
        await one.join()
        await other.join()
        await other.do("publish many", text="message", count=50)
        await one.wait_for("message 49")
        await other.wait_for("message 49")
        assert one.heard == ["an echo", *(f"message {number}" for number in range(50))]
        assert other.heard == one.heard[1:]


@pytest.mark.parametrize("place", [as_nobody, as_process_1])
def test_echo_rooms_restart_and_stop_work(place: Any) -> None:
    async def main() -> None:
        async with place(workers=2) as (cluster, primary):
            await speak(cluster)
            victims = workers_of(primary)
            assert len(victims) == 2
            for number, victim in enumerate(victims, 3):
                victim.kill()
                await cluster.wait_event("worker_ready", count=number)
            assert len(workers_of(primary) - victims) == 2
            assert not [child for child in primary.children() if child.status() == psutil.STATUS_ZOMBIE]
            await speak(cluster)
            status = await cluster.status()
            assert status["totals"]["workers_restarted"] == 2
            assert status["bus"]["gaps"] == 0
            children = primary.children()
            assert await cluster.stop() == 0
            assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
            assert "TOOMANYREFS" not in "".join(cluster.output).upper().replace(" ", "")

    run(main())


def test_a_primary_at_its_fd_limit_replaces_a_worker_once_there_is_room() -> None:
    async def main() -> None:
        async with Cluster(ROOMS, workers=2) as cluster:
            await speak(cluster)
            pids = cluster.worker_pids()
            await leave_fds(cluster.pid, 1)
            psutil.Process(pids[0]).send_signal(signal.SIGKILL)
            await cluster.wait_output("cannot be started")
            cpu = cpu_seconds(cluster.pid)
            async with cluster.connect() as ws:
                # Whoever belongs to the empty slot waits for it, and then goes to the other.
                await ws.send('{"do": "state", "room": "lobby"}')
                assert '"slot": 1' in str(await ws.recv())
            assert cpu_seconds(cluster.pid) - cpu < 0.2
            set_soft_limit(cluster.pid)
            await cluster.wait_event("worker_ready", slot=0, count=2, timeout=60)
            await speak(cluster)

    run(main(), 120)
