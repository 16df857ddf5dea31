"""USR2: whatever goes wrong, the running primary stays, or nothing does."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.cluster.process_support import cli, close_code, connect_to_slot, wait_gone
from tests.cluster.test_upgrade import SERVED, copy_release, fds_at_rest, has_fds, told, upgrade
from tests.support import ROOT, run
from wscluster.gateway.redis_server import remove_stale_folders
from wscluster.sources import STATE_VARIABLE
from wscluster.testing import Cluster


@pytest.mark.parametrize("when", ["before the trial", "within the trial"])
def test_a_python_that_cannot_be_executed_any_more_leaves_the_running_one(tmp_path: Path, when: str) -> None:
    async def main() -> None:
        link = tmp_path / "python"
        link.symlink_to(sys.executable)
        code = f"import sys; sys.path[:0] = {sys.path!r}; from wscluster.cli import main; sys.exit(main())"
        env = {"PYTHONPATH": ":".join(filter(None, sys.path))}
        async with Cluster(SERVED, workers=1, command=(str(link), "-c", code), env=env) as cluster:
            ws = await connect_to_slot(cluster, 0)
            before = await fds_at_rest(cluster)
            if when == "before the trial":
                link.unlink()
            cluster.signal(signal.SIGUSR2)
            if when == "within the trial":
                while not is_trial_executed(cluster.pid):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                link.unlink()
            event = await cluster.wait_event("upgrade_failed")
            assert "No such file or directory" in event["reason"]
            assert ("cannot be tried" in event["reason"]) is (when == "before the trial")
            await has_fds(cluster.pid, before)
            assert await told(ws, "phase") == "1"
            # Signals, control socket and the next upgrade are as ever.
            cluster.signal(signal.SIGUSR1)
            await cluster.wait_output("no file to open again")
            await cluster.status()
            link.symlink_to(sys.executable)
            await upgrade(cluster)
            assert await told(ws, "phase") == "1"
            await ws.close()

    run(main())


def is_trial_executed(pid: int) -> bool:
    """Say whether a child of the primary has the environment of a trial."""
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if STATE_VARIABLE in child.environ():
                return True
    return False


def test_new_code_that_hangs_is_given_up(tmp_path: Path) -> None:
    async def main() -> None:
        options = copy_release(tmp_path)
        code = tmp_path / "wscluster" / "gateway" / "upgrade.py"
        code.write_text(code.read_text().replace("TRIAL_SECONDS = 30.0", "TRIAL_SECONDS = 1.0"))
        async with Cluster(SERVED, **options) as cluster:
            ws = await connect_to_slot(cluster, 0)
            children = {child.pid for child in psutil.Process(cluster.pid).children()}
            init = tmp_path / "wscluster" / "cli.py"
            init.write_text("import time\ntime.sleep(600)\n")
            cluster.signal(signal.SIGUSR2)
            event = await cluster.wait_event("upgrade_failed")
            assert event["reason"] == "the new code has not read the state within 1 s"
            assert {child.pid for child in psutil.Process(cluster.pid).children()} == children
            assert await told(ws, "phase") == "1"
            await ws.close()

    run(main())


def test_a_variable_that_somebody_set_is_refused(tmp_path: Path) -> None:
    for text in ("go:0", "try:99", "go:x", "nonsense"):
        env = {"PYTHONPATH": str(ROOT), STATE_VARIABLE: text}
        done = cli("serve", SERVED, "--port", "0", folder=tmp_path, env=env)
        assert done.returncode == 3, done.stderr
        assert done.stderr.startswith("wscluster: cannot go on with the state of the running primary: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
def test_a_primary_that_is_killed_in_the_middle_leaves_no_process_behind(seconds: float) -> None:
    async def main() -> None:
        cluster = Cluster(SERVED, workers=2)
        await cluster.__aenter__()
        ws = await connect_to_slot(cluster, 0)
        assert await told(ws, "join lobby") == "done"
        children = {child.pid for child in psutil.Process(cluster.pid).children()}
        cluster.signal(signal.SIGUSR2)
        await asyncio.sleep(seconds)  # somewhere in the trial, the execve or the time after it
        children |= {child.pid for child in psutil.Process(cluster.pid).children()}
        os.kill(cluster.pid, signal.SIGKILL)
        assert await close_code(ws) == 1006
        await cluster.wait_exit()
        await wait_gone(children)
        await cluster.__aexit__(None, None, None)
        remove_stale_folders()

    run(main())
