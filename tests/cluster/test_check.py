"""`wscluster check`: says what `serve` would, and starts nothing."""

import json
import socket
import subprocess
from pathlib import Path

import pytest

from tests.cluster.process_support import cli

SOURCES = {
    "good": (
        "import wscluster\nprint('printed')\n"
        "@wscluster.lifespan\nasync def life(): yield\n"
        "@wscluster.process_request\ndef page(ws, request): pass\n"
        "async def handler(ws): pass\n"
    ),
    "raises": "def load():\n    raise LookupError('é' * 100_000)\nload()\n",
    "exits": "import os\nos._exit(3)\n",
    "hangs": "import time\ntime.sleep(60)\n",
    "threads": (
        "import threading\nthreading.Thread(target=threading.Event().wait).start()\nasync def handler(ws): pass\n"
    ),
    "forks": ("import os\nchild = os.fork()\nif child: os.waitpid(child, 0)\nasync def handler(ws): pass\n"),
    "names": (
        "import wscluster\n"
        "def page(ws, request): pass\npage.__qualname__ = 'long' * 100_000\nwscluster.process_request(page)\n"
        "async def handler(ws): pass\n"
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("check")
    for name, source in SOURCES.items():
        (made / f"{name}.py").write_text(source)
    return made


def check(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return cli("check", *arguments, folder=folder)


def test_all_is_well(folder: Path) -> None:
    path = folder / "never-made.sock"
    done = check(folder, "good:handler", "--bind", "127.0.0.1:8000", "--bind", f"unix:{path}")
    assert done.stdout.splitlines() == [
        "target: good:handler, a handler, lifespan life, process_request page",
        f"listens on: 127.0.0.1:8000, unix:{path}",
        "bus: a private Valkey",
    ]
    assert done.stderr == "printed\n"
    assert done.returncode == 0
    assert not path.exists()


def test_all_is_well_as_json(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text(f'target = "good:handler"\napp_dir = "{folder}"\nhost = "::1"\n')
    done = check(folder, "--json", "--config", str(tmp_path / "w.toml"))
    assert json.loads(done.stdout) == {
        "ok": True, "target": "good:handler", "kind": "handler",
        "functions": {"lifespan": "life", "process_request": "page"},
        "listeners": ["[::1]:8000"], "tls": False, "bus": None, "faults": [],
    }  # fmt: skip


def test_a_port_that_is_taken_is_not_looked_at(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert check(folder, "good:handler", "--port", str(taken.getsockname()[1])).returncode == 0


def test_a_target_that_raises_shows_its_own_traceback(folder: Path) -> None:
    done = check(folder, "raises:handler")
    assert done.returncode == 4
    assert done.stdout == ""
    *shown, last = done.stderr.splitlines()
    assert last.startswith("wscluster: module 'raises' cannot be imported: LookupError: é")
    assert "é" in "".join(shown)


@pytest.mark.parametrize(
    ("target", "exit_code", "line"),
    [
        ("gone:handler", 4, "no module named 'gone' in "),
        ("good:cat", 4, "module 'good' has no attribute 'cat'"),
        ("exits:handler", 3, "target 'exits:handler': the process that imported it ended by itself, with status 3"),
        ("hangs:handler", 3, "target 'hangs:handler' was not imported within 1 s (--worker-startup-timeout)"),
    ],
)
def test_a_target_that_cannot_be_served_has_the_exit_code_of_serve(
    folder: Path, target: str, exit_code: int, line: str
) -> None:
    timeout = ("--worker-startup-timeout", "1" if target.startswith("hangs") else "20")
    done = check(folder, target, *timeout)
    (said,) = done.stderr.removeprefix("printed\n").splitlines()
    assert said.startswith(f"wscluster: {line}")
    assert done.returncode == exit_code
    assert cli("serve", target, *timeout, "--port", "0", "--workers", "1", folder=folder).returncode == exit_code


@pytest.mark.parametrize("target", ["threads:handler", "forks:handler"])
def test_what_a_target_leaves_behind_does_not_hold_it_up(folder: Path, target: str) -> None:
    done = check(folder, target, "--worker-startup-timeout", "60d")
    assert done.stdout.startswith(f"target: {target}, a handler\n")
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_name_that_is_endless_is_cut(folder: Path) -> None:
    report = json.loads(check(folder, "names:handler", "--json").stdout)
    assert report["functions"] == {"process_request": "long" * 50}


def test_bus_and_target_are_looked_at_both_and_the_first_fault_decides(folder: Path) -> None:
    with socket.socket() as nobody:  # bound, and does not listen
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        done = check(folder, "gone:x", "--json", "--redis-url", f"redis://:sesame@127.0.0.1:{port}")
    report = json.loads(done.stdout)
    assert report["ok"] is False
    assert report["bus"] == f"redis://:***@127.0.0.1:{port}"
    bus, target = report["faults"]
    assert bus.startswith(f"--redis-url redis://:***@127.0.0.1:{port}: ")
    assert target.startswith("no module named 'gone'")
    assert len(done.stderr.splitlines()) == 2
    assert done.returncode == 3
    assert "sesame" not in done.stdout + done.stderr


def test_certificates_are_looked_at(folder: Path) -> None:
    done = check(folder, "good:handler", "--ssl-certfile", "gone.pem")
    assert done.stderr.removeprefix("printed\n").startswith("wscluster: --ssl-certfile gone.pem: ")
    assert done.returncode == 3


def test_wrong_usage_is_that_of_serve(folder: Path) -> None:
    done = check(folder, "good", "--port", "x")
    assert [line.split()[1] for line in done.stderr.splitlines()] == ["target", "--port"]
    assert done.returncode == 2
