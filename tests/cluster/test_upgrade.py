"""USR2: the primary executes itself anew, and nobody who is connected, or connects, can tell."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.process_support import cli, close_code, connect_to_slot
from tests.support import ROOT, open_fds, run
from wscluster.testing import Cluster

SERVED = "tests.cluster.obeying:obey"


async def upgrade(cluster: Cluster, count: int = 1) -> dict[str, Any]:
    cluster.signal(signal.SIGUSR2)
    return await cluster.wait_event("upgraded", count=count)


async def told(ws: Any, message: str) -> str:
    await ws.send(message)
    return str(await ws.recv())


def kinds_of_fds(pid: int) -> Counter[str]:
    """How many descriptors of each kind a process has; those of one kind differ by a number only."""
    return Counter(re.sub(r"\d+", "N", what) for what in open_fds(pid).values())


async def fds_at_rest(cluster: Cluster) -> Counter[str]:
    """The kinds of the primary's descriptors, once it has opened what it opens later and let go of every caller."""
    await cluster.status()  # libuv opens a spare descriptor with its first stream
    listens, connected = "01", "03"
    async with asyncio.timeout(5):
        while connected in (states := states_of_unix_sockets(str(cluster.control_socket))):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert states == [listens]
    return kinds_of_fds(cluster.pid)


def states_of_unix_sockets(path: str) -> list[str]:
    """What /proc/net/unix has in its column St for each socket of a path."""
    rows = [row.split() for row in Path("/proc/net/unix").read_text().splitlines()]
    return [row[5] for row in rows if row[-1] == path]


async def has_fds(pid: int, wanted: Counter[str]) -> None:
    """Wait until the process has these descriptors: the end of a call to the control socket is noticed in a moment."""
    try:
        async with asyncio.timeout(5):
            while kinds_of_fds(pid) != wanted:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
    except TimeoutError:
        assert kinds_of_fds(pid) == wanted, open_fds(pid)


@contextlib.asynccontextmanager
async def connecting(cluster: Cluster) -> AsyncIterator[list[str]]:
    """Connect, ask and close again and again; yields what has failed and, last of all, how often it did not."""
    failed: list[str] = []
    done = 0
    end = asyncio.Event()

    async def one(number: int) -> None:
        nonlocal done
        while not end.is_set():
            try:
                async with cluster.connect(source=f"127.2.{number}.{done % 200 + 1}", open_timeout=10) as ws:
                    await ws.recv()
                    assert await told(ws, "phase") == "1"
                done += 1
            except (OSError, AssertionError, TimeoutError) as exc:
                failed.append(repr(exc))

    tasks = [asyncio.create_task(one(number)) for number in range(4)]
    yield failed
    end.set()
    await asyncio.gather(*tasks)
    assert done > 20


def test_pid_workers_connections_descriptors_and_counters_stay_and_no_connect_fails() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=2, metrics=True, metrics_port=0) as cluster:
            clients = [await connect_to_slot(cluster, slot) for slot in (0, 1)]
            assert await told(clients[0], "join lobby") == "done"  # the private Valkey runs
            before = await cluster.status()
            fds, pids = await fds_at_rest(cluster), cluster.worker_pids()
            children = {child.pid for child in psutil.Process(cluster.pid).children()}
            async with connecting(cluster) as failed:
                for count in (1, 2, 3):
                    event = await upgrade(cluster, count)
                    assert event["pid"] == cluster.pid
                    assert 0 < event["pause_seconds"] < 5
                    await asyncio.sleep(0.1)  # of new connections between two upgrades
            assert not failed
            for ws in clients:
                assert await told(ws, "pid") in {str(pid) for pid in pids.values()}
            assert cluster.worker_pids() == pids
            assert {child.pid for child in psutil.Process(cluster.pid).children()} == children
            after = await cluster.wait_status(lambda status: status["totals"]["connections"] == 2)
            for name in ("accepted", "adopted"):
                assert after["totals"][name] > before["totals"][name] + 20
            assert after["totals"]["rejected"] == 0
            assert after["primary"]["uptime_seconds"] > before["primary"]["uptime_seconds"]
            await has_fds(cluster.pid, fds)
            for ws in clients:
                await ws.close()
        assert [event["event"] for event in cluster.events].count("ready") == 1

    run(main())


def test_what_comes_after_is_as_ever_reload_crash_scale_rooms_logs_and_stop(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=2) as cluster:
            first, second = [await connect_to_slot(cluster, slot) for slot in (0, 1)]
            assert await told(first, "join lobby") == "done"
            assert await told(first, "say before") == "done"
            await cluster.wait_output("| before")
            await upgrade(cluster)
            where = ("--control-socket", str(cluster.control_socket))
            assert await told(second, "join lobby") == "done"
            done = await asyncio.to_thread(cli, "publish", *where, "lobby", "hello", folder=tmp_path)
            assert done.returncode == 0, done.stderr
            assert (await first.recv(), await second.recv()) == ("hello", "hello")
            assert await told(first, "say after") == "done"
            await cluster.wait_output("stdout  worker 1 slot 0 phase 1 | after")
            shown = await asyncio.to_thread(cli, "logs", *where, "--slot", "0", folder=tmp_path)
            assert [line.rpartition("| ")[2] for line in shown.stdout.splitlines()] == ["before", "after"]
            os.kill(cluster.worker_pids()[1], signal.SIGKILL)
            assert await close_code(second) == 1006
            await cluster.wait_event("worker_ready", slot=1, count=2)
            done = await asyncio.to_thread(cli, "scale", *where, "3", folder=tmp_path)
            assert done.returncode == 0, done.stderr
            done = await asyncio.to_thread(cli, "reload", *where, folder=tmp_path)
            assert done.returncode == 0, done.stderr
            assert await close_code(first) == 1012
            await upgrade(cluster, 2)
            assert len(cluster.worker_pids()) == 3
            ws = await connect_to_slot(cluster, 2)
            children = [child.pid for child in psutil.Process(cluster.pid).children()]
            ended, code = await asyncio.gather(cluster.stop(), close_code(ws))
            assert (ended, code) == (0, 1001)
            assert not [pid for pid in children if psutil.pid_exists(pid)]

    run(main())


def copy_release(folder: Path) -> dict[str, Any]:
    """Put a copy of the package into ``folder``; returns what a cluster that runs it is made with."""
    shutil.copytree(ROOT / "wscluster", folder / "wscluster", ignore=shutil.ignore_patterns("__pycache__"))
    return {
        "cwd": folder,
        "env": {"PYTHONPATH": f"{folder}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"},
        "workers": 1,
    }


def test_the_new_code_takes_over_and_broken_code_never_does(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(SERVED, **copy_release(tmp_path)) as cluster:
            ws = await connect_to_slot(cluster, 0)
            broken = tmp_path / "wscluster" / "gateway" / "fleet.py"
            good = broken.read_text()
            before = await fds_at_rest(cluster)
            for count, (text, said) in enumerate(
                [
                    (good + "\nclass Half(", "SyntaxError: '(' was never closed"),
                    (good + "\nraise SystemExit(3)\n", "ends with status 3: it said nothing"),
                    (good.replace("    last_worker: int = 0\n", ""), "State.fleet has last_worker, which"),
                    (good.replace("    size: int\n", "    size: str\n"), "State.fleet.size: int instead of str"),
                ],
                1,
            ):
                broken.write_text(text)
                cluster.signal(signal.SIGUSR2)
                event = await cluster.wait_event("upgrade_failed", count=count)
                assert said in event["reason"], event
                assert "\n" not in event["reason"]
                await cluster.wait_output("not upgraded, everything goes on as before")
                assert await told(ws, "phase") == "1"
                assert (await cluster.status())["primary"]["version"] != "9.9.9"
            await has_fds(cluster.pid, before)
            broken.write_text(good)
            init = tmp_path / "wscluster" / "__init__.py"
            init.write_text(re.sub('__version__ = "[^"]*"', '__version__ = "9.9.9"', init.read_text()))
            await upgrade(cluster)
            assert (await cluster.status())["primary"]["version"] == "9.9.9"
            assert await told(ws, "phase") == "1"
            await ws.close()

    run(main())


def test_a_configuration_that_is_half_written_ends_the_trial_alone(tmp_path: Path) -> None:
    async def main() -> None:
        file = tmp_path / "wscluster.toml"
        file.write_text("slot-wait = 3\n")
        async with Cluster(SERVED, workers=1, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}) as cluster:
            ws = await connect_to_slot(cluster, 0)
            file.write_text("slot-wait = ")
            cluster.signal(signal.SIGUSR2)
            event = await cluster.wait_event("upgrade_failed")
            assert "wscluster.toml" in event["reason"]
            assert await told(ws, "phase") == "1"
            file.write_text("slot-wait = 4\n")
            await upgrade(cluster)
            await ws.close()

    run(main())


@pytest.mark.parametrize("order", ["usr2 hup", "hup usr2", "usr2 usr2", "usr2 term", "term usr2", "usr2 ttin"])
def test_signals_one_after_the_other_are_each_carried_out(order: str) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1) as cluster:
            for name in order.split():
                cluster.signal(signal.Signals[f"SIG{name.upper()}"])
            if "hup" in order:
                await cluster.wait_event("reloaded")
            if "ttin" in order:
                await cluster.wait_event("scaled", slots=2)
            if "term" in order:
                assert await cluster.wait_exit() == 0
                return
            await cluster.wait_event("upgraded")
            ws = await connect_to_slot(cluster, 0)
            assert await told(ws, "phase") == ("2" if "hup" in order else "1")
            await ws.close()

    run(main())


def test_signals_that_come_while_nobody_has_a_handler_wait() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1) as cluster:
            cluster.signal(signal.SIGUSR2)
            await cluster.wait_output("the new code is tried first")
            # All the time of the trial and of the execve, several of each.
            while not any(event["event"] == "upgraded" for event in cluster.events):
                cluster.signal(signal.SIGUSR1)
                await asyncio.sleep(0.002)
            await cluster.wait_output("no file to open again")
            ws = await connect_to_slot(cluster, 0)
            await ws.close()

    run(main())


def test_a_worker_that_dies_while_the_primary_executes_itself_is_replaced() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=2) as cluster:
            for count in range(1, 4):
                victim = cluster.worker_pids()[1]
                cluster.signal(signal.SIGUSR2)
                await asyncio.sleep(0.15 * count)  # somewhere in the trial, the execve or the time after it
                os.kill(victim, signal.SIGKILL)
                await cluster.wait_event("upgraded", count=count)
                await cluster.wait_event("worker_ready", slot=1, count=count + 1)
                ws = await connect_to_slot(cluster, 1)
                await ws.close()

    run(main())


def test_an_upgrade_waits_for_a_reload_that_is_under_way(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "app.py").write_text(
            "import time, os\n"
            "if os.path.exists('slow'): time.sleep(1)\n"
            "async def handler(ws):\n    await ws.send(str(ws.slot))\n    await ws.recv()\n"
        )
        async with Cluster("app:handler", app_dir=tmp_path, cwd=tmp_path, workers=2,
                           env={"PYTHONPATH": str(ROOT)}) as cluster:  # fmt: skip
            (tmp_path / "slow").touch()
            where = ("--control-socket", str(cluster.control_socket))
            verb = asyncio.create_task(asyncio.to_thread(cli, "reload", *where, folder=tmp_path))
            await cluster.wait_event("reloading")
            cluster.signal(signal.SIGUSR2)
            await cluster.wait_output("the upgrade waits: a reload")
            assert (await verb).returncode == 0
            await cluster.wait_event("upgraded")
            order = [event["event"] for event in cluster.events]
            assert order.index("reloaded") < order.index("upgraded")

    run(main())


def test_many_upgrades_one_after_the_other_leave_nothing_behind() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=2, limit_connections_per_ip=100) as cluster:
            ws = await connect_to_slot(cluster, 0)
            await upgrade(cluster)
            fds, rss = await fds_at_rest(cluster), psutil.Process(cluster.pid).memory_info().rss
            for count in range(2, 8):
                await upgrade(cluster, count)
            await cluster.status()
            await has_fds(cluster.pid, fds)
            assert psutil.Process(cluster.pid).memory_info().rss < rss + (8 << 20)
            assert await told(ws, "phase") == "1"
            await ws.close()

    run(main())


def test_no_signal_is_lost_whenever_it_comes(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "log"
        async with Cluster(SERVED, workers=1, log_file=str(path)) as cluster:
            ws = await connect_to_slot(cluster, 0)
            assert await told(ws, "print 500000") == "done"  # what there is much of takes a while to hand over
            loop = asyncio.get_running_loop()
            trial = 0.0
            for count in range(1, 27):
                if count > 1:
                    path.rename(tmp_path / "old")
                begin = loop.time()
                cluster.signal(signal.SIGUSR2)
                # About the moment in which the one process becomes the other: it is known from the time before.
                await asyncio.sleep(trial + (count - 16) * 0.0015)
                cluster.signal(signal.SIGUSR1)
                event = await cluster.wait_event("upgraded", count=count)
                trial = loop.time() - begin - event["pause_seconds"]
                async with asyncio.timeout(5):
                    while not path.exists():  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
            await ws.close()

    run(main())
