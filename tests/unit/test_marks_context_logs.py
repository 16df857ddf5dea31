"""What a target's module may use of `wscluster` itself, and how a line is logged."""

import asyncio
import io
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wscluster
from wscluster import context, logs, marks
from wscluster.errors import NotInWorker

if TYPE_CHECKING:
    from wscluster.context import WorkerContext


@pytest.fixture
def worker() -> Iterator[SimpleNamespace]:
    published: list[tuple[str, object]] = []

    async def publish(room: str, message: object) -> str:
        published.append((room, message))
        return "7-0"

    fake = SimpleNamespace(
        this_worker=SimpleNamespace(slot=3),
        control_socket="/run/7.sock",
        publish=publish,
        published=published,
        subscribe=lambda rooms, max_queue: (rooms, max_queue),
    )
    context.enter(cast("WorkerContext", fake))
    yield fake
    context.enter(None)


def test_marked_functions_are_found_by_their_role() -> None:
    @marks.lifespan
    async def life() -> AsyncIterator[None]:
        yield

    @marks.process_request
    def look(ws: object, request: object) -> None: ...

    def plain() -> None: ...

    module = ModuleType("chat")
    vars(module).update(life=life, same=life, look=look, plain=plain, number=5)
    assert marks.marked(module, "lifespan") == [life]
    assert marks.marked(module, "process_request") == [look]
    assert marks.marked(ModuleType("empty"), "lifespan") == []


def test_outside_a_worker_there_is_no_context() -> None:
    with pytest.raises(NotInWorker, match=r"wscluster\.anything works inside a worker only") as caught:
        context.current("wscluster.anything")
    assert isinstance(caught.value, wscluster.WsclusterError)


def test_outside_a_worker_nothing_is_published() -> None:
    with pytest.raises(NotInWorker, match=r"wscluster\.publish"):
        asyncio.run(wscluster.publish("room", "text"))


def test_outside_a_worker_no_room_is_heard_and_no_primary_is_known() -> None:
    with pytest.raises(NotInWorker, match=r"wscluster\.subscribe"):
        wscluster.subscribe("room")
    assert context.control_socket() is None


def test_outside_a_worker_there_is_no_this_worker() -> None:
    with pytest.raises(NotInWorker, match=r"wscluster\.this_worker"):
        wscluster.this_worker  # noqa: B018


def test_inside_a_worker_the_public_functions_reach_it(worker: SimpleNamespace) -> None:
    assert wscluster.this_worker is worker.this_worker
    assert asyncio.run(wscluster.publish("room", b"bytes")) == "7-0"
    assert worker.published == [("room", b"bytes")]
    heard: object = wscluster.subscribe("lobby", "news", max_queue=5)
    assert heard == (("lobby", "news"), 5)
    assert context.control_socket() == "/run/7.sock"


@pytest.mark.parametrize("name", [name for name in wscluster.__all__ if name != "this_worker"])
def test_every_public_name_is_there(name: str) -> None:
    vars(wscluster).pop(name, None)
    value = getattr(wscluster, name)
    assert value.__name__.removeprefix("wscluster.") == name
    assert vars(wscluster)[name] is value


def test_a_name_that_is_none_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'wscluster' has no attribute 'nonsense'"):
        wscluster.nonsense  # noqa: B018


def test_importing_the_package_loads_neither_side() -> None:
    code = "import sys, wscluster; print([m for m in sys.modules if m.startswith('wscluster.') or m == 'websockets'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain text", "plain text"),
        ("größer €", "größer €"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\x1b[31mred\x07\x00\x7f", r"\x1b[31mred\x07\x00\x7f"),
        ("\u2028\u202e\u00a0", r"\u2028\u202e\xa0"),
        ("\ud800", r"\ud800"),
    ],
)
def test_control_characters_are_escaped(text: str, escaped: str) -> None:
    assert logs.escape_controls(text) == escaped


@given(st.text(st.characters()))
def test_whatever_is_escaped_is_printable(text: str) -> None:
    assert logs.escape_controls(text).isprintable()


@pytest.fixture
def ours() -> Iterator[logging.Logger]:
    """The logger of the package; its state is put back."""
    logger = logging.getLogger("wscluster")
    before = (logger.handlers[:], logger.propagate, logger.level)
    yield logger
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def test_a_line_is_signed_and_of_one_line(ours: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stderr := io.StringIO())
    root = logging.getLogger().handlers[:]
    logs.set_up("info", "worker 3 slot 0")
    logs.set_up("info", "worker 3 slot 0")
    logging.getLogger("wscluster.link").info("from %s", "a\x1b[2J\r\nb")
    logging.getLogger("wscluster.link").debug("not this")
    line = stderr.getvalue()
    assert line.endswith(" INFO    worker 3 slot 0 | from a\\x1b[2J\\r\\nb\n")
    assert line.count("\n") == 1
    assert logging.getLogger().handlers == root


def test_a_mark_is_looked_for_without_asking_the_object() -> None:
    class Proxy:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("outside of a request")

        def __call__(self) -> None:
            raise AssertionError

    module = ModuleType("made")
    module.proxy = Proxy()  # type: ignore[attr-defined]
    assert marks.marked(module, "process_request") == []


def test_a_function_may_have_two_marks() -> None:
    def look(*_: object) -> None: ...

    module = ModuleType("made")
    module.look = marks.process_response(marks.process_request(look))  # type: ignore[attr-defined]
    assert marks.marked(module, "process_request") == marks.marked(module, "process_response") == [look]


def test_basic_auth_marks_with_and_without_a_realm() -> None:
    def check(_username: str, _password: str) -> bool:
        return True

    assert marks.basic_auth(check) is check
    assert marks.realm_of(check) == ""
    assert marks.basic_auth(realm="r")(check) is check
    assert marks.realm_of(check) == "r"
