"""The Autobahn|Testsuite: installed where there is a Python 2.7, run against us and the library, and compared."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT
from wscluster.testing import Cluster

SUITE = "autobahntestsuite==25.10.1"
# The last of its kind for Python 2.7.
VIRTUALENV = "virtualenv==20.15.1"
FOLDER = ROOT / ".conformance"
SETS = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*")
"""Everything but compression, whose 216 cases take minutes."""
EVERY_SET = (*SETS, "12.*", "13.*")
MAX_SIZE = 64 * 1024 * 1024
"""Set 9 sends messages of up to 16 MiB."""
LIMITS = {"WEBSOCKETS_MAX_FRAGMENTS": "200000"}
"""And up to 65,536 fragments of one."""

# NON-STRICT: the connection failed before an echo was out that was due before. One run says it of a case, for either
# server, and the next one does not: it is chance. INFORMATIONAL: every behaviour is right.
PASSED = frozenset({"OK", "NON-STRICT", "INFORMATIONAL"})


class Unavailable(Exception):
    """The suite cannot run here; the text says why."""


@dataclass(frozen=True)
class Verdict:
    """What the suite says of one case: of the messages, and of the connection's end."""

    behavior: str
    close: str

    @property
    def passed(self) -> bool:
        return {self.behavior, self.close} <= PASSED

    def is_worse_than(self, other: "Verdict") -> bool:
        pairs = ((self.behavior, other.behavior), (self.close, other.close))
        return any(ours not in PASSED and theirs in PASSED for ours, theirs in pairs)


Verdicts = Mapping[str, Verdict]


def find_worse(ours: Verdicts, theirs: Verdicts) -> dict[str, tuple[Verdict | None, Verdict]]:
    """Return the cases in which ours is worse than theirs, or was not run."""
    return {
        case: (ours.get(case), verdict)
        for case, verdict in theirs.items()
        if case not in ours or ours[case].is_worse_than(verdict)
    }


def find_python() -> str:
    """Return a Python 2.7.

    Raises:
        Unavailable: There is none.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    for candidate in (*sorted(map(str, pyenv.glob("versions/2.7.*/bin/python")), reverse=True), "python2.7"):
        if shutil.which(candidate) is None:
            continue
        # What pyenv puts on the PATH exists for every version, and runs for some.
        done = subprocess.run([candidate, "-c", "import pip"], capture_output=True, check=False)
        if done.returncode == 0:
            return candidate
    raise Unavailable("the Autobahn|Testsuite needs a Python 2.7 with pip, and there is none: `pyenv install 2.7.18`")


def install() -> Path:
    """Return the program ``wstest``, installed into `FOLDER` the first time.

    Raises:
        Unavailable: There is no Python 2.7.
        subprocess.CalledProcessError: It cannot be installed.
    """
    python = find_python()
    program, done = FOLDER / "venv/bin/wstest", FOLDER / "installed"
    if done.is_file() and done.read_text() == SUITE and program.is_file():
        return program
    shutil.rmtree(FOLDER, ignore_errors=True)
    tool = FOLDER / "tool"
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _run(python, *pip, "--target", str(tool), VIRTUALENV)
    _run(python, "-m", "virtualenv", "--quiet", str(FOLDER / "venv"), PYTHONPATH=str(tool))
    _run(str(FOLDER / "venv/bin/python"), *pip, SUITE)
    done.write_text(SUITE)
    return program


def _run(*command: str, **variables: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, env=inherited | variables, check=True, capture_output=True, text=True, timeout=600)


@asynccontextmanager
async def our_server() -> AsyncIterator[str]:
    """Serve the echo handler with a cluster; yields its URL."""
    echo = "tests.cluster.handlers:echo"
    async with Cluster(echo, workers=1, env=LIMITS, ws_max_size=MAX_SIZE, ws_ping_interval=0) as cluster:
        yield cluster.url


@asynccontextmanager
async def their_server() -> AsyncIterator[str]:
    """Serve the echo handler with the library's own server; yields its URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.conformance.library_server", str(MAX_SIZE),
        cwd=ROOT, env=os.environ | LIMITS | {"PYTHONPATH": str(ROOT)},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        yield f"ws://127.0.0.1:{port}"
    finally:
        process.stdin.close()
        await process.wait()


async def judge(program: Path, url: str, cases: Sequence[str]) -> Verdicts:
    """Return what the suite says of the echo server at ``url``.

    Raises:
        RuntimeError: The suite itself failed; the text is the end of what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="conformance-") as name:
        folder = Path(name)
        specification = {
            "options": {"failByDrop": False},
            "outdir": str(folder / "reports"),
            "servers": [{"agent": "server", "url": url}],
            "cases": cases,
            "exclude-cases": [],
            "exclude-agent-cases": {},
        }
        (folder / "specification.json").write_text(json.dumps(specification))
        process = await asyncio.create_subprocess_exec(
            program, "-m", "fuzzingclient", "-s", folder / "specification.json",
            cwd=folder, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        index = folder / "reports/index.json"
        if process.returncode or not index.is_file():
            raise RuntimeError(f"wstest failed: {output.decode(errors='replace')[-2000:]}")
        found = json.loads(index.read_text())["server"]
    return {case: Verdict(told["behavior"], told["behaviorClose"]) for case, told in found.items()}


async def judge_both(program: Path, cases: Sequence[str]) -> tuple[Verdicts, Verdicts]:
    """Return what the suite says of us and of the library, which it looks at together."""
    async with our_server() as ours, their_server() as theirs:
        verdicts = await asyncio.gather(judge(program, ours, cases), judge(program, theirs, cases))
    return verdicts[0], verdicts[1]
