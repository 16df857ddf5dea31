"""What many tests stand on."""

import asyncio
import os
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parent.parent


def run(main: Coroutine[Any, Any, None], timeout: float = 60) -> None:
    """Run a test's coroutine; it fails after ``timeout`` seconds."""

    async def bounded() -> None:
        async with asyncio.timeout(timeout):
            await main

    asyncio.run(bounded())


def open_fds(pid: int | None = None) -> dict[int, str]:
    """Return the open file descriptors of a process (None: this one) and what each is."""
    folder = Path(f"/proc/{os.getpid() if pid is None else pid}/fd")
    found = {}
    for entry in folder.iterdir():
        try:
            found[int(entry.name)] = os.readlink(entry)
        except FileNotFoundError:
            continue  # the one that lists the folder, or one that was just closed
    return found


def require_program(name: str) -> str:
    """Return the path of a program; without it the test is skipped, or fails where WSCLUSTER_TEST_ALL is 1."""
    found = shutil.which(name)
    if found is None:
        cannot_run(f"{name} is not on PATH: install it to run this test")
    return found


def cannot_run(reason: str) -> NoReturn:
    """Skip the test because of what the machine lacks; fail where WSCLUSTER_TEST_ALL is 1."""
    if os.environ.get("WSCLUSTER_TEST_ALL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
