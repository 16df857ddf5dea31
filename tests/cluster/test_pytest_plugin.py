"""The pytest fixture: in runs of pytest of its own, as a program that has wscluster installed would have them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import ROOT

LOUD = """
import sys, wscluster

print("imported by", sys.argv[0], flush=True)

async def handler(ws):
    await ws.join("room")  # starts the private Valkey
    ws.logger.info("said %s", await ws.recv())
    await ws.send("heard")

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
"""
TALK = """
async def talk(cluster):
    async with cluster.connect() as ws:
        await ws.send("hello")
        assert await ws.recv() == "heard"
"""
LEFT = f"""
import asyncio, json, pathlib, signal
{TALK}
async def begin(cluster):
    await cluster.start()
    await cluster.wait_event("ready")
    await talk(cluster)
    folder = pathlib.Path(cluster.control_socket).parent
    pathlib.Path("left.json").write_text(json.dumps([cluster.pid, *cluster.worker_pids().values(), str(folder)]))

def test_left_by_a_loop_that_is_closed(wscluster_cluster):
    asyncio.run(begin(wscluster_cluster("loud:handler", workers=2)))
"""


def run_pytest(folder: Path, source: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on ``source`` in ``folder``, where every warning is an error."""
    (folder / "loud.py").write_text(LOUD)
    (folder / "test_it.py").write_text(source)
    plugins = ("wscluster.pytest_plugin", "anyio.pytest_plugin")
    return subprocess.run(
        [
            sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider",
            *(word for plugin in plugins for word in ("-p", plugin)), *flags,
        ],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        # Which plugins are installed beside ours is a matter of the machine.
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_it_serves_plain_tests_and_those_of_an_asyncio_plugin(tmp_path: Path) -> None:
    source = f"""
import asyncio, pytest, urllib.request
{TALK}
@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.fixture
async def cluster(wscluster_cluster):
    async with wscluster_cluster("loud:handler", workers=2) as cluster:
        yield cluster

@pytest.mark.anyio
async def test_of_a_plugin(cluster):
    await talk(cluster)
    assert len(cluster.worker_pids()) == 2

def test_that_is_plain(wscluster_cluster):
    async def main():
        async with wscluster_cluster("loud:handler", workers=1) as one, wscluster_cluster("loud:app", workers=1) as two:
            await talk(one)
            assert await asyncio.to_thread(lambda: urllib.request.urlopen(two.http_url).read()) == b"ok"
            assert one.ports == [one.port]
    asyncio.run(main())
"""
    done = run_pytest(tmp_path, source, "-rA")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"2 passed in ", done.stdout)
    assert "Output of wscluster" not in done.stdout, "only a test that has failed shows it"


def test_the_report_of_a_failed_test_shows_what_its_clusters_have_printed(tmp_path: Path) -> None:
    source = f"""
import asyncio
{TALK}
def test_that_fails(wscluster_cluster):
    async def main():
        async with wscluster_cluster("loud:handler", workers=1) as cluster:
            await talk(cluster)
        assert cluster.process.returncode == 7
    asyncio.run(main())

def test_whose_target_is_missing(wscluster_cluster):
    async def main():
        async with wscluster_cluster("loud:missing", workers=1):
            raise AssertionError
    asyncio.run(main())
"""
    done = run_pytest(tmp_path, source)
    assert done.returncode == 1
    first, second = re.findall(r"^-+ Output of wscluster serve (.*?) -+\n(.*?)^[-_=]{9}", done.stdout, re.M | re.S)
    assert first[0] == "loud:handler"
    assert "said hello" in first[1]
    assert "stopped" in first[1], "all of it, down to the stop that the test's own failure has brought"
    assert second[0] == "loud:missing"
    assert "missing" in second[1]
    assert re.search(r"2 failed in ", done.stdout)


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_what_a_test_leaves_running_is_ended_and_is_its_error(tmp_path: Path, stopped: bool) -> None:
    source = LEFT
    if stopped:  # a primary that nothing but SIGKILL ends: its workers see that and end by themselves
        source = source.replace("    await talk(cluster)\n    folder", "    cluster.signal(signal.SIGSTOP)\n    folder")
    done = run_pytest(tmp_path, source)
    assert done.returncode == 1
    assert re.search(r"1 passed, 1 error in ", done.stdout), done.stdout
    assert "the test has left this running, and it was killed: wscluster serve loud:handler" in done.stdout
    assert "imported by" in done.stdout, "its output is in the report"
    *pids, folder = json.loads((tmp_path / "left.json").read_text())
    assert len(pids) == 3
    assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
    assert not Path(folder).exists()


def test_a_loop_that_still_runs_after_its_test_goes_on(tmp_path: Path) -> None:
    source = f"""
import asyncio, pytest
{TALK}
@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"

@pytest.fixture(scope="module")
async def shared():  # keeps the loop open from test to test
    yield

@pytest.mark.anyio
async def test_that_leaves_a_cluster(shared, wscluster_cluster):
    cluster = wscluster_cluster("loud:handler", workers=1)
    await cluster.start()
    await cluster.wait_event("ready")

@pytest.mark.anyio
async def test_after_it(shared, wscluster_cluster):
    async with wscluster_cluster("loud:handler", workers=1) as cluster:
        await talk(cluster)
"""
    done = run_pytest(tmp_path, source)
    assert re.search(r"2 passed, 1 error in ", done.stdout), done.stdout


def test_a_run_that_never_asks_for_it_loads_nothing_else(tmp_path: Path) -> None:
    source = """
import sys

def test_what_is_loaded():
    ours = {name for name in sys.modules if name.partition(".")[0] in ("wscluster", "websockets", "uvloop", "redis")}
    assert ours == {"wscluster", "wscluster.pytest_plugin"}
"""
    done = run_pytest(tmp_path, source)
    assert done.returncode == 0, done.stdout


def test_the_examples_of_the_document_pass(tmp_path: Path) -> None:
    text = (ROOT / "docs/testing.md").read_text()
    files = re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", text, flags=re.DOTALL)
    assert {"test_handlers.py", "test_main.py", "conftest.py"} <= {name for name, _ in files}
    for name, source in files:
        (tmp_path / name).write_text(source)
    done = run_pytest(tmp_path, "", "-W", "default")
    assert done.returncode == 0, done.stdout
    assert re.search(rf"{sum(name.startswith('test_') for name, _ in files)} passed in ", done.stdout), done.stdout
