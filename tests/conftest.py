"""Every test: no file descriptor, no process and no file stays behind."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest

from tests.support import open_fds
from wscluster.loops import new_event_loop

# A temporary folder of this run's own: what another run leaves in the shared one is not ours. Its path is short, as a
# Unix socket's ends at 107 bytes.
_folder = tempfile.mkdtemp(prefix="wst-")
os.chmod(_folder, 0o711)  # tests of other users pass through
os.environ["TMPDIR"] = tempfile.tempdir = _folder
atexit.register(shutil.rmtree, _folder, ignore_errors=True)

# How long one example takes says how busy the machine is.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

# libuv opens a pipe for the whole process with its first loop, and never closes it.
new_event_loop().close()


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    if "unit" in request.path.parts:  # pure: it opens nothing, and a look would take longer than the test
        yield
        return
    fds = set(open_fds())
    files = _files()
    yield
    if not fds.issuperset(open_fds()):
        gc.collect()  # what only waits for the collector was let go
    left = {fd: what for fd, what in open_fds().items() if fd not in fds}
    assert not left, f"left open: {left}"
    children = [psutil.Process(pid) for pid in _children()]
    assert not children, f"left running: {children}"
    assert _files() <= files, f"left on disk: {_files() - files}"


def _children() -> list[int]:
    found = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    return [int(pid) for pids in found for pid in pids]


def _files() -> set[Path]:
    found: set[Path] = set()
    for folder in Path(tempfile.gettempdir()).glob("wscluster-*"):
        found |= {folder, *folder.rglob("*")} if not folder.name.startswith("wscluster-test-") else {folder}
    return found
