"""A service that is deployed again and again: its code in a folder, the server that runs it, and how both are changed.

The code writes down every message that it has heard, so that what a client has sent and nobody has heard is seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.cluster.polling_support import wait_uvicorn_started
from wscluster.testing import Cluster

HANDLER = """
import os

RELEASE = {release}
HEARD = os.open(os.environ["HEARD"], os.O_WRONLY | os.O_APPEND)

async def echo(ws):
    async for message in ws:
        os.write(HEARD, message.encode() + b"\\n")
        await ws.send(message)
"""

APP = """
import os

RELEASE = {release}
HEARD = os.open(os.environ["HEARD"], os.O_WRONLY | os.O_APPEND)

async def echo(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({{"type": "websocket.accept"}})
    while (event := await receive())["type"] == "websocket.receive":
        os.write(HEARD, event["text"].encode() + b"\\n")
        await send({{"type": "websocket.send", "text": event["text"]}})
"""

PROGRAM = (
    HANDLER
    + """
import asyncio, signal

from websockets.asyncio.server import serve

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with serve(echo, "127.0.0.1", 0):
        await stop.wait()

asyncio.run(main())
"""
)

BROKEN = "RELEASE = {release}\nraise RuntimeError('this release is broken')\n"

PROGRAM_GRACE_SECONDS = 2.0
UVICORN_SECONDS = 4.0
"""What uvicorn gets for a reload: nothing tells when it is done."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """The service as the benchmark sees it.

    Attributes:
        port: Where it serves.
        reload: Deploys what lies in the folder; returns False where the release was refused.
        kill: Kills one worker with -9.
        upgrade: Upgrades the primary and returns for how many seconds it accepted nothing; None where there is none.
    """

    port: int
    folder: Path
    code: str
    reload: Callable[[], Awaitable[bool]]
    kill: Callable[[], None]
    upgrade: Callable[[], Awaitable[float]] | None = None

    def write(self, release: int, *, broken: bool = False) -> None:
        """Put the code of ``release`` in place, whole at every moment."""
        text = (BROKEN if broken else self.code).format(release=release)
        new = self.folder / "release.py.new"
        new.write_text(text)
        new.rename(self.folder / "release.py")

    def heard(self) -> set[str]:
        """Return every message that any release has heard."""
        return set((self.folder / "heard").read_text().split())


def _environment(folder: Path) -> dict[str, str]:
    # Two releases of the same size within a second would share one .pyc.
    return {"HEARD": str(folder / "heard"), "PYTHONDONTWRITEBYTECODE": "1"}


@contextlib.asynccontextmanager
async def wscluster(code: str, workers: int, drain_rate: float, **more: Any) -> AsyncIterator[Deployed]:
    """Serve ``code`` with wscluster."""
    with tempfile.TemporaryDirectory(prefix="wscluster-deploys-") as name:
        folder = Path(name)
        (folder / "heard").touch()
        options: dict[str, Any] = {
            "app_dir": folder,
            "log_level": "critical",
            "graceful_timeout": 10,
            "drain_rate": drain_rate,
            **more,
        }
        env = _environment(folder)
        if code is PROGRAM:
            del options["app_dir"]
            # Its connections go on until then: what closes them is the program's own end.
            options["graceful_timeout"] = PROGRAM_GRACE_SECONDS
            cluster = Cluster.run("release.py", workers=workers, cwd=folder, env=env, **options)
        else:
            cluster = Cluster("release:echo", workers=workers, env=env, **options)
        command = [sys.executable, "-m", "wscluster", "reload", "--control-socket"]

        async def reload() -> bool:
            done = await asyncio.create_subprocess_exec(
                *command,
                str(cluster.control_socket),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            return await done.wait() == 0

        def kill() -> None:
            os.kill(random.choice(list(cluster.worker_pids().values())), signal.SIGKILL)

        upgrades = iter(range(1, 10**9))

        async def upgrade() -> float:
            cluster.signal(signal.SIGUSR2)
            return float((await cluster.wait_event("upgraded", count=next(upgrades), timeout=60))["pause_seconds"])

        _write_first(folder, code)
        async with cluster:
            yield Deployed(cluster.port, folder, code, reload, kill, upgrade)


@contextlib.asynccontextmanager
async def uvicorn(code: str, workers: int, _drain_rate: float, *more: str) -> AsyncIterator[Deployed]:
    """Serve ``code``, an ASGI app, with uvicorn, which reloads at HUP."""
    with tempfile.TemporaryDirectory(prefix="wscluster-deploys-") as name:
        folder = Path(name)
        (folder / "heard").touch()
        _write_first(folder, code)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "uvicorn", "release:echo", "--app-dir", name, "--workers", str(workers),
            "--port", "0", "--no-access-log", "--timeout-graceful-shutdown", "10", *more,
            env=os.environ | _environment(folder), stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stderr is not None

        async def reload() -> bool:
            process.send_signal(signal.SIGHUP)
            await asyncio.sleep(UVICORN_SECONDS)
            return True  # it does not say

        def kill() -> None:
            children = psutil.Process(process.pid).children()
            random.choice([child for child in children if "spawn_main" in " ".join(child.cmdline())]).kill()

        try:
            port = await wait_uvicorn_started(process.stderr, workers)
            reading = asyncio.create_task(process.stderr.read())
            yield Deployed(port, folder, code, reload, kill)
            process.send_signal(signal.SIGTERM)
            await process.wait()
            await reading
        finally:
            if process.returncode is None:
                for child in psutil.Process(process.pid).children():
                    child.kill()
                process.kill()
                await process.wait()


def _write_first(folder: Path, code: str) -> None:
    (folder / "release.py").write_text(code.format(release=1))


SERVICES: dict[str, tuple[Callable[[str, int, float], AbstractAsyncContextManager[Deployed]], str]] = {
    "wscluster, handler": (wscluster, HANDLER),
    "wscluster, ASGI": (wscluster, APP),
    "wscluster, program": (wscluster, PROGRAM),
    "uvicorn": (uvicorn, APP),
}
