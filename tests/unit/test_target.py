"""Every fault of a target is told in one line, and the user's own traceback is shown where the fault is in it."""

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wscluster import marks
from wscluster.config import Asgi, Config, Handshake, Operate, WebSocket
from wscluster.errors import TargetError
from wscluster.workers.target import App, Target, load_target

HANDLER = "async def handler(ws): pass\n"
WANTED = "`async def handler(ws)` or `async def app(scope, receive, send)` is wanted"


def load_handler(name: str, app_dir: str, handshake: Handshake | None = None) -> Target:
    target = load_target(Config(target=name, handshake=handshake or Handshake(), operate=Operate(app_dir=app_dir)))
    assert isinstance(target, Target)
    return target


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Writes modules; what they do to the import system is undone."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write_module(name: str, source: str) -> None:
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        importlib.invalidate_caches()

    yield write_module
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def load(write: Callable[[str, str], None], tmp_path: Path) -> Callable[..., Target]:
    """Writes ``source`` as the module ``chat`` and loads ``name`` from it."""

    def load_source(source: str, name: str = "chat:handler") -> Target:
        write("chat", source)
        return load_handler(name, str(tmp_path))

    return load_source


def refused(load: Callable[[], object]) -> TargetError:
    with pytest.raises(TargetError) as caught:
        load()
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_handler_is_loaded(load: Callable[..., Target]) -> None:
    target = load(HANDLER)
    assert target.handler.__name__ == "handler"
    assert target.lifespan is None
    assert target.process_request is None


def test_the_folder_becomes_importable_once(load: Callable[..., Target], tmp_path: Path) -> None:
    load(HANDLER)
    load_handler("chat:handler", str(tmp_path))
    assert sys.path.count(str(tmp_path)) == 1
    assert sys.path[0] == str(tmp_path)


def test_a_relative_folder_is_that_of_the_current_directory(
    write: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("inside.chat", HANDLER)
    monkeypatch.chdir(tmp_path)
    load_handler("chat:handler", "inside")
    assert sys.path[0] == str(tmp_path / "inside")


def test_a_module_that_is_missing(tmp_path: Path, write: Callable[[str, str], None]) -> None:
    error = refused(lambda: load_handler("nowhere:handler", str(tmp_path)))
    assert str(error) == f"no module named 'nowhere' in {tmp_path} or on the import path"
    assert error.traceback == ""


def test_a_package_that_is_missing(tmp_path: Path, write: Callable[[str, str], None]) -> None:
    error = refused(lambda: load_handler("nowhere.deep.down:handler", str(tmp_path)))
    assert str(error) == f"no module named 'nowhere' in {tmp_path} or on the import path"


def test_a_submodule_that_is_missing(tmp_path: Path, write: Callable[[str, str], None]) -> None:
    write("package.__init__", "")
    error = refused(lambda: load_handler("package.chat:handler", str(tmp_path)))
    assert str(error) == f"no module named 'package.chat' in {tmp_path} or on the import path"


def test_an_import_that_is_missing_within_the_module_shows_the_users_traceback(load: Callable[..., Target]) -> None:
    error = refused(lambda: load("import not_installed\n" + HANDLER))
    assert str(error) == "module 'chat' cannot be imported: ModuleNotFoundError: No module named 'not_installed'"
    assert 'chat.py", line 1, in <module>' in error.traceback
    assert "import not_installed" in error.traceback
    assert "target.py" not in error.traceback
    assert "importlib" not in error.traceback


def test_an_import_error_within_a_module_that_the_module_imports(
    load: Callable[..., Target], write: Callable[[str, str], None]
) -> None:
    write("helper", "from os import no_such_name\n")
    error = refused(lambda: load("import helper\n"))
    assert str(error).startswith("module 'chat' cannot be imported: ImportError: cannot import name 'no_such_name'")
    assert 'helper.py", line 1' in error.traceback


def test_a_module_that_raises_on_import(load: Callable[..., Target]) -> None:
    error = refused(lambda: load("def begin():\n    raise KeyError('DATABASE')\nbegin()\n"))
    assert str(error) == "module 'chat' cannot be imported: KeyError: 'DATABASE'"
    assert "line 2, in begin" in error.traceback
    assert error.traceback.rstrip().endswith("KeyError: 'DATABASE'")


def test_a_module_that_raises_an_error_of_several_lines(load: Callable[..., Target]) -> None:
    error = refused(lambda: load("raise ValueError('first\\nsecond')\n"))
    assert str(error) == "module 'chat' cannot be imported: ValueError: first second"
    assert error.traceback.rstrip().endswith("ValueError: first\nsecond")


def test_a_module_with_a_syntax_error(load: Callable[..., Target]) -> None:
    error = refused(lambda: load("async def handler(ws)\n    pass\n"))
    assert str(error) == "module 'chat' cannot be imported: SyntaxError: expected ':'"
    assert 'chat.py", line 1' in error.traceback


def test_a_module_that_exits_on_import(load: Callable[..., Target]) -> None:
    error = refused(lambda: load("import sys\nsys.exit(7)\n"))
    assert str(error) == "module 'chat' cannot be imported: SystemExit: 7"
    assert "sys.exit(7)" in error.traceback


def test_an_attribute_that_is_missing_names_the_one_that_was_meant(load: Callable[..., Target]) -> None:
    error = refused(lambda: load(HANDLER, "chat:handlr"))
    assert str(error) == "module 'chat' has no attribute 'handlr'; did you mean 'handler'?"


def test_an_attribute_like_none_names_what_there_is(load: Callable[..., Target]) -> None:
    error = refused(lambda: load("async def serve(ws): pass\nasync def talk(ws): pass\n", "chat:zzz"))
    assert str(error) == "module 'chat' has no attribute 'zzz'; did you mean 'serve' or 'talk'?"


def test_an_attribute_of_an_empty_module_has_no_hint(load: Callable[..., Target]) -> None:
    assert str(refused(lambda: load(""))) == "module 'chat' has no attribute 'handler'"


def test_a_name_without_an_attribute(load: Callable[..., Target]) -> None:
    assert "has no attribute ''" in str(refused(lambda: load(HANDLER, "chat")))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("handler = 5\n", "'chat:handler' is of the type 'int'"),
        (
            "class handler:\n    async def __call__(self, ws): pass\n",
            "'chat:handler' is a class: name an instance of it, or a function that returns one with --factory;",
        ),
        ("def handler(ws): pass\n", "'chat:handler' is no coroutine function"),
        ("async def handler(ws): yield 1\n", "'chat:handler' is no coroutine function"),
        (
            "class No:\n    def __call__(self, ws): pass\nhandler = No()\n",
            "'chat:handler' is no coroutine function",
        ),
    ],
)
def test_what_is_no_handler(load: Callable[..., Target], source: str, message: str) -> None:
    error = refused(lambda: load(source))
    assert str(error).startswith(message)
    assert str(error).endswith(WANTED)


@pytest.mark.parametrize("parameters", ["ws, path", "*, ws"])
def test_a_handler_that_does_not_take_one_argument(load: Callable[..., Target], parameters: str) -> None:
    error = refused(lambda: load(f"async def handler({parameters}): pass\n"))
    assert str(error) == f"'chat:handler' takes ({parameters}): {WANTED}"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("class App:\n    async def handler(self, ws): pass\napp = App()\n", "chat:app.handler"),
        ("class App:\n    @staticmethod\n    async def handler(ws): pass\n", "chat:App.handler"),
        ("class App:\n    async def __call__(self, ws): pass\napp = App()\n", "chat:app"),
        ("import functools\nasync def f(a, ws): pass\nhandler = functools.partial(f, 1)\n", "chat:handler"),
        ("async def handler(ws, path='/'): pass\n", "chat:handler"),
        ("async def handler(*args): pass\n", "chat:handler"),
    ],
)
def test_what_else_is_a_handler(load: Callable[..., Target], source: str, name: str) -> None:
    assert callable(load(source, name).handler)


def test_a_method_of_a_class_instead_of_an_object_lacks_an_argument(load: Callable[..., Target]) -> None:
    error = refused(lambda: load("class App:\n    async def handler(self, ws): pass\n", "chat:App.handler"))
    assert str(error) == f"'chat:App.handler' takes (self, ws): {WANTED}"


def test_a_module_in_a_package(write: Callable[[str, str], None], tmp_path: Path) -> None:
    write("package.chat", HANDLER)
    assert load_handler("package.chat:handler", str(tmp_path)).handler.__module__ == "package.chat"


LIFESPAN = "import wscluster\n@wscluster.lifespan\nasync def {name}(): yield\n"


def test_the_marked_functions_are_found(load: Callable[..., Target]) -> None:
    target = load(
        LIFESPAN.format(name="life") + "@wscluster.process_request\ndef look(ws, request): return None\n" + HANDLER
    )
    assert target.lifespan is not None
    assert target.process_request is not None
    assert (target.lifespan.__name__, target.process_request.__name__) == ("life", "look")


def test_a_lifespan_under_two_names_is_one(load: Callable[..., Target]) -> None:
    assert load(LIFESPAN.format(name="life") + "same = life\n" + HANDLER).lifespan is not None


def test_two_lifespans(load: Callable[..., Target]) -> None:
    error = refused(lambda: load(LIFESPAN.format(name="one") + LIFESPAN.format(name="two") + HANDLER))
    assert str(error) == "module 'chat' marks more than one function @wscluster.lifespan: one, two"


@pytest.mark.parametrize("definition", ["async def life(): return {}", "def life(): yield", "def life(): return {}"])
def test_a_lifespan_that_is_no_async_generator(load: Callable[..., Target], definition: str) -> None:
    error = refused(lambda: load(f"import wscluster\n@wscluster.lifespan\n{definition}\n" + HANDLER))
    assert str(error) == "@wscluster.lifespan of 'chat' is no async generator function (`yield` once)"


MARKS = """
@wscluster.process_request
def look(ws, request): pass
@wscluster.process_response
async def look_again(ws, request, response): pass
@wscluster.select_subprotocol
def choose(ws, subprotocols): pass
@wscluster.basic_auth(realm="the lobby")
async def check(username, password): return True
"""
ROLES = {
    "process_request": "look",
    "process_response": "look_again",
    "select_subprotocol": "choose",
    "basic_auth": "check",
}


def named(role: str, name: str) -> Handshake:
    return replace(Handshake(), **{role: name})  # type: ignore[arg-type]


def test_every_marked_function_is_found(load: Callable[..., Target]) -> None:
    target = load("import wscluster\n" + MARKS + HANDLER)
    assert {role: getattr(target, role).__name__ for role in ROLES} == ROLES
    assert marks.realm_of(target.basic_auth or load) == "the lobby"


@pytest.mark.parametrize("role", ROLES)
def test_a_flag_names_a_function_from_elsewhere_and_wins(
    role: str, load: Callable[..., Target], write: Callable[[str, str], None], tmp_path: Path
) -> None:
    write("chat", "import wscluster\n" + MARKS + HANDLER)
    write("auth", "class Door:\n    def other(self, *arguments): pass\ndoor = Door()\n")
    target = load_handler("chat:handler", str(tmp_path), named(role, "auth:door.other"))
    assert getattr(target, role).__name__ == "other"
    assert {other: getattr(target, other).__name__ for other in ROLES if other != role} == {
        other: name for other, name in ROLES.items() if other != role
    }


@pytest.mark.parametrize(
    ("role", "name", "message"),
    [
        ("process_request", "nowhere:look", "no module named 'nowhere' in "),
        ("process_request", "auth:nothing", "module 'auth' has no attribute 'nothing'"),
        ("basic_auth", "auth:number", "--basic-auth auth:number is no function, but of the type 'int'"),
        (
            "process_response",
            "auth:pair",
            "takes (a, b), but it is called with the connection, the ",
        ),
        ("basic_auth", "auth:one", "takes (a), but it is called with the user name, the password"),
        ("select_subprotocol", "auth:later", "is a coroutine function, but it cannot wait: `def` is wanted"),
    ],
)
def test_a_flag_that_names_no_such_function(
    role: str, name: str, message: str, write: Callable[[str, str], None], tmp_path: Path
) -> None:
    write("chat", HANDLER)
    write("auth", "number = 5\ndef pair(a, b): pass\ndef one(a): pass\nasync def later(ws, offered): pass\n")
    error = refused(lambda: load_handler("chat:handler", str(tmp_path), named(role, name)))
    assert str(error).startswith(f"--{role.replace('_', '-')} {name}")
    assert message in str(error)
    assert error.traceback == ""


def test_a_flag_whose_module_raises_shows_its_traceback(write: Callable[[str, str], None], tmp_path: Path) -> None:
    write("chat", HANDLER)
    write("auth", "1 / 0\n")
    handshake = Handshake(process_request="auth:look")
    error = refused(lambda: load_handler("chat:handler", str(tmp_path), handshake))
    assert str(error).startswith("--process-request auth:look: module 'auth' cannot be imported: ZeroDivisionError")
    assert "auth.py" in error.traceback


@pytest.mark.parametrize("role", ROLES)
def test_two_functions_marked_the_same(role: str, load: Callable[..., Target]) -> None:
    functions = f"@wscluster.{role}\ndef one(*a): pass\n@wscluster.{role}\ndef two(*a): pass\n"
    error = refused(lambda: load("import wscluster\n" + functions + HANDLER))
    assert str(error) == f"module 'chat' marks more than one function @wscluster.{role}: one, two"


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (
            "@wscluster.process_request\ndef f(ws): pass",
            "takes (ws), but it is called with the connection",
        ),
        ("@wscluster.select_subprotocol\nasync def f(a, b): pass", "is a coroutine function, but it cannot wait"),
        ("@wscluster.lifespan\nasync def f(app): yield", "takes (app), but it is called with no arguments"),
        (
            "@wscluster.basic_auth(realm='a\\r\\nb')\ndef f(a, b): pass",
            "has the realm 'a\\r\\nb': printable",
        ),
        ("@wscluster.basic_auth(realm=5)\ndef f(a, b): pass", "has the realm 5: printable ASCII is wanted"),
    ],
)
def test_a_marked_function_that_cannot_be_called(definition: str, message: str, load: Callable[..., Target]) -> None:
    error = refused(lambda: load(f"import wscluster\n{definition}\n" + HANDLER))
    assert str(error).startswith("@wscluster.")
    assert message in str(error)


def test_a_function_that_does_not_say_what_it_takes_is_tried(write: Callable[[str, str], None], tmp_path: Path) -> None:
    write("chat", HANDLER)
    target = load_handler("chat:handler", str(tmp_path), Handshake(process_request="builtins:getattr"))
    assert target.process_request is getattr


def test_importing_a_target_twice_runs_it_once(load: Callable[..., Target], tmp_path: Path) -> None:
    first = load(HANDLER)
    assert load_handler("chat:handler", str(tmp_path)).handler is first.handler


# ASGI apps

ASGI_APP = "async def app(scope, receive, send): pass\n"


def load_any(folder: Path, name: str = "chat:app", **groups: Any) -> Target | App:
    operate = replace(groups.pop("operate", Operate()), app_dir=str(folder))
    return load_target(Config(target=name, operate=operate, **groups))


def test_an_asgi_app_is_loaded(write: Callable[[str, str], None], tmp_path: Path) -> None:
    write("chat", ASGI_APP)
    target = load_any(tmp_path, handshake=Handshake(proxy_headers=False, forwarded_allow_ips=("*",)))
    assert isinstance(target, App)
    assert target.app is sys.modules["chat"].app


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (ASGI_APP + "def make(): return app\n", "make"),
        ("class Made:\n    async def __call__(self, scope, receive, send): pass\n", "Made"),
        (ASGI_APP + "def make(name='x'): return app\n", "make"),
        (ASGI_APP + "class Deep:\n    @staticmethod\n    def make(): return app\n", "Deep.make"),
    ],
)
def test_a_factory_is_called_for_the_app(
    source: str, name: str, write: Callable[[str, str], None], tmp_path: Path
) -> None:
    write("chat", source)
    assert isinstance(load_any(tmp_path, f"chat:{name}", asgi=Asgi(factory=True)), App)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("make = 5\n", "'chat:make' is of the type 'int': --factory wants a function"),
        ("def make(name): pass\n", "'chat:make' takes arguments, but with --factory it is called without any"),
        ("def make(): raise LookupError('no\\nname')\n", "the factory 'chat:make' raised LookupError: no name"),
        ("import sys\ndef make(): sys.exit(3)\n", "the factory 'chat:make' raised SystemExit: 3"),
        (
            "async def make(): pass\n",
            "the factory 'chat:make' is a coroutine function, but it is not awaited: `def` is wanted",
        ),
        ("def make(): return 5\n", "what 'chat:make' returned is of the type 'int': `async def app("),
        ("def make():\n    async def h(ws): pass\n    return h\n", "what 'chat:make' returned is a handler, but --"),
    ],
)
def test_a_factory_that_makes_no_app(
    source: str, message: str, write: Callable[[str, str], None], tmp_path: Path
) -> None:
    write("chat", source)
    error = refused(lambda: load_any(tmp_path, "chat:make", asgi=Asgi(factory=True)))
    assert str(error).startswith(message)
    assert ("in make" in error.traceback) == ("raised" in message)
    assert "target.py" not in error.traceback


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"handshake": Handshake(process_request="a:b")}, "--process-request is for handlers"),
        (
            {"handshake": Handshake(subprotocols=("a",), allowed_origins=("null",))},
            "--subprotocols, --allowed-origins are for handlers",
        ),
        ({"websocket": WebSocket(max_send_queue=5)}, "--max-send-queue is for handlers"),
        ({"websocket": WebSocket(ws_message_timeout=5)}, "--ws-message-timeout is for handlers"),
    ],
)
def test_options_of_handlers_are_refused_for_an_app(
    groups: dict[str, Any], message: str, write: Callable[[str, str], None], tmp_path: Path
) -> None:
    write("chat", ASGI_APP)
    error = refused(lambda: load_any(tmp_path, **groups))
    assert str(error) == f"'chat:app' is an ASGI app, but {message}"


def test_options_of_apps_are_refused_for_a_handler(write: Callable[[str, str], None], tmp_path: Path) -> None:
    write("chat", HANDLER)
    error = refused(lambda: load_any(tmp_path, "chat:handler", asgi=Asgi(root_path="/x", lifespan="on")))
    assert str(error) == "'chat:handler' is a handler, but --lifespan, --root-path are for ASGI apps"


@pytest.mark.parametrize("role", [*ROLES, "lifespan"])
def test_marks_are_refused_beside_an_app(role: str, write: Callable[[str, str], None], tmp_path: Path) -> None:
    write("chat", f"import wscluster\n@wscluster.{role}\nasync def marked(*a): yield\n" + ASGI_APP)
    message = f"'chat:app' is an ASGI app, but @wscluster.{role} of 'chat' is for handlers"
    hint = ": an app has its own lifespan, which is spoken" if role == "lifespan" else ""
    assert str(refused(lambda: load_any(tmp_path))) == message + hint
