"""`--on-event`: a function hears what happens, in a process of its own."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.process_support import cli, wait_gone
from tests.support import run
from wscluster.testing import Cluster

SERVED = "tests.cluster.obeying:obey"
WRITES = """
import asyncio, json, os, time

def note(event):
    with open(os.environ["NOTED"], "a") as file:
        file.write(json.dumps({"pid": os.getpid(), **event}) + "\\n")
    if event["event"] == "worker_ready":
        raise RuntimeError("as it was told")

async def waits(event):
    await asyncio.sleep(0)
    note(event)

def hangs(event):
    note(event)
    time.sleep(600)
"""


def noted(folder: Path) -> list[dict[str, Any]]:
    path = folder / "noted"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def served(folder: Path, function: str) -> Cluster:
    (folder / "listening.py").write_text(WRITES)
    env = {"NOTED": str(folder / "noted"), "PYTHONPATH": f"{folder}:{os.getcwd()}"}
    return Cluster(SERVED, workers=2, on_event=f"listening:{function}", env=env)


@pytest.mark.parametrize("function", ["note", "waits"])
def test_each_event_comes_once_and_in_order_whatever_the_function_does(tmp_path: Path, function: str) -> None:
    async def main() -> None:
        async with served(tmp_path, function) as cluster:
            os.kill(cluster.worker_pids()[1], signal.SIGKILL)
            await cluster.wait_event("worker_exited", slot=1)
        heard = noted(tmp_path)
        assert [one["event"] for one in heard] == [one["event"] for one in cluster.events]
        assert any("stderr  on-event | RuntimeError: as it was told" in line for line in cluster.output)

    run(main())


def test_a_function_that_hangs_holds_up_nobody_and_is_killed_at_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, "hangs") as cluster:
            async with cluster.connect() as ws:
                await ws.recv()
            children = [child.pid for child in psutil.Process(cluster.pid).children()]
            begin = time.monotonic()
        assert time.monotonic() - begin < 10
        assert any("did not return" in line for line in cluster.output)
        await wait_gone(children)

    run(main())


def test_its_process_is_started_again_when_it_dies(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, "note") as cluster:
            workers = set(cluster.worker_pids().values())
            (found,) = (child.pid for child in psutil.Process(cluster.pid).children() if child.pid not in workers)
            os.kill(found, signal.SIGKILL)
            await cluster.wait_output("starting it again in")
            while len(psutil.Process(cluster.pid).children()) < 3:  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(0.01)
            cluster.signal(signal.SIGTTIN)
            await cluster.wait_event("scaled", slots=3)
        assert "scaled" in [one["event"] for one in noted(tmp_path)]

    run(main())


@pytest.mark.parametrize(
    ("function", "why"),
    [
        ("nowhere:note", "--on-event nowhere:note: no module named 'nowhere'"),
        ("listening:nothing", "--on-event listening:nothing: module 'listening' has no attribute 'nothing'"),
        ("listening:os", "--on-event listening:os: 'listening:os' is no function, but of the type 'module'"),
        ("broken:note", "--on-event broken:note: "),
    ],
)
def test_one_that_cannot_be_imported_ends_the_start_with_4(tmp_path: Path, function: str, why: str) -> None:
    (tmp_path / "listening.py").write_text(WRITES)
    (tmp_path / "broken.py").write_text("raise RuntimeError('no')\n")
    done = cli(
        "serve", SERVED, "--port", "0", "--app-dir", str(tmp_path), "--on-event", function, folder=tmp_path,
        env={"PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.returncode == 4
    assert f"wscluster: {why}" in done.stderr
    assert ("RuntimeError: no" in done.stderr) == (function == "broken:note")


@pytest.mark.parametrize("text", ["nope", ":note", "listening:", "a b:c"])
def test_what_names_no_function_is_a_usage_error(tmp_path: Path, text: str) -> None:
    done = cli("serve", SERVED, "--on-event", text, folder=tmp_path)
    assert (done.returncode, done.stderr) == (2, f"wscluster: --on-event {text!r}: module:function is wanted\n")


def test_what_it_prints_is_in_the_log_and_in_its_file_also_after_an_upgrade(tmp_path: Path) -> None:
    says = "def note(event):\n    print('heard', event['event'])\n"
    (tmp_path / "listening.py").write_text(says)
    env = {"PYTHONPATH": f"{tmp_path}:{os.getcwd()}"}
    path = tmp_path / "log"

    async def logged(text: str) -> str:
        async with asyncio.timeout(10):
            while not (found := [line for line in path.read_text().splitlines() if text in line]):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return found[0]

    async def main() -> None:
        options: dict[str, Any] = {"on_event": "listening:note", "log_file": str(path)}
        async with Cluster(SERVED, workers=1, env=env, **options) as cluster:
            assert "stdout  on-event | heard ready" in await logged("heard ready")
            cluster.signal(signal.SIGUSR2)
            await cluster.wait_event("upgraded")
            await logged("heard upgraded")
            where = ("--control-socket", str(cluster.control_socket))
            shown = await asyncio.to_thread(cli, "logs", *where, "--json", folder=tmp_path)
            lines = [json.loads(line) for line in shown.stdout.splitlines()]
            mine = [line for line in lines if line["role"] == "on-event"]
            assert [line["line"].rpartition("| ")[2] for line in mine][-1] == "heard upgraded"
            assert {(line["worker"], line["slot"], line["stream"]) for line in mine} == {(None, None, "stdout")}
            assert not [line for line in cluster.output if "heard" in line]

    run(main())
