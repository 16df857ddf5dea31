"""The verb `run` until its first worker: flags before the program, everything behind it the program's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import wscluster
from tests.cluster.process_support import cli
from tests.support import ROOT, cannot_run, run
from wscluster.cli import main
from wscluster.config import ConfigError, flag_of, knows, option_fields


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], str]:
    """Return the words of the program and the rest of what ``--print-config`` says."""
    assert main(["run", "--print-config", *arguments]) == 0
    first, rest = capsys.readouterr().out.split("\n", 1)
    return json.loads(first.removeprefix("# run ")), rest


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line of a wrong usage."""
    assert main(["run", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with no variables of ours in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("WSCLUSTER_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["server.py"],
        ["server.py", "--help"],
        ["server.py", "--port", "9", "--workers", "3", "-m", "x"],
        ["server.py", "--", "--help", "--"],
        ["server.py", "a", "-h", "--version", "--print-config", "-", ""],
        ["-m", "package.module"],
        ["-m", "module", "--help", "-m", "--", "--workers=3"],
    ],
)
def test_what_stands_behind_the_program_is_its_own_untouched(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert shown(capsys, "--workers", "2", *words)[0] == words


def test_two_dashes_before_the_program_end_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "--", "--server.py", "--")[0] == ["--server.py", "--"]


def test_what_applies_is_printed_and_what_is_meant_for_serve_is_not_looked_at(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "wscluster.toml").write_text('target = "no target"\nport = "x"\nslot-wait = "1m"\nssl-keyfile = "k"\n')
    monkeypatch.setenv("PORT", "y")
    monkeypatch.setenv("WSCLUSTER_PORT", "z")
    monkeypatch.setenv("WSCLUSTER_BACKLOG", "7")
    _, rest = shown(capsys, "--workers", "2", "server.py")
    rows = dict(line.split("  # ") for line in rest.splitlines())
    said = {text.split(" = ")[0].strip(): (text.split(" = ")[1].strip(), origin) for text, origin in rows.items()
            if " = " in text}  # fmt: skip
    assert said["workers"] == ("2", "flag --workers")
    assert said["backlog"] == ("7", "variable WSCLUSTER_BACKLOG")
    assert said["slot_wait"] == ("60", "file wscluster.toml:3")
    assert not {"target", "port", "host", "ssl_keyfile", "ws_max_size"} & said.keys()


@pytest.mark.parametrize("name", [name for name in option_fields() if not knows("run", name)])
def test_a_flag_of_serve_is_told_to_be_the_programs_matter(capsys: pytest.CaptureFixture[str], name: str) -> None:
    value = [] if option_fields()[name][1].metadata["switch"] else ["1"]
    line = told(capsys, flag_of(name), *value, "server.py")
    assert line.startswith(f"wscluster: {flag_of(name)} is a flag of `serve`: ")
    assert "the program" in line


def test_a_port_before_the_program_is_told_to_be_said_by_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the program itself says where it listens" in told(capsys, "--port", "9000", "server.py")
    assert "there is no file server.py" in cli("run", "server.py", "--port", "9000", folder=Path.cwd()).stderr


def test_the_help_lists_the_flags_of_run_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    text = capsys.readouterr().out
    for name in option_fields():
        assert (f"  {flag_of(name)} " in text) == knows("run", name), name


def test_nothing_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing to run: give a program" in told(capsys)
    assert "nothing to run: give a program" in told(capsys, "--workers", "2", "--")
    assert "give the name of a module behind -m" in told(capsys, "-m")
    assert "--workers '0'" in told(capsys, "--workers", "0", "server.py")
    assert "No such option '--prot'" in told(capsys, "--prot", "9", "server.py")


def test_a_file_that_is_not_there_is_told_before_anything_starts(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "file").write_text("")
    for word, line in (
        ("server.py", "there is no file server.py"),
        ("file/server.py", "there is no file file/server.py"),
        ("empty", "empty is a folder without a file __main__.py"),
        ("a" * 300, "cannot be run: File name too long"),
    ):
        done = cli("run", "--workers", "1", word, folder=folder)
        assert (done.returncode, done.stdout) == (4, "")
        assert done.stderr.startswith("wscluster: ")
        assert done.stderr.endswith(f"{line}\n")


def test_a_file_that_may_not_be_read(folder: Path) -> None:
    if os.getuid() != 0:
        cannot_run("only root can become nobody")
    folder.chmod(0o755)
    (folder / "server.py").write_text("")
    (folder / "server.py").chmod(0)
    script = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); from wscluster.cli import main; "
        "import wscluster.launch, wscluster.gateway.run; os.setuid(65534); sys.exit(main(['run', 'server.py']))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.stderr == "wscluster: server.py cannot be run: Permission denied\n"
    assert done.returncode == 4


def test_running_from_python_has_the_rules_of_serving(capsys: pytest.CaptureFixture[str]) -> None:
    assert wscluster.run("gone.py", workers=1) == 4
    assert capsys.readouterr().err == "wscluster: there is no file gone.py\n"
    assert wscluster.run(Path("gone.py"), Path("a"), "b", workers=1, slot_wait="1m") == 4
    with pytest.raises(TypeError, match=r"wscluster.run\(\) has no option port, prot"):
        wscluster.run("server.py", port=1, prot=2)
    with pytest.raises(TypeError, match="needs the name of a module"):
        wscluster.run("-m")
    with pytest.raises(TypeError):
        wscluster.run("server.py", 3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="workers 0"):
        wscluster.run("server.py", workers=0)


async def _run_in_a_loop() -> None:
    wscluster.run("server.py")


def test_running_where_a_loop_runs_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"wscluster.run\(\) runs an event loop of its own"):
        run(_run_in_a_loop())
