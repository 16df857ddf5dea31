"""What a person does wrong is one line each on standard error, and an exit code."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.process_support import cli, environment
from tests.support import cannot_run

MODULES = {
    "good": "async def handler(ws): pass\n",
    "raises": "def load():\n    raise LookupError('the settings are gone')\n\nload()\n",
    "lines": "raise ValueError('one\\ntwo')\n",
    "needs": "import a_module_that_is_not_there\n",
    "broken": "def handler(ws:\n",
    "exits": "import sys\nsys.exit(0)\n",
    "kinds": (
        "async def none(): pass\n"
        "async def two(ws, path): pass\n"
        "def plain(ws): pass\n"
        "class Handler: pass\n"
        "number = 3\n"
        "async def chat(ws): pass\n"
    ),
    "lifespans": (
        "import wscluster\n"
        "@wscluster.lifespan\nasync def one(): yield\n"
        "@wscluster.lifespan\nasync def two(): yield\n"
        "async def handler(ws): pass\n"
    ),
}


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with targets; every verb of this file runs there."""
    folder = tmp_path_factory.mktemp("modules")
    for name, source in MODULES.items():
        (folder / f"{name}.py").write_text(source)
    return folder


def serve(folder: Path, *arguments: str, pass_fds: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
    defaults = [
        text for flag, text in (("--port", "0"), ("--workers", "1")) if flag not in arguments for text in (flag, text)
    ]
    return cli("serve", *arguments, *defaults, folder=folder, pass_fds=pass_fds)


def assert_lines(done: subprocess.CompletedProcess[str], exit_code: int, *lines: str) -> None:
    """Assert that it said a line that has each of ``lines`` in it, in this order, and nothing else."""
    said = done.stderr.splitlines()
    assert len(said) == len(lines), done.stderr
    for line, wanted in zip(said, lines, strict=True):
        assert line.startswith("wscluster: "), line
        assert wanted in line
    assert done.stdout == ""
    assert done.returncode == exit_code


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("missing:handler", "no module named 'missing' in "),
        ("good:missing", "module 'good' has no attribute 'missing'; did you mean 'handler'?"),
        ("kinds:cat", "module 'kinds' has no attribute 'cat'; did you mean 'chat'?"),
        ("kinds:number", "'kinds:number' is of the type 'int': `async def handler(ws)` or `async def app("),
        (
            "kinds:none",
            "'kinds:none' takes no arguments: with --factory it is called for the app; `async def handler(ws)`",
        ),
        ("kinds:two", "'kinds:two' takes (ws, path): `async def handler(ws)` or `async def app(scope, receive, send)`"),
        (
            "kinds:Handler",
            "'kinds:Handler' is a class: name an instance of it, or a function that returns one with --factory",
        ),
        ("kinds:plain", "'kinds:plain' is no coroutine function"),
        ("lifespans:handler", "'lifespans' marks more than one function @wscluster.lifespan: one, two"),
    ],
)
def test_a_target_that_is_no_handler(modules: Path, target: str, line: str) -> None:
    assert_lines(serve(modules, target), 4, line)


@pytest.mark.parametrize(
    ("module", "own_lines", "line"),
    [
        (
            "raises",
            ['raises.py", line 4, in <module>', 'raises.py", line 2, in load', "LookupError: the settings are gone"],
            "module 'raises' cannot be imported: LookupError: the settings are gone",
        ),
        ("lines", ['lines.py", line 1, in <module>', "ValueError: one"], "module 'lines' cannot be imported: "),
        (
            "needs",
            ['needs.py", line 1, in <module>', "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"],
            "module 'needs' cannot be imported: ModuleNotFoundError: No module named 'a_module_that_is_not_there'",
        ),
        ("broken", ['broken.py", line 1', "SyntaxError: "], "module 'broken' cannot be imported: SyntaxError: "),
        ("exits", ["SystemExit: 0"], "module 'exits' cannot be imported: SystemExit: 0"),
    ],
)
def test_a_module_that_raises_on_import_shows_the_users_own_traceback_once(
    modules: Path, module: str, own_lines: list[str], line: str
) -> None:
    done = serve(modules, f"{module}:handler", "--workers", "3")
    assert done.returncode == 4
    *shown, last = done.stderr.splitlines()
    assert line in last
    assert not [text for text in shown if text.startswith("wscluster: ")]
    for text in own_lines:
        assert "\n".join(shown).count(text) == 1, done.stderr
    files = [text for text in shown if text.lstrip().startswith("File ")]
    assert all(str(modules) in text for text in files), f"frames that are not the user's: {files}"


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ([], ["Missing command"]),
        (["frobnicate"], ["No such command 'frobnicate'"]),
        (["serve"], ["no target is given: name one, such as handlers:chat"]),
        (["serve", "good"], ["target 'good': module:attribute is wanted"]),
        (["serve", "good:"], ["target 'good:': module:attribute is wanted"]),
        (["serve", ":handler"], ["target ':handler': module:attribute is wanted"]),
        (["serve", "./good.py:handler"], ["target './good.py:handler': module:attribute is wanted"]),
        (["serve", "good:handler", "--bogus", "1"], ["No such option '--bogus'"]),
        (["serve", "good:handler", "extra"], ["extra"]),
        (["serve", "good:handler", "--workers"], ["'--workers' requires an argument"]),
        (["serve", "good:handler", "--workers", "0"], ["--workers '0': a whole number from 1 to 1024 is wanted"]),
        (["serve", "good:handler", "--workers", "-3"], ["--workers '-3': a whole number from 1 to 1024 is wanted"]),
        (["serve", "good:handler", "--workers", "banana"], ["--workers 'banana': a whole number from 1 to 1024"]),
        (["serve", "good:handler", "--port", "65536"], ["--port '65536': a whole number from 0 to 65535"]),
        (["serve", "good:handler", "--sticky", "banana"], ["--sticky 'banana': one of ip, none is wanted"]),
        (["serve", "good:handler", "--balance", "random"], ["--balance random needs --sticky none"]),
        (["serve", "good:handler", "--ssl-keyfile", "key.pem"], ["--ssl-keyfile needs --ssl-certfile"]),
        (["serve", "good:handler", "--log-level", "loud"], ["--log-level 'loud': one of debug, info"]),
        (["serve", "good:handler", "--graceful-timeout", "soon"], ["--graceful-timeout 'soon': a number of seconds"]),
        (["serve", "good:handler", "--ws-per-message-deflate", "maybe"], ["true or false is wanted"]),
        (["serve", "good:handler", "--ready-fd", "-1"], ["--ready-fd '-1': a whole number of 0 or more"]),
        (
            ["serve", "good:handler", "--interface", "wsgi"],
            ["--interface 'wsgi': one of auto, handler, asgi is wanted"],
        ),
        (["serve", "good:handler", "--access-log", "--no-access-log"], ["--access-log: it was given twice"]),
        (["serve", "good:handler", "--port", "1", "--port", "1"], ["--port: it was given twice, and holds one value"]),
        (
            ["serve", "good", "--workers", "banana", "--port", "x", "--sticky", "glue", "--slot-wait", "-1"],
            ["target 'good'", "--port 'x'", "--workers 'banana'", "--sticky 'glue'", "--slot-wait '-1'"],
        ),
        (["status", "--pid", "banana"], ["'banana' is not a valid integer"]),
        (["stop", "now"], ["now"]),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], lines: list[str]) -> None:
    assert_lines(cli(*arguments, folder=tmp_path), 2, *lines)


def test_a_wrong_value_of_a_variable_is_named_by_the_variable(tmp_path: Path) -> None:
    env = {"WSCLUSTER_WORKERS": "many", "PORT": "high"}
    done = cli("serve", "good:handler", folder=tmp_path, env=env)
    assert_lines(done, 2, "PORT 'high'", "WSCLUSTER_WORKERS 'many'")


def test_a_port_that_is_taken(modules: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = serve(modules, "good:handler", "--port", str(port))
    assert_lines(done, 3, f"cannot listen on 127.0.0.1:{port}: Address already in use; is another server running?")


@pytest.mark.parametrize(
    ("host", "line"),
    [
        ("203.0.113.9", "cannot listen on 203.0.113.9:0: Cannot assign requested address"),
        ("300.1.1.1", "cannot listen on 300.1.1.1:0: "),
        ("a" * 70, "cannot listen on "),
    ],
)
def test_an_address_that_is_not_of_this_machine(modules: Path, host: str, line: str) -> None:
    assert_lines(serve(modules, "good:handler", "--host", host), 3, line)


def test_a_redis_url_that_is_malformed(modules: Path) -> None:
    done = serve(modules, "good:handler", "--redis-url", "localhost:6379")
    assert_lines(done, 3, "--redis-url localhost:6379: Redis URL must specify one of the following schemes")


def test_a_redis_that_refuses_hides_the_password(modules: Path) -> None:
    with socket.socket() as nobody:  # bound, and does not listen
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        done = serve(modules, "good:handler", "--redis-url", f"redis://:sesame@127.0.0.1:{port}")
    assert_lines(done, 3, f"--redis-url redis://:***@127.0.0.1:{port}: ")
    assert "sesame" not in done.stderr


def test_a_redis_that_does_not_answer(modules: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        done = serve(modules, "good:handler", "--redis-url", url, "--bus-timeout", "0.3")
    assert_lines(done, 3, f"--redis-url {url}: no answer within 0.3 s")


@pytest.mark.parametrize("number", [3, 5, 7, 8, 99, 2**40])
def test_a_ready_fd_that_is_not_open(modules: Path, number: int) -> None:
    """The low ones are those that the event loop would get: events must not be written into it."""
    assert_lines(
        serve(modules, "good:handler", "--ready-fd", str(number)),
        2,
        f"--ready-fd {number}: this file descriptor is not open",
    )


def test_a_ready_fd_that_cannot_be_written(modules: Path) -> None:
    read, write = os.pipe()
    done = serve(modules, "good:handler", "--ready-fd", str(read), pass_fds=(read,))
    os.close(read)
    os.close(write)
    assert_lines(done, 2, f"--ready-fd {read}: this file descriptor is not open for writing")


def test_a_folder_of_the_target_that_is_not_there(modules: Path, tmp_path: Path) -> None:
    done = serve(modules, "absent:handler", "--app-dir", str(tmp_path / "nowhere"))
    assert_lines(done, 4, f"no module named 'absent' in {tmp_path / 'nowhere'}")


# The control socket


@contextlib.contextmanager
def listening(path: Path, answer: bytes = b"") -> Iterator[None]:
    """Somebody who listens at ``path`` and gives every caller the same answer."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()

        def answer_one() -> None:
            caller, _ = sock.accept()
            with caller:
                caller.recv(4096)
                caller.sendall(answer)

        thread = threading.Thread(target=answer_one)
        if answer:
            thread.start()
        yield
        if answer:
            thread.join()


def test_a_control_socket_that_another_primary_holds(modules: Path, tmp_path: Path) -> None:
    path = tmp_path / "held.sock"
    with listening(path):
        done = serve(modules, "good:handler", "--control-socket", str(path))
        assert path.is_socket()
    assert_lines(done, 3, f"control socket {path}: another primary serves there; choose another with --control-socket")


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_a_control_socket_that_is_none_is_left_alone(modules: Path, tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "control", tmp_path / "other"
    other.write_text("precious")
    match kind:
        case "file":
            path.write_text("precious")
        case "link":
            path.symlink_to(other)
        case "folder":
            path.mkdir()
    done = serve(modules, "good:handler", "--control-socket", str(path))
    assert_lines(done, 3, f"control socket {path}: this is a file or a link, not a socket")
    assert os.path.lexists(path)
    assert other.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "line"), [("no/folder/c.sock", "No such file or directory"), ("c" * 120, "AF_UNIX path too long")]
)
def test_a_control_socket_that_cannot_be_made(modules: Path, tmp_path: Path, name: str, line: str) -> None:
    done = serve(modules, "good:handler", "--control-socket", str(tmp_path / name))
    assert_lines(done, 3, line)


def test_a_folder_of_control_sockets_that_is_a_link_is_refused(modules: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder = tmp_path / "run" / "wscluster"
    folder.symlink_to(tmp_path / "elsewhere")
    done = cli("serve", "good:handler", "--port", "0", "--app-dir", str(modules), folder=tmp_path)
    assert_lines(done, 3, f"{folder} is not a folder of its own (a link?)")
    assert_lines(cli("status", folder=tmp_path), 1, f"{folder} is not a folder of its own (a link?)")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_folder_of_control_sockets_of_another_user_is_refused(modules: Path, tmp_path: Path) -> None:
    if os.getuid() != 0:
        cannot_run("only root can give a folder away")
    (tmp_path / "run").mkdir()
    folder = tmp_path / "run" / "wscluster"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    done = cli("serve", "good:handler", "--port", "0", "--app-dir", str(modules), folder=tmp_path)
    assert_lines(done, 3, f"{folder} belongs to another user")
    assert_lines(cli("status", folder=tmp_path), 1, f"{folder} belongs to another user")
    assert not list(folder.iterdir())


def test_a_verb_does_not_read_a_folder_that_is_open_to_others(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    folder = tmp_path / "run" / "wscluster"
    folder.mkdir()
    folder.chmod(0o755)
    assert_lines(cli("status", folder=tmp_path), 1, f"{folder} is open to other users: chmod 700 it")


@pytest.mark.parametrize("verb", ["status", "stop"])
def test_a_verb_without_a_primary(tmp_path: Path, verb: str) -> None:
    assert_lines(cli(verb, folder=tmp_path), 1, "no running primary was found")
    assert_lines(cli(verb, "--pid", "1", folder=tmp_path), 1, "no running primary with pid 1 was found")
    assert_lines(cli(verb, "--port", "9", folder=tmp_path), 1, "no running primary on port 9 was found")
    path = tmp_path / "absent.sock"
    assert_lines(cli(verb, "--control-socket", str(path), folder=tmp_path), 1, f"no primary answers at {path}: ")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"[]\n", b"{}\n", b"\xff\xfe\n"])
@pytest.mark.parametrize("verb", ["status", "stop"])
def test_a_verb_at_a_socket_that_is_not_ours(tmp_path: Path, verb: str, answer: bytes) -> None:
    path = tmp_path / "other.sock"
    with listening(path, answer):
        done = cli(verb, "--control-socket", str(path), folder=tmp_path)
    assert_lines(done, 1, f"what answers at {path} is no primary of wscluster")


def test_a_reader_of_the_output_that_leaves_is_no_traceback(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "wscluster", "serve", "--help"],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=20,
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 1


def test_the_help_names_every_flag_and_its_default(tmp_path: Path) -> None:
    done = cli("serve", "--help", folder=tmp_path)
    assert done.returncode == 0
    text = re.sub(r"\s+", " ", done.stdout)
    assert "--graceful-timeout SECONDS Seconds that open connections get to end at a stop. [default: 30]" in text
    assert "--workers N|auto Number of workers; auto counts the CPUs that this process may use. [default: auto]" in text
    assert "[default: auto] [also WEB_CONCURRENCY]" in text
    assert "without it a private one. [also REDIS_URL]" in text
