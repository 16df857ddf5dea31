"""What the tests of processes stand on: the command line, and waiting for processes to end."""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from wscluster.testing import Cluster

WAIT_SECONDS = 20.0


def cli(
    *arguments: str, folder: Path, env: Mapping[str, str] | None = None, pass_fds: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run ``wscluster ARGUMENTS`` in ``folder``, which also has its control sockets; returns what it said."""
    return subprocess.run(
        [sys.executable, "-m", "wscluster", *arguments],
        cwd=folder,
        env=environment(folder) | dict(env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
        pass_fds=pass_fds,
    )


def environment(folder: Path) -> dict[str, str]:
    """Return an environment without variables of ours, whose control sockets are below ``folder``."""
    runtime = folder / "run"
    runtime.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WSCLUSTER_")}
    for name in ("REDIS_URL", "PORT", "WEB_CONCURRENCY"):
        kept.pop(name, None)
    return kept | {"XDG_RUNTIME_DIR": str(runtime)}


def write_target(folder: Path, source: str) -> str:
    """Write a module whose handler is ``handler``; returns the target."""
    (folder / "app.py").write_text(source)
    return "app:handler"


def in_folder(folder: Path) -> tuple[str, ...]:
    """The command of a cluster whose processes work in ``folder``."""
    return ("env", "-C", str(folder), sys.executable, "-m", "wscluster")


async def wait_gone(pids: Iterable[int], timeout: float = WAIT_SECONDS) -> float:
    """Wait until no process has one of ``pids`` (a zombie counts as gone: init may be slow); returns the seconds."""
    started = time.monotonic()
    left = set(pids)
    while left:
        left = {pid for pid in left if is_alive(pid)}
        assert time.monotonic() - started < timeout, f"still running after {timeout:g} s: {left}"
        await asyncio.sleep(0.005)
    return time.monotonic() - started


def is_alive(pid: int) -> bool:
    """Say whether ``pid`` is a process that has not ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def zombies(pid: int) -> list[int]:
    """Return the children of ``pid`` that have ended and were not reaped."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE:
                found.append(child.pid)
    return found


async def connect_to_slot(cluster: Cluster, slot: int, path: str = "/") -> ClientConnection:
    """Return a client that a worker of ``slot`` serves; the handler must be one that says its slot first."""
    for number in range(1, 250):
        ws = await cluster.connect(path, source=f"127.1.0.{number}")
        if await ws.recv() == str(slot):
            return ws
        await ws.close()
    raise AssertionError(f"no address leads to slot {slot}")


async def close_code(ws: ClientConnection) -> int:
    """Wait for the end of the connection; returns the code that the client saw (1006: no close frame)."""
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                await ws.recv()
    except ConnectionClosed as exc:
        return exc.rcvd.code if exc.rcvd is not None else 1006


def printed(cluster: Cluster) -> list[str]:
    """Return the lines that workers have printed so far, without what says whose they are."""
    return [
        match[1]
        for line in cluster.output
        if (match := re.search(r" stdout  worker \d+ slot \d+ phase \d+ \| (.*)", line))
    ]
