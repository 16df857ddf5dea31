"""What is built from the sources is whole: wheel through sdist, `pip install .`, and an editable install."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import wscluster
from tests.support import ROOT

GENERATED = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist")
SIDES = ("gateway", "workers")


def call(*command: str | Path, cwd: Path) -> str:
    """Run a program without the network and without our sources on its path; returns what it prints."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    env |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, because a build writes beside its sources."""
    copy = tmp_path_factory.mktemp("packaging") / "sources"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=GENERATED)
    return copy


@pytest.fixture(scope="module")
def built(sources: Path) -> tuple[Path, Path, str]:
    """The sdist, the wheel that is built from it, and what the build said."""
    said = call(sys.executable, "-m", "build", "--no-isolation", "--outdir", sources.parent, cwd=sources)
    (sdist,) = sources.parent.glob("*.tar.gz")
    (wheel,) = sources.parent.glob("*.whl")
    return sdist, wheel, said


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that finds our dependencies, and not us, in the one that the tests run in."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, symlinks=True)
    folder = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    lent = home / "lent"
    lent.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "wscluster" not in entry.name and entry.suffix not in {".pth", ".egg-link"}:
            (lent / entry.name).symlink_to(entry)
    (folder / "lent.pth").write_text(f"{lent}\n")
    return home / "bin/python"


def modules(folder: str) -> set[str]:
    shipped = (path for path in (ROOT / folder).iterdir() if path.suffix in {".py", ".html"})
    return {f"wscluster/{folder}/{path.name}" for path in shipped}


def expected() -> set[str]:
    ground = {f"wscluster/{path.name}" for path in (ROOT / "wscluster").iterdir() if path.suffix in {".py", ".typed"}}
    return ground.union(*(modules(side) for side in SIDES))


def test_the_wheel_from_the_sdist_holds_every_module(built: tuple[Path, Path, str]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = {Path(name).name for name in wheel.namelist() if ".dist-info/" in name}
    assert held == expected()
    assert {"LICENSE", "METADATA", "entry_points.txt"} <= metadata


def test_the_sdist_holds_every_module_once(built: tuple[Path, Path, str]) -> None:
    with tarfile.open(built[0]) as sdist:
        held = [name.partition("/")[2] for name in sdist.getnames()]
    assert expected() <= set(held)
    assert {"LICENSE", "README.md", "pyproject.toml"} <= set(held)
    assert len(held) == len(set(held))


def test_the_build_says_nothing_that_a_person_must_look_at(built: tuple[Path, Path, str]) -> None:
    suspect = re.compile(r"warning|\berror\b|deprecat|not found|ignored", re.IGNORECASE)
    assert not [line for line in built[2].splitlines() if suspect.search(line)]


@pytest.mark.parametrize("how", ["wheel", "sources", "editable"])
def test_what_is_installed_runs_from_another_folder(
    how: str, sources: Path, python: Path, built: tuple[Path, Path, str], tmp_path: Path
) -> None:
    what = {"wheel": str(built[1]), "sources": str(sources), "editable": f"--editable={sources}"}[how]
    pip = (sys.executable, "-m", "pip", "--python", str(python))
    call(*pip, "install", "--quiet", "--no-deps", "--no-build-isolation", "--force-reinstall", what, cwd=tmp_path)
    try:
        assert call(python.parent / "wscluster", "--version", cwd=tmp_path) == f"wscluster {wscluster.__version__}\n"
        script = (
            "import wscluster.gateway.run as g, wscluster.workers.worker as w; print(g.__file__); print(w.__file__)"
        )
        files = [Path(line) for line in call(python, "-c", script, cwd=tmp_path).split()]
        home = sources if how == "editable" else python.parent.parent
        assert all(file.is_relative_to(home) for file in files), files
        # -B: what pytest compiles for itself would outlive the uninstall.
        fixtures = call(python, "-B", "-m", "pytest", "--fixtures", "-p", "no:cacheprovider", cwd=tmp_path)
        assert "wscluster_cluster -- " in fixtures, "pytest finds the fixture by itself"
    finally:
        call(*pip, "uninstall", "--quiet", "--yes", "wscluster", cwd=tmp_path)
