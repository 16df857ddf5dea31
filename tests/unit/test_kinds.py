"""What is a handler, what is an ASGI app, and what is neither and why."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import fastapi
import pytest
import socketio
import starlette.applications

from wscluster.workers.kinds import ASGI, HANDLER, kind_of

BOTH = "`async def handler(ws)` or `async def app(scope, receive, send)` is wanted"
HANDLERS = "`async def handler(ws)` is wanted"
APPS = "`async def app(scope, receive, send)` is wanted"


async def handler(ws: Any) -> None: ...
async def handler_with_a_default(ws: Any, path: str = "/") -> None: ...
async def anything(*arguments: Any) -> None: ...
async def app(scope: Any, receive: Any, send: Any) -> None: ...
async def app_and_more(more: Any, scope: Any, receive: Any, send: Any) -> None: ...
async def two(ws: Any, path: str) -> None: ...
async def none() -> None: ...
def make() -> Any: ...
def sync_handler(ws: Any) -> None: ...
def sync_app(scope: Any, receive: Any, send: Any) -> Awaitable[None]:
    return app(scope, receive, send)


def asgi_2(scope: Any) -> Any: ...
def wsgi(environ: Any, start_response: Any) -> Any: ...
async def generator(scope: Any, receive: Any, send: Any) -> Any:
    yield


class App:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...
    async def method(self, scope: Any, receive: Any, send: Any) -> None: ...
    async def handler(self, ws: Any) -> None: ...


class Wrapper:
    """As some libraries wrap an app: a plain function that returns what the app returns."""

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        return app(scope, receive, send)


class Flask:
    def __call__(self, environ: Any, start_response: Any) -> Any: ...


class Asgi2:
    def __init__(self, scope: Any) -> None: ...
    async def __call__(self, receive: Any, send: Any) -> None: ...


class Handler:
    async def __call__(self, ws: Any) -> None: ...


@pytest.mark.parametrize(
    "value",
    [
        handler, handler_with_a_default, anything, functools.partial(two, path="/"), functools.partial(two, "x"),
        App().handler, Handler(),
    ],
)  # fmt: skip
def test_what_is_a_handler(value: Callable[..., Any]) -> None:
    assert kind_of(value) == HANDLER
    assert kind_of(value, HANDLER) == HANDLER


@pytest.mark.parametrize(
    "value",
    [
        app, functools.partial(app_and_more, "more"), App(), App().method, App().__call__, Wrapper(), fastapi.FastAPI(),
        starlette.applications.Starlette(), socketio.ASGIApp(socketio.AsyncServer(async_mode="asgi")),
    ],
)  # fmt: skip
def test_what_is_an_asgi_app(value: Callable[..., Any]) -> None:
    assert kind_of(value) == ASGI
    assert kind_of(value, ASGI) == ASGI


@pytest.mark.parametrize("value", [anything, sync_app, lambda scope, receive, send: app(scope, receive, send)])
def test_what_is_an_asgi_app_only_where_that_is_said(value: Callable[..., Any]) -> None:
    assert kind_of(value, ASGI) == ASGI


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (5, f"is of the type 'int': {BOTH}"),
        (two, f"takes (ws: Any, path: str) -> None: {BOTH}"),
        (none, f"takes no arguments: with --factory it is called for the app; {BOTH}"),
        (make, f"takes no arguments: with --factory it is called for the app; {BOTH}"),
        (sync_handler, f"is no coroutine function: {BOTH}"),
        (sync_app, f"is no coroutine function: {BOTH}"),
        (generator, f"is no coroutine function: {BOTH}"),
        (asgi_2, f"takes (scope), as an ASGI 2 app does: ASGI 3 is spoken, {APPS}"),
        (Asgi2, f"is an ASGI 2 app, a class that is called with the scope: ASGI 3 is spoken, {APPS}"),
        (App, f"is a class: name an instance of it, or a function that returns one with --factory; {BOTH}"),
        (wsgi, "takes (environ: Any, start_response: Any) -> Any, as a WSGI app does, which is not served: " + BOTH),
        (Flask(), "takes (environ: Any, start_response: Any) -> Any, as a WSGI app does, which is not served: " + BOTH),
        (getattr, f"does not say what it takes: {BOTH}"),
    ],
)
def test_what_is_neither(value: Any, fault: str) -> None:
    with pytest.raises(ValueError, match="wanted") as caught:
        kind_of(value)
    assert str(caught.value) == fault


@pytest.mark.parametrize(
    ("value", "interface", "fault"),
    [
        (app, HANDLER, "is an ASGI app, but --interface is handler"),
        (handler, ASGI, "is a handler, but --interface is asgi"),
        (App, HANDLER, f"is a class, not a handler: {HANDLERS}"),
        (none, HANDLER, f"takes () -> None: {HANDLERS}"),
        (sync_handler, HANDLER, f"is no coroutine function: {HANDLERS}"),
        (two, ASGI, f"takes (ws: Any, path: str) -> None: {APPS}"),
        ("app", ASGI, f"is of the type 'str': {APPS}"),
    ],
)
def test_what_is_not_the_kind_that_is_wanted(value: Any, interface: str, fault: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        kind_of(value, interface)
    assert str(caught.value) == fault
