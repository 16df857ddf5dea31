"""Files, variables and flags on the way into `serve`: the real command line, in a folder of its own."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

import wscluster
from tests.cluster.process_support import cli, environment
from tests.cluster.test_serve_flags import serving
from tests.support import cannot_run, run
from wscluster.cli import main
from wscluster.config import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with no variables of ours in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ.keys() - environment(tmp_path).keys():
        monkeypatch.delenv(name)
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, tuple[str, str]]:
    """Return what ``--print-config`` says: for each name its value and where it came from."""
    assert main(["serve", "--print-config", *arguments]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    rows = {}
    for line in said.out.splitlines():
        text, _, origin = line.rpartition("  # ")
        name, _, value = text.partition(" = ")
        rows[name.removeprefix("# ").split()[0]] = (value.strip(), origin)
    return rows


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Return the lines of a wrong usage."""
    assert main(["serve", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert all(line.startswith("wscluster: ") for line in lines)
    return [line.removeprefix("wscluster: ") for line in lines]


def test_each_value_says_where_it_came_from(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "wscluster.toml").write_text('target = "a:b"\nport = 1\nhost = "::1"\nslot-wait = "1m"\n')
    (folder / "pyproject.toml").write_text("[tool.wscluster]\nbacklog = 7\n")
    (folder / "vars").write_text("WSCLUSTER_ROOM_LOG=3\nREDIS_URL=redis://u:sesame@h\nWEB_CONCURRENCY=9\n")
    monkeypatch.setenv("WSCLUSTER_HOST", "::2")
    monkeypatch.setenv("WEB_CONCURRENCY", "2")
    rows = shown(capsys, "--port", "2", "--env-file", "vars", "--no-proxy-headers", "--allowed-origins", "http://a")
    assert rows["target"] == ('"a:b"', "file wscluster.toml:1")
    assert rows["port"] == ("2", "flag --port")
    assert rows["host"] == ('"::2"', "variable WSCLUSTER_HOST")
    assert rows["slot_wait"] == ("60", "file wscluster.toml:4")
    assert rows["workers"] == ("2", "variable WEB_CONCURRENCY")
    assert rows["room_log"] == ("3", "variable WSCLUSTER_ROOM_LOG of vars:1")
    assert rows["redis_url"] == ('"redis://u:***@h"', "variable REDIS_URL of vars:2")
    assert rows["proxy_headers"] == ("false", "flag --proxy-headers")
    assert rows["allowed_origins"] == ('["http://a"]', "flag --allowed-origins")
    assert rows["backlog"] == ("2048", "default")
    assert "ROOM_LOG" not in "".join(os.environ), "printing changes nothing"


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_a_file_that_is_named_stands_in_for_those_of_the_folder(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    (folder / "wscluster.toml").write_text("port = 1\nbacklog = 1\n")
    (folder / "other.toml").write_text("[tool.wscluster]\nport = 2\n")
    monkeypatch.setenv("WSCLUSTER_CONFIG", "other.toml" if how == "variable" else "")
    rows = shown(capsys, "a:b", *(["--config", "other.toml"] if how == "flag" else []))
    assert rows["port"] == ("2", "file other.toml:2")
    assert rows["backlog"] == ("2048", "default")


def test_pyproject_is_read_where_there_is_no_file_of_our_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert shown(capsys, "a:b")["port"] == ("8000", "default")
    (folder / "pyproject.toml").write_text("[project]\nname = 'x'\n[tool.wscluster]\nport = 2\n")
    assert shown(capsys, "a:b")["port"] == ("2", "file pyproject.toml:4")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"port = \n", "c.toml:1: this is not TOML: Invalid value"),
        (b"\xff\xfe", "c.toml: it is not UTF-8 (byte 0)"),
        (b"#" * (1 << 20) + b"\n", "c.toml: it is larger than 1 MiB"),
        (b"prot = 1\n", "c.toml:1: there is no option 'prot'; did you mean port?"),
        (b"\nport = '1'\n", "c.toml:2: port '1': a whole number from 0 to 65535 is wanted"),
        (b"port = 65536\n", "c.toml:1: port 65536: a whole number from 0 to 65535 is wanted"),
        (b"target = 'a b'\n", "c.toml:1: target 'a b': module:attribute is wanted, such as handlers:chat"),
        (b'host = "a\\u0000"\n', "c.toml:1: host 'a\\x00': a text without NUL"),
        (None, "c.toml: there is no such file; --config names one that is there"),
    ],
)
def test_a_file_that_makes_no_sense_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, line: str
) -> None:
    if content is not None:
        (folder / "c.toml").write_bytes(content)
    target = [] if content is None or b"target" in content else ["a:b"]
    (said,) = told(capsys, *target, "--config", "c.toml")
    assert said.startswith(line)


def test_a_file_that_cannot_be_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "wscluster.toml").mkdir()
    assert told(capsys, "a:b") == ["wscluster.toml: it cannot be read: Is a directory"]
    (folder / "wscluster.toml").rmdir()
    (folder / "pyproject.toml").write_text("[tool.other]\n")
    assert told(capsys, "--config", "pyproject.toml") == ["pyproject.toml: it has no table [tool.wscluster]"]
    assert told(capsys, "a:b", "--config", "a", "--config", "b") == ["--config: it was given twice, and names one file"]
    assert told(capsys, "a:b", "--config", "") == ["--config '': the path of a file is wanted"]


def test_a_variable_that_is_empty_names_no_file(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WSCLUSTER_CONFIG", "")
    (folder / "wscluster.toml").write_text("port = 1\n")
    assert shown(capsys, "a:b")["port"] == ("1", "file wscluster.toml:1")


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    if os.getuid() != 0:
        cannot_run("only root can become nobody")
    tmp_path.chmod(0o755)
    (tmp_path / "wscluster.toml").write_text("port = 1\n")
    (tmp_path / "wscluster.toml").chmod(0)
    script = (
        f"import os, sys; sys.path.insert(0, {str(Path.cwd())!r}); from wscluster.cli import main; "
        "import wscluster.launch, wscluster.settings; os.setuid(65534); sys.exit(main(['serve', 'a:b']))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == "wscluster: wscluster.toml: it cannot be read: Permission denied\n"
    assert done.returncode == 2


def test_a_file_of_variables_that_makes_no_sense(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "vars").write_text("A=1\nB\nWSCLUSTER_PORT=x\nC='\n")
    assert told(capsys, "a:b", "--env-file", "vars") == [
        "vars:2: NAME=VALUE is wanted, the name of letters, digits and _",
        "vars:4: the quotes of C do not end, or something stands behind them",
        "vars:3: WSCLUSTER_PORT 'x': a whole number from 0 to 65535 is wanted",
    ]
    assert told(capsys, "a:b", "--env-file", "gone") == ["--env-file 'gone': there is no such file"]
    (folder / "wscluster.toml").write_text("target = 'a:b'\nenv_file = '.'\n")
    assert told(capsys) == ["wscluster.toml:2: env_file '.': it cannot be read: Is a directory"]


def test_all_faults_of_all_sources_are_told_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "wscluster.toml").write_text("sticky = 'glue'\nhots = 'x'\nbacklog = 0\n")
    monkeypatch.setenv("WSCLUSTER_SLOT_WAIT", "soon")
    lines = told(capsys, "a", "--port", "x", "--ready-fd", "1", "--ready-fd", "2")
    assert [line.split()[0] for line in lines] == [
        "target", "wscluster.toml:2:", "--port", "wscluster.toml:3:", "wscluster.toml:1:", "WSCLUSTER_SLOT_WAIT",
        "--ready-fd:",
    ]  # fmt: skip


def test_a_cluster_that_is_told_everything_by_its_files(tmp_path: Path) -> None:
    """Its workers have the variables too, and what was set before is not overridden."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "app.py").write_text(
        "import os\nasync def handler(ws): await ws.send(' '.join(os.environ[x] for x in ('A', 'B', 'C')))\n"
    )
    (tmp_path / "wscluster.toml").write_text(
        'target = "app:handler"\napp_dir = "code"\nport = 0\nworkers = 1\nready_fd = 1\nenv_file = "vars"\n'
        'control_socket = "c.sock"\ngraceful_timeout = "5s"\n'
    )
    (tmp_path / "vars").write_text("A=1\nexport B='two # 2'\nC=3\n")

    async def check() -> None:
        async with (
            serving(folder=tmp_path, env={"C": "mine"}) as (ready, _),
            connect(f"ws://127.0.0.1:{ready['port']}", proxy=None) as ws,
        ):
            assert await ws.recv() == "1 two # 2 mine"

    run(check())


# From Python


def python(folder: Path, source: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=folder, capture_output=True, text=True, timeout=30, check=False,
        env=environment(folder) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_serving_from_python_takes_the_names_of_the_flags_and_returns_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import os, signal, wscluster\n"
        "@wscluster.lifespan\nasync def life():\n"
        "    os.kill(os.getppid(), signal.SIGTERM)\n    yield\n"
        "async def handler(ws): pass\n"
    )
    code, out, err = python(
        tmp_path,
        "import wscluster\n"
        "code = wscluster.serve('app:handler', workers=1, port=0, slot_wait=1, ready_fd=1, graceful_timeout='1s',\n"
        "                       access_log=False, subprotocols=['a', 'b'], control_socket='c.sock', uds=None)\n"
        "print('code', code)\n",
    )
    assert code == 0, err
    *_, stopped, last = out.splitlines()
    assert (stopped, last) == ('{"event":"stopped"}', "code 0")


def test_a_target_that_cannot_be_imported_is_an_exit_code_in_python_too(tmp_path: Path) -> None:
    code, out, err = python(
        tmp_path, "import wscluster\nprint(int(wscluster.serve('gone:handler', workers=1, port=0)))\n"
    )
    assert (code, out) == (0, "4\n")
    assert err.startswith("wscluster: no module named 'gone'")
    assert len(err.splitlines()) == 1


def test_arguments_that_make_no_sense_are_told_together(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        wscluster.serve("app:handler", workers=0, port="80", subprotocols=[1], ws_per_message_deflate="true")
    assert [problem.split()[0] for problem in caught.value.problems] == [
        "port", "workers", "subprotocols", "ws_per_message_deflate",
    ]  # fmt: skip
    assert isinstance(caught.value, ValueError)
    with pytest.raises(TypeError, match=r"no option prot, workres$"):
        wscluster.serve("app:handler", prot=1, workres=2)
    with pytest.raises(ConfigError, match="no such file"):
        wscluster.serve("app:handler", config="gone.toml")


def test_a_path_may_be_a_path_and_what_is_none_is_refused(folder: Path) -> None:
    (folder / "other.toml").write_text("port = 'high'\n")
    with pytest.raises(ConfigError) as caught:
        wscluster.serve("app:handler", config=Path("other.toml"), uds=Path("a.sock"), fd=3)
    assert caught.value.problems == [
        "other.toml:1: port 'high': a whole number from 0 to 65535 is wanted",
        "uds and fd: one of them says where to listen, not both",
    ]
    with pytest.raises(TypeError):
        wscluster.serve("app:handler", config=3)  # type: ignore[arg-type]


def test_the_signals_are_those_of_the_program_again_afterwards(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import os, signal, wscluster\n"
        "@wscluster.lifespan\nasync def life():\n"
        "    os.kill(os.getppid(), signal.SIGTERM)\n    yield\n"
        "async def handler(ws): pass\n"
    )
    code, out, err = python(
        tmp_path,
        "import os, signal, wscluster\n"
        "def heard(number, frame): print('heard', number)\n"
        "signal.signal(signal.SIGTERM, heard)\n"
        "for _ in range(2):\n"
        "    print(wscluster.serve('app:handler', workers=1, port=0))\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt:\n        print('interrupted')\n",
    )
    assert code == 0, err
    assert out == "0\nheard 15\ninterrupted\n" * 2


def test_serving_where_it_cannot_work_is_refused(folder: Path) -> None:
    raised: list[BaseException] = []

    def elsewhere() -> None:
        try:
            wscluster.serve("app:handler")
        except RuntimeError as exc:
            raised.append(exc)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "must be called from the main thread" in str(raised[0])

    async def within() -> None:
        with pytest.raises(RuntimeError, match="call it where none is running"):
            wscluster.serve("app:handler")

    run(within())


def test_the_verb_without_a_target_says_how_to_name_one(tmp_path: Path) -> None:
    done = cli("serve", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("wscluster: no target is given: name one, such as handlers:chat")
