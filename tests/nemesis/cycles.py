"""``python -m tests.nemesis.cycles --cycles 100``: what clusters leave that start and end, half by kill -9.

Each cluster uses rooms, so that it has a private Valkey, and its control socket is in the default folder; a client is
connected when it ends, and every other primary is then in the middle of an upgrade, or has just been through one.
Looked for are processes that outlive it, zombies, Unix sockets, and files in its temporary folder and in the folder of
control sockets.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil

from wscluster import Connection
from wscluster.testing import Cluster

TARGET = "tests.nemesis.cycles:join"
END_SECONDS = 10.0
MARK = "WSCLUSTER_CYCLE"


async def join(ws: Connection) -> None:
    """The handler."""
    await ws.join("lobby")
    await ws.send("joined")
    async for message in ws:
        await ws.publish("lobby", message)


def marked(mark: str) -> list[psutil.Process]:
    """Return the living processes that have ``mark`` in their environment, and zombies among our own descendants."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    own = psutil.Process().children(recursive=True)
    return found + [process for process in own if process.is_running() and process.status() == psutil.STATUS_ZOMBIE]


async def wait_none(mark: str) -> list[str]:
    """Wait until no marked process is left; returns those that do not end."""
    deadline = time.monotonic() + END_SECONDS
    while left := marked(mark):
        if time.monotonic() > deadline:
            return [f"process {process.pid} ({process.status()}): {' '.join(process.cmdline())}" for process in left]
        await asyncio.sleep(0.02)
    return []


async def cycle(folder: Path, mark: str, *, kill: bool, early: bool, upgrade: float | None = None) -> list[str]:
    """Start one cluster, use it, end it; returns what is left of its processes, and what it did wrong.

    Args:
        upgrade: So many seconds before its end it is asked to upgrade.
    """
    env = {MARK: mark, "TMPDIR": str(folder / "tmp"), "XDG_RUNTIME_DIR": str(folder / "run")}
    cluster = Cluster(TARGET, workers=2, env=env, log_level="error", control_socket=None)
    await cluster.start()
    try:
        if early:
            await asyncio.sleep(random.random() * 0.5)
        else:
            await cluster.wait_event("ready")
            async with cluster.connect() as ws:
                assert await ws.recv() == "joined"
                if upgrade is not None:
                    cluster.signal(signal.SIGUSR2)
                    await asyncio.sleep(upgrade)
                zombies = [child.pid for child in psutil.Process(cluster.pid).children() if child.status() == "zombie"]
                await _end(cluster, kill)
                return [f"zombies while it ran: {zombies}"] * bool(zombies) + await wait_none(mark)
        await _end(cluster, kill)
        return await wait_none(mark)
    finally:
        cluster.kill()


async def _end(cluster: Cluster, kill: bool) -> None:
    os.kill(cluster.pid, signal.SIGKILL if kill else signal.SIGTERM)
    await cluster.wait_exit()


def left_in(folder: Path) -> list[str]:
    """Return the files, folders and sockets that clusters have left."""
    kept = {folder / "tmp", folder / "run", folder / "run" / "wscluster"}
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path not in kept]
    sockets = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if str(folder) in line]
    return files + sockets


async def cycles(folder: Path, count: int, seed: int) -> list[str]:
    """Run ``count`` clusters one after the other, the last of which ends in order; returns what is left of them.

    What a killed primary leaves in files the next one removes.
    """
    chance = random.Random(seed)
    for name in ("tmp", "run"):
        (folder / name).mkdir(mode=0o700)
    found: list[str] = []
    for number in range(count):
        last = number == count - 1
        kill = number % 2 == 0 and not last
        early = chance.random() < 0.25 and not last
        upgrade = chance.random() if number // 2 % 2 and not early else None
        mark = uuid.uuid4().hex
        how = f"cycle {number}, {'killed' if kill else 'stopped'}{' while it started' if early else ''}"
        how += f", {upgrade:.2f} s after USR2" if upgrade is not None else ""
        found += [f"{how}: {what}" for what in await cycle(folder, mark, kill=kill, early=early, upgrade=upgrade)]
    return found + [f"left at the end: {what}" for what in left_in(folder)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nemesis.cycles", description=__doc__)
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = asyncio.run(cycles(Path(name), arguments.cycles, arguments.seed))
    print("\n".join(found) or f"{arguments.cycles} cycles, seed {arguments.seed}: nothing is left")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
