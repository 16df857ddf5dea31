"""`wscluster reload` and HUP: the outcome, whatever the release and whatever happens meanwhile."""

import asyncio
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.process_support import cli, close_code, connect_to_slot, in_folder, wait_gone
from tests.cluster.test_reload import APP, BROKEN, HANDLER, PROGRAM, save, words, write
from tests.support import run
from wscluster.testing import Cluster

HANGS = "import time\ntime.sleep(60)\n"


def served(folder: Path, **options: Any) -> Cluster:
    settings = {"workers": 2, "graceful_timeout": 2.0, **options}
    return Cluster("app:handler", command=in_folder(folder), **settings)


async def reload(cluster: Cluster, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(cli, "reload", "--control-socket", str(cluster.control_socket), *more, folder=folder)


async def outcome(cluster: Cluster, folder: Path) -> dict[str, Any]:
    done = await reload(cluster, folder, "--json")
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == bool(found["reason"])
    return found


@pytest.mark.parametrize("kind", ["handler", "app", "program"])
def test_every_slot_has_the_new_release_when_the_verb_returns(tmp_path: Path, kind: str) -> None:
    source = {"handler": HANDLER, "app": APP, "program": PROGRAM}[kind]
    save(tmp_path / "app.py", source.format(word="first"))
    command: Any = {"workers": 2, "graceful_timeout": 2.0}
    made = Cluster.run("app.py", cwd=tmp_path, **command) if kind == "program" else served(tmp_path)

    async def word(cluster: Cluster) -> str:
        async with cluster.connect() as ws:
            said = [str(await ws.recv())]
            return said[0] if kind != "handler" else str(await ws.recv())

    async def main() -> None:
        async with made as cluster:
            assert await word(cluster) == "first"
            before = cluster.worker_pids()
            save(tmp_path / "app.py", source.format(word="after"))
            done = await reload(cluster, tmp_path)
            assert (done.returncode, done.stdout) == (0, "reloaded, phase 2\n"), done.stderr
            assert done.stderr == "1 of 2 slots reloaded\n2 of 2 slots reloaded\n"
            assert await word(cluster) == "after"
            await wait_gone(before.values())

    run(main())


def test_hup_reloads_and_open_connections_are_closed_with_1012(tmp_path: Path) -> None:
    write(tmp_path, "first")

    async def main() -> None:
        async with served(tmp_path) as cluster:
            old = [await connect_to_slot(cluster, slot) for slot in (0, 1)]
            for ws in old:
                await ws.recv()
            write(tmp_path, "after")
            cluster.signal(signal.SIGHUP)
            await cluster.wait_event("reloaded", phase=2)
            assert [await close_code(ws) for ws in old] == [1012, 1012]
            assert await words(cluster) == ["after", "after"]

    run(main())


def test_a_broken_release_is_refused_with_its_traceback_and_the_workers_stay(tmp_path: Path) -> None:
    write(tmp_path, "first")

    async def main() -> None:
        async with served(tmp_path) as cluster, cluster.connect() as ws:
            before = cluster.worker_pids()
            save(tmp_path / "app.py", BROKEN)
            done = await reload(cluster, tmp_path)
            assert (done.returncode, done.stdout) == (1, "")
            lines = done.stderr.splitlines()
            assert lines[0].startswith('  File "')
            assert "SyntaxError: '(' was never closed" in lines
            assert lines[-1].startswith(
                "wscluster: the reload has failed, every worker serves on: worker 3 of slot 0: "
            )
            await cluster.wait_event("reload_failed", phase=2)
            found = await outcome(cluster, tmp_path)
            assert (found["phase"], found["switched"]) == (3, [])
            assert "SyntaxError" in found["traceback"]
            assert cluster.worker_pids() == before
            await ws.recv()
            await ws.send("still here")
            await ws.recv()
            assert await ws.recv() == "still here"
            write(tmp_path, "mended")
            assert (await outcome(cluster, tmp_path))["reason"] == ""
            assert await words(cluster) == ["mended", "mended"]

    run(main())


def test_a_release_that_is_not_ready_in_time_is_killed(tmp_path: Path) -> None:
    write(tmp_path, "first")

    async def main() -> None:
        async with served(tmp_path, worker_startup_timeout=1) as cluster:
            save(tmp_path / "app.py", HANGS)
            found = await outcome(cluster, tmp_path)
            assert found["reason"] == "worker 3 of slot 0: not ready within 1 s"
            assert await words(cluster) == ["first", "first"]

    run(main())


def test_two_reloads_at_once_are_two_and_each_caller_hears_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, "first")

    async def main() -> None:
        async with served(tmp_path) as cluster:
            found = await asyncio.gather(*(outcome(cluster, tmp_path) for _ in range(3)))
            phases = sorted(one["phase"] for one in found)
            assert not [one["reason"] for one in found if one["reason"]]
            assert phases[0] == 2
            assert phases[-1] in (3, 4)
            status = await cluster.status()
            assert status["primary"]["phase"] == phases[-1]

    run(main())


def test_a_stop_during_a_reload_is_heard_at_once_and_the_caller_is_told(tmp_path: Path) -> None:
    write(tmp_path, "first")

    async def main() -> None:
        async with served(tmp_path) as cluster:
            save(tmp_path / "app.py", HANGS)
            asking = asyncio.create_task(reload(cluster, tmp_path))
            await cluster.wait_output("reloading, phase 2")
            cluster.signal(signal.SIGTERM)
            assert await cluster.wait_exit() == 0
            done = await asking
            assert done.returncode == 1
            assert "everything has ended meanwhile" in done.stderr

    run(main())


# The configuration


def test_the_configuration_is_read_again_and_what_cannot_change_is_said(tmp_path: Path) -> None:
    write(tmp_path, "first")
    file = tmp_path / "wscluster.toml"
    file.write_text('ws-max-size = 1000\nbacklog = 100\nenv-file = "app.env"\n')
    (tmp_path / "app.env").write_text("WORD=one\nGONE=yes\n")
    says = "import os\n\nasync def handler(ws):\n    await ws.send(f\"{os.getenv('WORD')} {os.getenv('GONE')}\")\n"
    says += "    async for _ in ws:\n        pass\n"
    save(tmp_path / "app.py", says)

    async def main() -> None:
        async with served(tmp_path, workers=1) as cluster:
            async with cluster.connect() as ws:
                assert await ws.recv() == "one yes"
                await ws.send("x" * 2000)
                assert await close_code(ws) == 1009
            file.write_text('ws-max-size = 3000\nbacklog = 200\nenv-file = "app.env"\nlog-level = "debug"\n')
            (tmp_path / "app.env").write_text("WORD=two\n")
            found = await outcome(cluster, tmp_path)
            assert (found["reason"], found["kept"]) == ("", ["--backlog 100 stays, 200 needs a restart"])
            async with cluster.connect() as ws:
                assert await ws.recv() == "two None"
                await ws.send("x" * 2000)
                await ws.send("x" * 4000)
                assert await close_code(ws) == 1009
            assert await cluster.wait_output("DEBUG")

    run(main())


def test_another_number_of_workers_in_the_configuration_is_had_after_the_reload(tmp_path: Path) -> None:
    write(tmp_path, "first")
    file = tmp_path / "wscluster.toml"
    file.write_text("workers = 1\n")

    async def main() -> None:
        async with served(tmp_path, workers=None) as cluster:
            assert await words(cluster, slots=(0,)) == ["first"]
            write(tmp_path, "second", before="raise RuntimeError('broken')\n")
            file.write_text("workers = 3\n")
            assert (await outcome(cluster, tmp_path))["reason"]
            assert len((await cluster.status())["workers"]) == 1, "of a release that was refused nothing stays"
            write(tmp_path, "second")
            assert (await outcome(cluster, tmp_path))["reason"] == ""
            await cluster.wait_event("scaled", slots=3)
            await cluster.wait_status(lambda status: [one["state"] for one in status["workers"]] == ["ready"] * 3)
            assert await words(cluster, slots=(0, 1, 2)) == ["second"] * 3
            # What was asked of the running cluster stays, until the configuration says something else.
            done = await asyncio.to_thread(
                cli, "scale", "--control-socket", str(cluster.control_socket), "2", folder=tmp_path
            )
            assert done.returncode == 0, done.stderr
            assert (await outcome(cluster, tmp_path))["reason"] == ""
            assert len((await cluster.status())["workers"]) == 2
            file.write_text("workers = 1\n")
            assert (await outcome(cluster, tmp_path))["reason"] == ""
            await cluster.wait_event("scaled", slots=1)
            assert await words(cluster, slots=(0,)) == ["second"]

    run(main())


def test_a_configuration_that_makes_no_sense_any_more_ends_the_reload_with_its_problems(tmp_path: Path) -> None:
    write(tmp_path, "first")
    file = tmp_path / "wscluster.toml"
    file.write_text("ws-max-size = 1000\n")

    async def main() -> None:
        async with served(tmp_path, workers=1) as cluster:
            file.write_text('ws-max-size = "huge"\nnonsense = 1\n')
            found = await outcome(cluster, tmp_path)
            assert "wscluster.toml:1" in found["reason"]
            assert "nonsense" in found["reason"]
            await cluster.wait_event("reload_failed")
            assert await words(cluster, slots=(0,)) == ["first"]

    run(main())


def test_a_configuration_that_no_worker_can_boot_with_does_not_stay(tmp_path: Path) -> None:
    write(tmp_path, "first")
    file = tmp_path / "wscluster.toml"
    file.write_text("")

    async def main() -> None:
        async with served(tmp_path, workers=1) as cluster:
            file.write_text('process-request = "app:nothing"\n')
            found = await outcome(cluster, tmp_path)
            assert "nothing" in found["reason"]
            killed = cluster.worker_pids()[0]
            os.kill(killed, signal.SIGKILL)
            await cluster.wait_event("worker_exited", pid=killed)
            await cluster.wait_status(lambda status: status["workers"][0]["state"] == "ready")
            assert await words(cluster, slots=(0,)) == ["first"]

    run(main())
