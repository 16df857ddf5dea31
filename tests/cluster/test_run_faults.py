"""What the command line says of programs that cannot be served: one line, and the user's own traceback alone."""

import socket
from pathlib import Path

import pytest

from tests.cluster.process_support import cli

HYPERCORN = """
import asyncio, hypercorn.asyncio, hypercorn.config
async def app(scope, receive, send): ...
config = hypercorn.config.Config()
config.bind = ["127.0.0.1:0"]
asyncio.run(hypercorn.asyncio.serve(app, config))
"""
OWN = "wscluster: the program binds its own socket: use `wscluster serve module:app`\n"


def test_a_program_that_binds_its_own_socket_ends_the_start_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(HYPERCORN)
    done = cli("run", "--workers", "2", "server.py", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", OWN)


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("def f(:\n", "wscluster: server.py is no Python program: SyntaxError: invalid syntax"),
        ("settings = {}\nsettings['key']\n", "wscluster: the program raised KeyError: 'key'"),
    ],
)
def test_a_program_at_fault_shows_its_traceback_once(tmp_path: Path, text: str, last: str) -> None:
    (tmp_path / "server.py").write_text(text)
    done = cli("run", "--workers", "2", "server.py", folder=tmp_path)
    assert done.returncode == 4
    lines = done.stderr.splitlines()
    assert lines[-1] == last
    assert sum("server.py" in line and "File" in line for line in lines) == 1
    assert "wscluster/" not in done.stderr


def test_a_module_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = cli("run", "--workers", "2", "-m", "nowhere", folder=tmp_path)
    assert done.returncode == 4
    assert done.stderr == f"wscluster: no module named 'nowhere' in {tmp_path} or on the import path\n"


def test_a_program_that_ends_at_once_is_told_its_status(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text("import sys\nsys.exit(9)\n")
    done = cli("run", "--workers", "1", "server.py", folder=tmp_path)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == "wscluster: the program ended (status 9) before it listened anywhere"


def test_a_program_that_accepts_by_itself_is_told_what_to_do_by_each_of_its_workers(tmp_path: Path) -> None:
    """The first worker has the port, and waits; the second one cannot bind it."""
    (tmp_path / "server.py").write_text(
        "import socket, sys\n"
        "server = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
        "while True:\n"
        "    server.accept()\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = cli("run", "--workers", "1", "server.py", str(port), folder=tmp_path)
    assert done.returncode == 3
    assert done.stderr == (
        f"wscluster: the program binds 127.0.0.1:{port} by itself, where something listens already, another worker of "
        "it perhaps: use `wscluster serve module:app`, or let asyncio listen\n"
    )


def test_a_child_that_a_program_forks_ends_as_any_other_process(tmp_path: Path) -> None:
    """It may fall through to the program's end: that is not the worker's, which still says why it was not ready."""
    (tmp_path / "server.py").write_text(
        "import os, sys\n"
        "if os.fork() == 0:\n"
        "    print('in the child', flush=True)\n"
        "else:\n"
        "    print('the child ended with', os.waitstatus_to_exitcode(os.wait()[1]), flush=True)\n"
        "    sys.exit(5)\n"
    )
    done = cli("run", "--workers", "1", "server.py", folder=tmp_path)
    assert done.returncode == 3
    assert "the child ended with 0" in done.stdout
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "wscluster: the program ended (status 5) before it listened anywhere"
