"""Which kind of target an object is: a handler, or an ASGI 3 app."""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

HANDLER, ASGI = "handler", "asgi"
NAMES = {HANDLER: "a handler", ASGI: "an ASGI app"}

_WANTED = {
    "auto": "`async def handler(ws)` or `async def app(scope, receive, send)` is wanted",
    HANDLER: "`async def handler(ws)` is wanted",
    ASGI: "`async def app(scope, receive, send)` is wanted",
}


def kind_of(value: Any, interface: str = "auto") -> str:
    """Return `HANDLER` or `ASGI`.

    A coroutine function of one argument is a handler. One of three is an ASGI app, and so is an object that is called
    with three, whether its ``__call__`` is a coroutine function or a plain one that returns an awaitable. What takes
    one argument as well as three is a handler unless ``interface`` says ``asgi``, which also takes plain functions.

    Args:
        interface: ``auto``, or the kind that is wanted.

    Raises:
        ValueError: It is neither, or not what is wanted; one line that begins with a verb.
    """
    if not callable(value):
        raise ValueError(f"is of the type {type(value).__name__!r}: {_WANTED[interface]}")
    if inspect.isclass(value):
        raise ValueError(_describe_class(value, interface))
    found = _kind(value, interface)
    if found is None:
        raise ValueError(_describe_fault(value, interface))
    if interface not in ("auto", found):
        raise ValueError(f"is {NAMES[found]}, but --interface is {interface}")
    return found


def _kind(value: Any, interface: str) -> str | None:
    one, three = _takes(value, 1), _takes(value, 3)
    if not _is_async(value):
        plain_app = interface == ASGI or not _is_function(value)
        return ASGI if three and not one and plain_app else None
    if one and (not three or interface != ASGI):
        return HANDLER
    return ASGI if three else None


def _is_async(value: Any) -> bool:
    return inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(getattr(value, "__call__", None))  # noqa: B004


def _is_function(value: Any) -> bool:
    return isinstance(value, FunctionType) or inspect.ismethod(value)


def _takes(value: Any, count: int) -> bool:
    try:
        inspect.signature(value).bind(*range(count))
    except (TypeError, ValueError):  # a ValueError: some functions in C do not say
        return False
    return True


def _describe_class(value: type, interface: str) -> str:
    if interface != HANDLER and inspect.iscoroutinefunction(value.__call__) and _takes(value, 1):
        return "is an ASGI 2 app, a class that is called with the scope: ASGI 3 is spoken, " + _WANTED[ASGI]
    if interface == HANDLER:
        return f"is a class, not a handler: {_WANTED[interface]}"
    return f"is a class: name an instance of it, or a function that returns one with --factory; {_WANTED[interface]}"


def _describe_fault(value: Any, interface: str) -> str:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return f"does not say what it takes: {_WANTED[interface]}"
    names = list(signature.parameters)
    wanted = _WANTED[interface]
    if interface != HANDLER:
        if names == ["scope"]:
            return f"takes (scope), as an ASGI 2 app does: ASGI 3 is spoken, {_WANTED[ASGI]}"
        if names[-2:] == ["environ", "start_response"]:
            return f"takes {signature}, as a WSGI app does, which is not served: {wanted}"
        if _takes(value, 0) and not names:
            return f"takes no arguments: with --factory it is called for the app; {wanted}"
    if not _is_async(value):
        return f"is no coroutine function: {wanted}"
    return f"takes {signature}: {wanted}"
