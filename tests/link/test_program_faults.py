"""Programs that cannot be served, beside a primary that the test plays: each is told why, in one line."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.link.played_primary import PlayedPrimary
from wscluster.packets import Bind, BoundAt, Ready

Write = Callable[[str], str]


@pytest.fixture
def program(tmp_path: Path) -> Write:
    def write(text: str) -> str:
        path = tmp_path / "server.py"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("content", "reason", "shown"),
    [
        (b"def f(:\n", "is no Python program: SyntaxError", "def f(:"),
        (b"x = 1\0\n", "is no Python program: ", ""),
        (b"\x7fELF\x02\x01\x01\0\0\0\xff\xfe", "is no Python program: ", ""),
        (b"\xff\xfe", "is no Python program: SyntaxError", ""),
    ],
)
def test_a_file_that_is_no_python(tmp_path: Path, content: bytes, reason: str, shown: str) -> None:
    path = tmp_path / "server.py"
    path.write_bytes(content)
    with PlayedPrimary([str(path)]) as primary:
        failure = primary.failure()
        assert failure.exit_code == 4
        assert f"{path} {reason}" in failure.reason
        assert "\n" not in failure.reason
        assert shown in failure.traceback
        assert "wscluster" not in failure.traceback
        assert primary.output() == ("", "")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["missing.py"], "there is no file missing.py"),
        (["."], ". has no file __main__.py: name the file that is to be run"),
        (["-m", "missing"], "no module named 'missing' in "),
        (["-m", "missing.sub"], "no module named 'missing.sub' in "),
        (["-m", "json.missing"], "no module named 'json.missing' in "),
        (["-m", "os.path.sub"], "no module named 'os.path.sub' in "),
        (["-m", "server.py"], "without -m it would be a file"),
        (["-m", "concurrent"], "'concurrent' is a package without a module __main__"),
        (["-m", ".relative"], "-m needs the full name of a module"),
        (["-m", "_json"], "it is not written in Python"),
        (["-m", "http.client.sub"], "no module named 'http.client.sub' in "),
    ],
)
def test_a_program_that_is_not_there(tmp_path: Path, words: list[str], reason: str) -> None:
    with PlayedPrimary(words, cwd=tmp_path) as primary:
        failure = primary.failure()
        assert failure.exit_code == 4
        assert reason in failure.reason
        assert failure.traceback == ""
        assert primary.output() == ("", "")


def test_a_package_that_raises_when_it_is_imported(tmp_path: Path) -> None:
    package = tmp_path / "app"
    package.mkdir()
    (package / "__init__.py").write_text("import nowhere\n")
    (package / "server.py").write_text("")
    with PlayedPrimary(["-m", "app.server"], cwd=tmp_path) as primary:
        failure = primary.failure()
    assert failure.exit_code == 4
    assert failure.reason.startswith("module 'app.server' cannot be imported: ModuleNotFoundError: ")
    assert failure.traceback.splitlines()[1].endswith('app/__init__.py", line 1, in <module>')


def test_a_program_that_raises_shows_its_own_traceback_alone(program: Write) -> None:
    path = program("def start():\n    raise KeyError('settings')\n\nstart()\n")
    with PlayedPrimary([path]) as primary:
        failure = primary.failure()
        assert primary.output() == ("", "")
    assert failure.exit_code == 4
    assert failure.reason == "the program raised KeyError: 'settings'"
    lines = failure.traceback.splitlines()
    assert lines[1] == f'  File "{path}", line 4, in <module>'
    assert "wscluster" not in failure.traceback


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import sys; sys.exit(7)", "the program ended (status 7) before it listened anywhere"),
        ("import sys; sys.exit('no key')", "the program ended (status 1) before it listened anywhere: no key"),
        ("print('hello')", "the program ended (status 0) before it listened anywhere"),
    ],
)
def test_a_program_that_ends_before_it_listens(program: Write, text: str, reason: str) -> None:
    with PlayedPrimary([program(text)]) as primary:
        failure = primary.failure()
    assert (failure.exit_code, failure.reason, failure.traceback) == (3, reason, "")


IN_USE = """
import asyncio, sys

async def main():
    try:
        await asyncio.start_server(print, "127.0.0.1", 1)
    except OSError as exc:
        print(exc.errno, flush=True)
        raise
"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("asyncio.run(main())", "cannot listen: taken"),
        (
            "try: asyncio.run(main())\nexcept OSError: sys.exit(1)",
            "the program ended (status 1) before it listened anywhere: cannot listen: taken",
        ),
    ],
)
def test_an_address_that_cannot_be_bound_is_the_error_of_the_program(program: Write, text: str, reason: str) -> None:
    with PlayedPrimary([program(IN_USE + text)]) as primary:
        request = primary.until(Bind)
        primary.send(BoundAt(request.serial, [], [], [], 98, "cannot listen: taken"))
        failure = primary.failure()
        assert (failure.exit_code, failure.reason, failure.traceback) == (3, reason, "")
        assert primary.output() == ("98\n", "")


OWN_SOCKET = """
import asyncio, socket

async def main():
    await asyncio.get_running_loop().create_server(asyncio.Protocol, sock=socket.create_server(("127.0.0.1", 0)))

asyncio.run(main())
"""
HYPERCORN = """
import asyncio, hypercorn.asyncio, hypercorn.config

async def app(scope, receive, send): ...

config = hypercorn.config.Config()
config.bind = ["127.0.0.1:0"]
asyncio.run(hypercorn.asyncio.serve(app, config))
"""


@pytest.mark.parametrize("text", [OWN_SOCKET, HYPERCORN], ids=["sock=", "hypercorn"])
def test_a_program_that_binds_its_own_socket(program: Write, text: str) -> None:
    with PlayedPrimary([program(text)]) as primary:
        failure = primary.failure()
    assert failure.exit_code == 3
    assert failure.reason == "the program binds its own socket: use `wscluster serve module:app`"
    assert failure.hopeless


ACCEPTS = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
listener.accept()
"""
FORKS = """
import os, time
listener = __import__("socket").create_server(("127.0.0.1", 0))
if os.fork() == 0:
    time.sleep(600)
time.sleep(600)
"""
UVICORN = """
import uvicorn

async def app(scope, receive, send): ...

if __name__ == "__main__":
    uvicorn.run("server:app", port=0, {option})
"""
GRANIAN = """
from granian import Granian

async def app(scope, receive, send): ...

if __name__ == "__main__":
    Granian("server:app", port=0, interface="asgi").serve()
"""
GUNICORN = """
import sys
from gunicorn.app.wsgiapp import run
sys.argv = ["gunicorn", "-b", "127.0.0.1:0", "server:app"]
def app(environ, start_response): ...
if __name__ == "__main__":
    run()
"""


SELVES = {
    ACCEPTS: "by itself, without the event loop's create_server()",
    FORKS: "by itself, without the event loop's create_server()",
    UVICORN.format(option="reload=True"): "drop reload= and workers=",
    UVICORN.format(option="workers=2"): "drop reload= and workers=",
    GRANIAN: "granian accepts by itself",
    GUNICORN: "gunicorn accepts by itself",
}


def test_programs_that_serve_by_themselves_are_told_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        primaries = []
        for number, text in enumerate(SELVES):
            folder = tmp_path / str(number)
            folder.mkdir()
            (folder / "server.py").write_text(text)
            primaries.append(stack.enter_context(PlayedPrimary(["server.py"], cwd=folder, startup=60)))
        for primary, words in zip(primaries, SELVES.values(), strict=True):
            failure = primary.failure()
            assert failure.exit_code == 3
            assert failure.hopeless
            assert words in failure.reason
            assert "wscluster serve module:app" in failure.reason
        assert time.monotonic() - started < 40


def test_a_program_that_does_nothing_says_so_before_its_time_is_over(program: Write) -> None:
    with PlayedPrimary([program("import time\ntime.sleep(600)")], startup=2) as primary:
        failure = primary.failure()
    assert failure.exit_code == 3
    assert failure.reason.startswith("the program did not listen anywhere within 2 s (--worker-startup-timeout)")


SERVE = """
import asyncio

async def main():
    server = await asyncio.start_server(print, "127.0.0.1", 0{option})
    {then}
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_a_server_that_is_never_started_is_named(program: Write) -> None:
    path = program(SERVE.format(option=", start_serving=False", then=""))
    with PlayedPrimary([path], startup=2) as primary:
        failure = primary.failure()
        port = primary.known[0][1]
    assert f"did not begin to serve 127.0.0.1:{port} within 2 s" in failure.reason


def test_a_worker_that_listens_elsewhere_than_the_others_says_where_each_does(program: Write) -> None:
    with PlayedPrimary([program(SERVE.format(option="", then=""))], known=[("127.0.0.1", 9)]) as primary:
        failure = primary.failure()
        port = primary.known[1][1]
    assert failure.exit_code == 3
    assert failure.reason == (
        f"this worker of the program listens on 127.0.0.1:{port}, another one on 127.0.0.1:9: "
        "all must listen on the same addresses"
    )


CHILD = """
import asyncio, os, sys, wscluster

async def main():
    await asyncio.start_server(print, "127.0.0.1", 0)
    await asyncio.to_thread(sys.stdin.read) if False else None
    if os.fork() == 0:
        asyncio.set_event_loop(None)
        asyncio._set_running_loop(None)
        for what in (listen, publish):
            try:
                asyncio.new_event_loop().run_until_complete(what())
            except Exception as exc:
                print(type(exc).__name__, exc, flush=True)
        print(os.getpid(), flush=True)
        __import__("time").sleep(600)
    await asyncio.sleep(600)

async def listen():
    await asyncio.start_server(print, "127.0.0.1", 0)

async def publish():
    await wscluster.publish("room", "text")

asyncio.run(main())
"""


def test_a_forked_child_has_no_part_in_the_link(program: Write) -> None:
    with PlayedPrimary([program(CHILD)]) as primary:
        primary.until(Ready)
        assert primary.process.stdout is not None
        listen, publish, pid = (primary.process.stdout.readline() for _ in range(3))
        assert listen.startswith("RuntimeError this process was forked by a program under `wscluster run`")
        assert publish.startswith("NotInWorker wscluster.publish works inside a worker only")
        os.kill(primary.process.pid, signal.SIGKILL)
        primary.process.wait()
        os.kill(int(pid), 0)  # it lives, and the link has ended all the same
        while primary.receive() is not None:
            pass
