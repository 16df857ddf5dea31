"""What cannot be served as an ASGI app is told in one line, with the app's own traceback where it raised."""

from pathlib import Path

import pytest

from tests.cluster.process_support import cli
from tests.support import ROOT, run
from wscluster.testing import Cluster

APPS = "tests.cluster.asgi_apps"

SOURCES = {
    "asgi2": "def app(scope):\n    async def run(receive, send): pass\n    return run\n",
    "class2": "class app:\n    def __init__(self, scope): pass\n    async def __call__(self, receive, send): pass\n",
    "class3": "class app:\n    async def __call__(self, scope, receive, send): pass\n",
    "sync": "def app(scope, receive, send): pass\n",
    "two": "async def app(ws, path): pass\n",
    "nothing": "def app(): pass\n",
    "good": "async def app(scope, receive, send): pass\n",
    "handler": "async def app(ws): pass\n",
    "marked": (
        "import wscluster\n@wscluster.lifespan\nasync def life(): yield\nasync def app(scope, receive, send): pass\n"
    ),
    "factory": "def app():\n    raise LookupError('no settings')\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("apps")
    for name, source in SOURCES.items():
        (made / f"{name}.py").write_text(source)
    return made


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("asgi2", (), "takes (scope), as an ASGI 2 app does: ASGI 3 is spoken"),
        ("class2", (), "is an ASGI 2 app, a class that is called with the scope"),
        ("class3", (), "is a class: name an instance of it, or a function that returns one with --factory"),
        ("sync", (), "is no coroutine function: "),
        ("two", (), "takes (ws, path): `async def handler(ws)` or `async def app(scope, receive, send)` is wanted"),
        ("nothing", (), "takes no arguments: with --factory it is called for the app"),
        ("good", ("--interface", "handler"), "is an ASGI app, but --interface is handler"),
        ("handler", ("--interface", "asgi"), "is a handler, but --interface is asgi"),
        ("good", ("--subprotocols", "chat"), "is an ASGI app, but --subprotocols is for handlers"),
        ("handler", ("--root-path", "/x"), "is a handler, but --root-path is for ASGI apps"),
        ("marked", (), "is an ASGI app, but @wscluster.lifespan of 'marked' is for handlers: an app has its own"),
    ],
)
def test_what_is_no_app_ends_with_4_and_says_why(
    name: str, arguments: tuple[str, ...], message: str, folder: Path
) -> None:
    done = cli("serve", f"{name}:app", "--workers", "1", "--port", "0", *arguments, folder=folder)
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"wscluster: '{name}:app' {message}")


def test_a_factory_that_raises_shows_its_traceback_once(folder: Path) -> None:
    done = cli("serve", "factory:app", "--factory", "--workers", "2", "--port", "0", folder=folder)
    assert done.returncode == 4
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.count("raise LookupError") == 1
    assert done.stderr.rstrip().splitlines()[-1].endswith("raised LookupError: no settings")
    assert "asgi.py" not in done.stderr


@pytest.mark.parametrize("missing", ["uvicorn", "httptools"])
def test_without_what_the_extra_brings_the_command_that_brings_it_is_told(missing: str, tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(SOURCES["good"])
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('none', name={missing!r})\n")
    done = cli("serve", "good:app", "--workers", "2", "--port", "0", folder=tmp_path)
    assert done.returncode == 3
    assert done.stderr.count("'good:app' is an ASGI app: pip install 'wscluster[asgi]'") >= 1
    assert "Traceback" not in done.stderr


def test_the_check_says_what_it_is(folder: Path) -> None:
    done = cli("check", "good:app", folder=folder)
    assert done.stdout.startswith("target: good:app, an ASGI app\n")
    done = cli("check", "good:app", "--json", folder=folder)
    assert '"kind": "asgi"' in done.stdout


def test_options_that_cannot_be_meant_end_with_2(folder: Path) -> None:
    done = cli("serve", "good:app", "--header", "no colon", "--root-path", "/\xe9", folder=folder)
    assert done.returncode == 2
    header, root_path = done.stderr.splitlines()
    assert "--header 'no colon': Name:Value in Latin-1" in header
    assert "--root-path '/\xe9': a path in printable ASCII is wanted" in root_path
    done = cli("serve", "good:app", "--lifespan", "no", folder=folder)
    assert (done.returncode, done.stderr) == (2, "wscluster: --lifespan 'no': one of auto, on, off is wanted\n")


# Lifespans


def serve(target: str, *arguments: str, folder: Path) -> tuple[int, str]:
    options = ("--workers", "2", "--port", "0", "--app-dir", str(ROOT), *arguments)
    done = cli("serve", target, *options, folder=folder)
    return done.returncode, done.stderr


def test_a_lifespan_that_fails_is_a_failed_boot_with_its_traceback_once(tmp_path: Path) -> None:
    code, said = serve(f"{APPS}:failing", folder=tmp_path)
    assert code == 3
    assert "the app's lifespan failed: OSError: no database" in said
    assert said.count("Traceback of the app") == 1
    assert "Exiting" not in said


def test_a_lifespan_that_must_be_and_is_none_is_a_failed_boot(tmp_path: Path) -> None:
    code, said = serve(f"{APPS}:without_lifespan", "--lifespan", "on", folder=tmp_path)
    assert code == 3
    assert "the app's lifespan failed: LookupError: only http is spoken" in said
    assert said.count("Traceback") == 1


def test_a_lifespan_that_hangs_is_named_where_the_boot_is_too_late(tmp_path: Path) -> None:
    code, said = serve(f"{APPS}:hanging", "--worker-startup-timeout", "2", folder=tmp_path)
    assert code == 3
    limit = "2 s (--worker-startup-timeout)"
    assert f"the app's lifespan did not answer 'lifespan.startup' within {limit}" in said


@pytest.mark.parametrize("lifespan", ["auto", "off"])
def test_an_app_without_a_lifespan_is_served(lifespan: str) -> None:
    async def main() -> None:
        async with (
            Cluster(f"{APPS}:without_lifespan", workers=1, lifespan=lifespan) as cluster,
            cluster.connect("/echo") as ws,
        ):
            await ws.send("hello")
            assert await ws.recv() == "hello"
        assert "Traceback" not in "\n".join(cluster.output)

    run(main())


def test_a_factory_is_called_once_in_each_worker() -> None:
    async def main() -> None:
        async with (
            Cluster(f"{APPS}:make", workers=1, factory=True) as cluster,
            cluster.connect("/echo") as ws,
        ):
            await ws.send("hello")
            assert await ws.recv() == "hello"

    run(main())
