"""Decorators with which a target's module says what its functions are for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar

_ATTRIBUTE = "__wscluster_role__"

LifespanFunction = TypeVar("LifespanFunction", bound=Callable[[], AsyncIterator[Mapping[str, Any] | None]])
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


def lifespan(function: LifespanFunction) -> LifespanFunction:
    """Mark the async generator function that runs around the life of each worker.

    It is entered before the worker is ready and left when the last connection has closed. The mapping that it yields is
    `wscluster.this_worker.state`.
    """
    setattr(function, _ATTRIBUTE, "lifespan")
    return function


def process_request(function: AnyFunction) -> AnyFunction:
    """Mark the function (plain or async) that sees each request before the upgrade.

    It is called with the connection and the request; a response that it returns (``ws.respond(status, text)`` or a
    `websockets.http11.Response`) is sent instead of the upgrade.
    """
    setattr(function, _ATTRIBUTE, "process_request")
    return function


def marked(module: ModuleType, role: str) -> list[Callable[..., Any]]:
    """Return the functions of ``module`` that are marked with ``role``, each once."""
    found: dict[int, Callable[..., Any]] = {}
    for value in vars(module).values():
        if callable(value) and getattr(value, _ATTRIBUTE, None) == role:
            found.setdefault(id(value), value)
    return list(found.values())
