"""Workers that crash, hang or cannot boot: what becomes of them, of their slot, and of everybody else."""

import asyncio
import itertools
import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.process_support import close_code, connect_to_slot, in_folder, wait_gone, write_target, zombies
from tests.cluster.room_support import wait_until
from tests.support import open_fds, run
from wscluster.gateway.child import Child
from wscluster.gateway.redis_server import remove_stale_folders
from wscluster.gateway.spawner import Process
from wscluster.testing import Cluster, ClusterFailed

SERVED = "tests.cluster.obeying:obey"


def restarted(status: dict[str, Any]) -> int:
    return int(status["totals"]["workers_restarted"])


@pytest.mark.parametrize("reaped", [False, True])
def test_a_kill_that_comes_too_late_reaches_nobody(reaped: bool) -> None:
    """By its number it could reach a stranger that has the number by now."""

    popen = subprocess.Popen(["sleep", "60"])
    popen.terminate()
    os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)

    async def main() -> None:
        ended = asyncio.get_running_loop().create_future()
        process = Process(Child.of(popen), asyncio.get_running_loop(), ended.set_result, own_group=False)
        if reaped:
            assert await ended == -signal.SIGTERM
            assert not psutil.pid_exists(popen.pid)
        process.kill()
        assert await ended == -signal.SIGTERM
        process.kill()

    run(main())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crashed_worker_is_replaced_in_its_slot_and_the_others_feel_nothing(number: signal.Signals) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=3) as cluster:
            clients = [await connect_to_slot(cluster, slot) for slot in range(3)]
            before = cluster.worker_pids()
            os.kill(before[1], number)
            exited = await cluster.wait_event("worker_exited")
            assert exited == {"event": "worker_exited", "slot": 1, "pid": before[1], "status": -number}
            assert await close_code(clients[1]) == 1006
            again = await cluster.wait_event("worker_ready", slot=1, count=2)
            assert again["pid"] != before[1]
            for slot in (0, 2):
                await clients[slot].send("pid")
                assert await clients[slot].recv() == str(before[slot])
            status = await cluster.status()
            assert [worker["state"] for worker in status["workers"]] == ["ready"] * 3
            assert [worker["id"] for worker in status["workers"]] == [1, 4, 3]
            assert [worker["pid"] for worker in status["workers"]] == [before[0], again["pid"], before[2]]
            assert restarted(status) == 1
            back = await connect_to_slot(cluster, 1)
            for client in (clients[0], clients[2], back):
                await client.close()
            assert any("exited: signal " + number.name in line for line in cluster.output)

    run(main())


def test_a_worker_that_ends_itself_is_replaced() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1) as cluster:
            ws = await connect_to_slot(cluster, 0)
            await ws.send("sys.exit")
            assert (await cluster.wait_event("worker_exited"))["status"] == 7
            await ws.wait_closed()
            await cluster.wait_event("worker_ready", count=2)

    run(main())


def test_a_crash_loop_is_slowed_down_more_and_more(tmp_path: Path) -> None:
    """The worker ends as soon as it is ready; the waits between its starts grow from 0.1 s to twice that, and so on."""
    target = write_target(
        tmp_path,
        """
import os, time
import wscluster

with open("starts", "a") as starts:
    starts.write(f"{time.monotonic()}\\n")

@wscluster.lifespan
async def life():
    import asyncio
    asyncio.get_running_loop().call_later(0.02, os._exit, 5)
    yield

async def handler(ws): pass
""",
    )

    async def main() -> None:
        cluster = Cluster(target, workers=1, app_dir=tmp_path, command=in_folder(tmp_path))
        async with cluster:
            await cluster.wait_event("worker_exited", count=5)
            status = await cluster.wait_status(lambda status: restarted(status) >= 4)
            assert restarted(status) <= 5
        exits = [event["status"] for event in cluster.events if event["event"] == "worker_exited"]
        assert set(exits) <= {5, -signal.SIGKILL}
        starts = [float(line) for line in (tmp_path / "starts").read_text().split()]
        gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
        # The wait is 0.1 s * 2**n, of which chance takes up to a half away; the rest is the boot.
        for number, gap in enumerate(gaps[:4]):
            assert gap >= 0.05 * 2**number, gaps

    run(main())


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "import os; os._exit(9)",
            "no worker became ready: 3 boots failed, the last one: its worker ended before it was ready",
        ),
        (
            "import wscluster\n@wscluster.lifespan\nasync def life():\n    raise OSError('no database')\n    yield\n",
            "the lifespan raised OSError: no database",
        ),
        (
            "import wscluster\n@wscluster.lifespan\nasync def life():\n    if False: yield\n",
            "the lifespan ended without a yield",
        ),
    ],
    ids=["exits", "lifespan raises", "lifespan without a yield"],
)
def test_a_cluster_whose_workers_cannot_boot_ends_with_3_and_says_why(tmp_path: Path, source: str, reason: str) -> None:
    target = write_target(tmp_path, source + "\nasync def handler(ws): pass\n")

    async def main() -> None:
        # Two of them, where the same traceback must not be shown twice.
        size = 2 if "OSError" in reason else 1
        cluster = Cluster(target, workers=size, app_dir=tmp_path)
        with pytest.raises(ClusterFailed) as failed:
            async with cluster:
                raise AssertionError("it became ready")
        assert failed.value.exit_code == 3
        assert cluster.output[-1] == f"wscluster: {reason}"
        text = "\n".join(cluster.output)
        if "OSError" in reason:
            assert text.count("OSError: no database") == text.count("the lifespan raised OSError: no database") + 1
            assert text.count('app.py", line 4, in life') == 1
            assert "wscluster/workers" not in text
        else:
            assert "Traceback" not in text
        for slot in range(size):
            assert [event["slot"] for event in cluster.events if event["event"] == "worker_exited"].count(slot) == 3

    run(main())


def test_a_slot_that_cannot_boot_is_given_up_while_the_others_serve(tmp_path: Path) -> None:
    target = write_target(
        tmp_path,
        """
import pathlib
import wscluster

@wscluster.lifespan
async def life():
    if wscluster.this_worker.slot == 1 and pathlib.Path("broken").exists():
        raise OSError("slot 1 is broken")
    yield

async def handler(ws):
    await ws.send(str(ws.slot))
    await ws.wait_closed()
""",
    )

    async def main() -> None:
        async with Cluster(target, app_dir=tmp_path, slot_wait=0.2, command=in_folder(tmp_path)) as cluster:
            stays = await connect_to_slot(cluster, 0)
            goes = await connect_to_slot(cluster, 1)
            address = goes.local_address[0]
            (tmp_path / "broken").touch()
            os.kill(cluster.worker_pids()[1], signal.SIGKILL)
            status = await cluster.wait_status(lambda status: status["workers"][1]["state"] == "failed")
            assert status["workers"][0]["state"] == "ready"
            assert {status["workers"][1][name] for name in ("id", "pid", "connections", "rss_bytes")} == {None}
            line = await cluster.wait_output("slot 1 is given up")
            assert "5 boots failed, the last one: the lifespan raised OSError: slot 1 is broken" in line
            assert "\n".join(cluster.output).count('app.py", line 8, in life') == 1
            # Who belongs to the slot is served by the next one, at once.
            async with cluster.connect(source=address) as ws:
                assert await ws.recv() == "0"
            await stays.close()
        assert cluster.process.returncode == 0

    run(main())


def test_a_cluster_whose_last_slot_is_given_up_ends_with_1(tmp_path: Path) -> None:
    target = write_target(
        tmp_path,
        """
import os, pathlib
if pathlib.Path("broken").exists():
    os._exit(1)
async def handler(ws): await ws.wait_closed()
""",
    )

    async def main() -> None:
        async with Cluster(target, workers=1, app_dir=tmp_path, command=in_folder(tmp_path)) as cluster:
            (tmp_path / "broken").touch()
            os.kill(cluster.worker_pids()[0], signal.SIGKILL)
            assert await cluster.wait_exit() == 1
        assert "slot 0 is given up: 5 boots failed" in "\n".join(cluster.output)
        assert not cluster.control_socket.exists()

    run(main())


def test_a_worker_whose_loop_is_stuck_is_killed_and_replaced() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=2, timeout_worker_healthcheck=1.5) as cluster:
            stuck, other = await connect_to_slot(cluster, 0), await connect_to_slot(cluster, 1)
            before = cluster.worker_pids()
            await stuck.send("block 30")
            exited = await cluster.wait_event("worker_exited")
            assert exited == {"event": "worker_exited", "slot": 0, "pid": before[0], "status": -signal.SIGKILL}
            await cluster.wait_output("worker 1 killed: no beat for 1.5 s: its event loop is stuck")
            await cluster.wait_event("worker_ready", slot=0, count=2)
            await other.send("pid")
            assert await other.recv() == str(before[1])
            await other.close()

    run(main())


def test_a_worker_that_is_stopped_is_killed_for_its_missing_beat() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1, timeout_worker_healthcheck=0.5) as cluster:
            pid = cluster.worker_pids()[0]
            os.kill(pid, signal.SIGSTOP)
            await cluster.wait_event("worker_exited", pid=pid, status=-signal.SIGKILL)
            await cluster.wait_event("worker_ready", count=2)

    run(main())


def test_a_worker_that_blocks_for_less_than_its_deadline_lives(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1, timeout_worker_healthcheck=5) as cluster:
            ws = await connect_to_slot(cluster, 0)
            for _ in range(2):
                await ws.send("block 0.3")
                assert await ws.recv() == "will"
                assert await ws.recv() == "done"
            assert not [event for event in cluster.events if event["event"] == "worker_exited"]
            await ws.close()

    run(main())


def test_a_primary_that_was_stopped_itself_kills_nobody_for_it() -> None:
    """The machine slept, or somebody pressed Ctrl-Z: the beats are there, only nobody has read them."""

    async def main() -> None:
        async with Cluster(SERVED, workers=2, timeout_worker_healthcheck=1) as cluster:
            cluster.signal(signal.SIGSTOP)
            await asyncio.sleep(1.6)
            cluster.signal(signal.SIGCONT)
            await cluster.status()
            await asyncio.sleep(1.1)
            await cluster.status()
            assert not [event for event in cluster.events if event["event"] == "worker_exited"]

    run(main())


def test_a_slow_import_is_not_a_missing_beat(tmp_path: Path) -> None:
    target = write_target(tmp_path, "import time\ntime.sleep(1)\nasync def handler(ws): pass\n")

    async def main() -> None:
        async with Cluster(target, workers=1, app_dir=tmp_path, timeout_worker_healthcheck=0.3) as cluster:
            assert cluster.events[1]["event"] == "worker_ready"

    run(main())


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.sleep(60)\n",
        "import asyncio, wscluster\n@wscluster.lifespan\nasync def life():\n    await asyncio.sleep(60)\n    yield\n",
    ],
    ids=["import", "lifespan"],
)
def test_a_boot_that_hangs_is_ended_by_the_startup_timeout(tmp_path: Path, source: str) -> None:
    target = write_target(tmp_path, source + "async def handler(ws): pass\n")

    async def main() -> None:
        cluster = Cluster(target, workers=1, app_dir=tmp_path, worker_startup_timeout=0.4)
        with pytest.raises(ClusterFailed) as failed:
            async with cluster:
                raise AssertionError("it became ready")
        assert failed.value.exit_code == 3
        assert "worker 1 killed: not ready within 0.4 s" in "\n".join(cluster.output)
        assert [event["status"] for event in cluster.events if event["event"] == "worker_exited"] == [-9] * 3

    run(main())


# A primary that dies


def bus_folders(pid: int) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"wscluster-bus-{pid}-*"))


@pytest.mark.parametrize("how", ["idle", "block 30", "swallow"])
def test_nothing_outlives_a_primary_that_is_killed(how: str) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=2) as cluster:
            ws = await connect_to_slot(cluster, 0)
            # The private server is one of those that must not stay.
            await ws.send("join lobby")
            assert await ws.recv() == "done"
            if how != "idle":
                await ws.send(how)
                assert await ws.recv() == "will"
            family = psutil.Process(cluster.pid).children(recursive=True)
            assert len(family) == 3
            cluster.signal(signal.SIGKILL)
            seconds = await wait_gone(child.pid for child in family)
            assert seconds < 1, f"{seconds:.2f} s"
            assert await close_code(ws) == 1006
            await cluster.wait_exit()
            # Only the next primary can remove the folder of its private server.
            assert bus_folders(cluster.pid)
            remove_stale_folders()
            assert not bus_folders(cluster.pid)

    run(main())


def test_workers_that_are_just_booting_do_not_outlive_their_primary(tmp_path: Path) -> None:
    target = write_target(tmp_path, "import time\ntime.sleep(60)\nasync def handler(ws): pass\n")

    async def main() -> None:
        cluster = Cluster(target, workers=3, app_dir=tmp_path)
        await cluster.start()
        try:
            await cluster.wait_event("bound")
            children: list[psutil.Process] = []
            while len(children) < 3:
                children = psutil.Process(cluster.pid).children()
                await asyncio.sleep(0)
            cluster.signal(signal.SIGKILL)
            await wait_gone(child.pid for child in children)
        finally:
            await cluster.__aexit__(None, None, None)

    run(main())


# Nothing piles up


def test_after_many_crashes_and_connections_the_primary_holds_what_it_held_before() -> None:
    workers, rounds, connections = 7, 3, 200

    async def main() -> None:
        async with Cluster(SERVED, workers=workers) as cluster:
            # No call to the control socket was made yet: one that is just ending would be counted.
            before = kinds(cluster.pid)
            for batch in range(connections // 20):
                clients = [await cluster.connect(source=f"127.1.0.{batch * 20 + n + 1}") for n in range(20)]
                await asyncio.gather(*(ws.close() for ws in clients))
            for number in range(1, rounds + 1):
                for slot in range(workers):
                    ready = await cluster.wait_event("worker_ready", slot=slot, count=number)
                    os.kill(ready["pid"], signal.SIGKILL)
            status = await cluster.wait_status(
                lambda status: (
                    restarted(status) == workers * rounds and {one["state"] for one in status["workers"]} == {"ready"}
                )
            )
            assert status["totals"]["connections"] == 0
            assert status["totals"]["adopted"] == connections
            assert zombies(cluster.pid) == []
            assert len(psutil.Process(cluster.pid).children(recursive=True)) == workers
            await wait_until(lambda: kinds(cluster.pid) == before, f"again open only {before}")

    def kinds(pid: int) -> list[str]:
        # libuv opens a spare descriptor with its first stream.
        return sorted(re.sub(r"\d+", "", what) for what in open_fds(pid).values() if what != "/dev/null")

    run(main())
