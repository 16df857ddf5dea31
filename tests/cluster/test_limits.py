"""Clusters at the limits of the system: file descriptors, an ordinary user's rights, process 1 of a container."""

import asyncio
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.raw import Raw, addresses_of, ask, handshake
from tests.support import ROOT, cannot_run, open_fds, require_program, run
from wscluster.testing import Cluster

WHO = "tests.cluster.handlers:who"
SERVE = (sys.executable, "-m", "wscluster")


async def leave_fds(pid: int, count: int) -> None:
    """Let a process open ``count`` more file descriptors and not one beyond."""
    used = set(open_fds(pid))
    for _ in range(10):  # not those that it has for a moment
        await asyncio.sleep(0.02)
        used &= set(open_fds(pid))
    limit = max(used) + 1
    while limit - sum(fd < limit for fd in used) < count:
        limit += 1
    assert limit - len(used) == count, f"there are holes in {sorted(used)}: {count} cannot be left"
    set_soft_limit(pid, limit)


def set_soft_limit(pid: int, limit: int | None = None) -> None:
    """Let a process open file descriptors below ``limit`` only; None: as many as it may."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit or hard, hard))


def fd_limit(pid: int) -> list[str]:
    """Return the soft and the hard limit of file descriptors of any user's process."""
    limits = Path(f"/proc/{pid}/limits").read_text()
    return limits.split("Max open files", 1)[1].split()[:2]


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def greeting(raw: Raw) -> dict[str, object] | None:
    """Return what the worker said, or None where the connection was reset."""
    head = await raw.head()
    if not head:
        return None
    assert " 101 " in head, head
    told: dict[str, object] = json.loads(await raw.message())
    return told


@asynccontextmanager
async def clients(port: int, sources: Iterable[str]) -> AsyncIterator[list[Raw]]:
    """One client from each source, each with its handshake under way."""
    raws = [await Raw.connect(port, source, handshake()) for source in sources]
    try:
        yield raws
    finally:
        await asyncio.gather(*(raw.close() for raw in raws))


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


# File descriptors


def test_as_many_descriptors_are_taken_as_the_system_allows() -> None:
    async def main() -> None:
        command = ("prlimit", "--nofile=256:2048", *SERVE)
        async with Cluster(WHO, workers=1, command=command) as cluster:
            for pid in (cluster.pid, *cluster.worker_pids().values()):
                assert fd_limit(pid) == ["2048", "2048"]

    run(main())


def test_a_primary_at_its_fd_limit_resets_what_comes_at_no_cost_and_recovers() -> None:
    async def main() -> None:
        async with Cluster(WHO, workers=2) as cluster:
            pids = cluster.worker_pids()
            await cluster.status()
            await leave_fds(cluster.pid, 50)
            with stopped(*pids.values()):
                sources = [f"127.1.0.{number}" for number in range(1, 101)]
                tried = [asyncio.create_task(Raw.connect(cluster.port, source, handshake())) for source in sources]
                await asyncio.wait(tried)
                raws = [task.result() for task in tried if task.exception() is None]
                # Those that came too late are told so while the workers still hang, some before they knew they were in.
                heads = [asyncio.create_task(raw.head()) for raw in raws]
                await asyncio.wait(heads, timeout=1)
                late = [head for head in heads if head.done()]
                assert {head.result() for head in late} <= {""}
                reset = len(tried) - len(raws) + len(late)
                assert 40 <= reset <= 60
                # A flood for a second: every one is reset, and it costs next to nothing.
                cpu, began = cpu_seconds(cluster.pid), time.monotonic()
                floods = 0
                while time.monotonic() - began < 1:
                    assert await ask(cluster.port, handshake()) == ("", b"")
                    floods += 1
                assert floods >= 5
                used = (cpu_seconds(cluster.pid) - cpu) / (time.monotonic() - began)
                assert used < 0.05, f"{used:.0%} of a core"
            served = await asyncio.gather(*(head for head in heads if head not in late))
            assert all(" 101 " in head for head in served)
            for raw in raws:
                await raw.close()
            # There is room again.
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
            async with cluster.connect() as ws:
                await ws.recv()
            totals = (await cluster.status())["totals"]
            assert totals["accepted"] == 101 + floods
            assert totals["rejected"] == reset + floods
            assert totals["adopted"] == totals["accepted"] - totals["rejected"]
            assert cluster.worker_pids() == pids
            assert len([line for line in cluster.output if "cannot accept" in line]) == 1

    run(main())


def test_a_worker_at_its_fd_limit_refuses_and_others_serve() -> None:
    async def main() -> None:
        async with Cluster(WHO, workers=2) as cluster:
            pids = cluster.worker_pids()
            await leave_fds(pids[0], 20)
            (source, *_) = addresses_of(0, 2)
            # A first packet of one, then one of more than there is room for.
            os.kill(pids[0], signal.SIGSTOP)
            async with clients(cluster.port, [source] * 40) as raws:
                await cluster.wait_status(lambda status: status["totals"]["accepted"] == 40)
                os.kill(pids[0], signal.SIGCONT)
                told = await asyncio.gather(*(greeting(raw) for raw in raws))
                served = Counter(one["pid"] if one else None for one in told)
                assert set(served) == set(pids.values())
                assert 15 <= served[pids[0]] <= 20
                assert cluster.worker_pids() == pids
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
            # Its clients are its own again.
            async with clients(cluster.port, [source]) as (raw,):
                one = await greeting(raw)
                assert one is not None
                assert one["pid"] == pids[0]
            totals = (await cluster.status())["totals"]
            assert (totals["accepted"], totals["adopted"], totals["rejected"]) == (41, 41, 0)
            assert totals["placed_again"] == served[pids[1]]
            assert "no file descriptor left" in "".join(cluster.output)

    run(main())


def test_when_every_worker_is_at_its_fd_limit_clients_are_told_503() -> None:
    async def main() -> None:
        async with Cluster(WHO, workers=2) as cluster:
            for pid in cluster.worker_pids().values():
                await leave_fds(pid, 20)
            async with clients(cluster.port, ["127.0.0.1"] * 60) as raws:
                heads = Counter([(await raw.head())[:12] for raw in raws])
            assert set(heads) == {"HTTP/1.1 101", "HTTP/1.1 503"}
            assert 30 <= heads["HTTP/1.1 101"] <= 40

    run(main())


def test_a_worker_at_its_fd_limit_goes_on_beating() -> None:
    async def main() -> None:
        async with Cluster(WHO, workers=1, timeout_worker_healthcheck=1.5) as cluster:
            pids = cluster.worker_pids()
            await leave_fds(pids[0], 20)
            async with clients(cluster.port, ["127.0.0.1"] * 25) as raws:
                heads = Counter([(await raw.head())[:12] for raw in raws])
                assert heads["HTTP/1.1 503"] >= 5
                ended = asyncio.create_task(cluster.wait_event("worker_exited"))
                done, _ = await asyncio.wait([ended], timeout=3)
                ended.cancel()
            assert not done
            assert cluster.worker_pids() == pids

    run(main())


# An ordinary user


def as_nobody(stage: Path) -> tuple[str, ...]:
    """Return a command that runs this Python as nobody with 1,024 file descriptors."""
    require_program("setpriv")
    require_program("prlimit")
    limit = ("prlimit", "--nofile=1024:1024", sys.executable)
    command = (*NOBODY, *limit) if os.getuid() == 0 else limit
    home = Path(sys.base_prefix)
    closed = next((folder for folder in reversed(home.parents) if not folder.stat().st_mode & 1), None)
    if os.getuid() == 0 and closed is not None:
        # The interpreter is below /root: in a mount namespace of its own, nobody finds there what it may see.
        seen = stage / home.relative_to(closed)
        seen.mkdir(parents=True)
        script = f'mount --bind {home} {seen} && mount --rbind {stage} {closed} && exec "$@"'
        command = ("unshare", "--mount", "sh", "-c", script, "sh", *command)
    probe = subprocess.run([*command, "-c", "import wscluster.broker"], cwd=ROOT, capture_output=True, check=False)
    if probe.returncode:
        cannot_run(f"nobody cannot run {sys.executable} here: {probe.stderr.decode()}")
    return command


NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")


def folder_for_nobody() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="wscluster-test-"))
    folder.chmod(0o755)
    (folder / "stage").mkdir()
    (folder / "run").mkdir()
    if os.getuid() == 0:
        shutil.chown(folder / "run", "nobody", "nogroup")
    return folder


@asynccontextmanager
async def cluster_of_nobody(target: str = WHO, **options: Any) -> AsyncIterator[Cluster]:
    folder = folder_for_nobody()
    try:
        command = (*as_nobody(folder / "stage"), "-m", "wscluster")
        own = folder / "run"
        options = {"workers": 4, "control_socket": str(own / "c.sock"), **options}
        async with Cluster(target, command=command, env={"TMPDIR": str(own)}, **options) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder)


def test_600_connects_at_once_are_no_outage_for_nobody_with_1024_fds() -> None:
    async def main() -> None:
        async with cluster_of_nobody() as cluster:
            pids = cluster.worker_pids()
            assert psutil.Process(cluster.pid).uids().real == (65534 if os.getuid() == 0 else os.getuid())
            for pid in (cluster.pid, *pids.values()):
                assert fd_limit(pid) == ["1024", "1024"]
            sources = [f"127.1.0.{number % 200 + 1}" for number in range(600)]
            raws = await asyncio.gather(*(Raw.connect(cluster.port, source, handshake()) for source in sources))
            told = await asyncio.gather(*(greeting(raw) for raw in raws))
            assert {one["pid"] for one in told if one} == set(pids.values())
            assert None not in told
            status = await cluster.wait_status(lambda status: status["totals"]["connections"] == 600)
            assert (status["totals"]["adopted"], status["totals"]["rejected"]) == (600, 0)
            await asyncio.gather(*(raw.close() for raw in raws))
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
            assert cluster.worker_pids() == pids

    run(main())


# Process 1

UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")

LEAVES_AN_ORPHAN = """
import subprocess, sys
async def orphan(ws):
    async for _ in ws:
        # The shell is gone before its child is: that one belongs to process 1 then.
        subprocess.run(["sh", "-c", "sleep 0.05 & exit 0"], check=True, stdin=subprocess.DEVNULL)
        await ws.send("done")
"""


def as_process_1(folder: Path) -> Cluster:
    require_unshare()
    (folder / "orphans.py").write_text(LEAVES_AN_ORPHAN)
    return Cluster("orphans:orphan", workers=2, app_dir=folder, command=(*UNSHARE, *SERVE))


def require_unshare() -> None:
    require_program("unshare")
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        cannot_run("unshare --pid is not permitted here: it needs root, and in a container --privileged")


def primary_of(cluster: Cluster) -> psutil.Process:
    """Return the primary as this pid namespace sees it: the child of ``unshare``."""
    (primary,) = psutil.Process(cluster.pid).children()
    return primary


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_as_process_1_a_signal_stops_it_with_0(tmp_path: Path, number: signal.Signals) -> None:
    async def main() -> None:
        async with as_process_1(tmp_path) as cluster:
            primary = primary_of(cluster)
            assert (await cluster.status())["primary"]["pid"] == 1
            async with cluster.connect() as ws:
                primary.send_signal(number)
                await ws.wait_closed()
                assert ws.close_code == 1001
            assert await cluster.wait_exit() == 0

    run(main())


def test_as_process_1_it_replaces_a_killed_worker_and_leaves_no_zombie(tmp_path: Path) -> None:
    async def main() -> None:
        async with as_process_1(tmp_path) as cluster:
            primary = primary_of(cluster)
            first = primary.children()
            first[0].kill()
            await cluster.wait_event("worker_ready", count=3)
            zombies = [child for child in primary.children() if child.status() == psutil.STATUS_ZOMBIE]
            assert zombies == []
            assert len(primary.children()) == 2
            primary.terminate()
            assert await cluster.wait_exit() == 0

    run(main())


def test_as_process_1_it_reaps_orphans(tmp_path: Path) -> None:
    async def main() -> None:
        async with as_process_1(tmp_path) as cluster:
            primary = primary_of(cluster)
            try:
                async with cluster.connect() as ws:
                    for _ in range(3):
                        await ws.send("leave one behind")
                        await ws.recv()
                async with asyncio.timeout(3):
                    while len(primary.children()) != 2:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
            finally:
                primary.terminate()
                assert await cluster.wait_exit() == 0

    run(main())
