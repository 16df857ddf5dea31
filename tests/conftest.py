"""Every test: no file descriptor, no process and no file stays behind."""

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import open_fds
from wscluster.loops import new_event_loop

# libuv opens a pipe for the whole process with its first loop, and never closes it.
new_event_loop().close()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    fds = set(open_fds())
    files = _files()
    yield
    gc.collect()
    left = {fd: what for fd, what in open_fds().items() if fd not in fds}
    assert not left, f"left open: {left}"
    children = psutil.Process().children(recursive=True)
    assert not children, f"left running: {children}"
    assert _files() <= files, f"left on disk: {_files() - files}"


def _files() -> set[Path]:
    found: set[Path] = set()
    for folder in Path(tempfile.gettempdir()).glob("wscluster-*"):
        found |= {folder, *folder.rglob("*")} if not folder.name.startswith("wscluster-test-") else {folder}
    return found
