"""Decorators with which a target's module says what its functions are for."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar, overload

_ROLES = "__wscluster_roles__"
_REALM = "__wscluster_realm__"

LifespanFunction = TypeVar("LifespanFunction", bound=Callable[[], AsyncIterator[Mapping[str, Any] | None]])
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])
CheckFunction = TypeVar("CheckFunction", bound=Callable[[str, str], Awaitable[bool] | bool])


def lifespan(function: LifespanFunction) -> LifespanFunction:
    """Mark the async generator function that runs around the life of each worker.

    It is entered before the worker is ready and left when the last connection has closed. The mapping that it yields is
    `wscluster.this_worker.state`.
    """
    return _mark(function, "lifespan")


def process_request(function: AnyFunction) -> AnyFunction:
    """Mark the function (plain or async) that sees each request before the upgrade.

    It is called with the connection and the request; a response that it returns (``ws.respond(status, text)`` or a
    `websockets.http11.Response`) is sent instead of the upgrade.
    """
    return _mark(function, "process_request")


def process_response(function: AnyFunction) -> AnyFunction:
    """Mark the function (plain or async) that sees each response of the opening handshake before it is sent.

    It is called with the connection, the request and the response, which it may change (``response.headers``); a
    `websockets.http11.Response` that it returns is sent in its place. Responses of ``process_request`` and refusals
    come here too, unless the request could not be read at all.
    """
    return _mark(function, "process_response")


def select_subprotocol(function: AnyFunction) -> AnyFunction:
    """Mark the plain function that chooses the subprotocol.

    It is called with the connection and the list of subprotocols that the client offers, and returns one of them, or
    None to go on without; `websockets.exceptions.NegotiationError` refuses the connection with 400.
    """
    return _mark(function, "select_subprotocol")


@overload
def basic_auth(function: CheckFunction, /) -> CheckFunction:
    """Mark ``function``, without a realm."""


@overload
def basic_auth(*, realm: str = "") -> Callable[[CheckFunction], CheckFunction]:
    """Return what marks a function, with ``realm``."""


def basic_auth(function: Any = None, /, *, realm: str = "") -> Any:
    """Mark the function (plain or async) that says whether a user name and a password are good (RFC 7617).

    It is called with both as text before anything else sees the request, and returns True or False. True sets
    ``ws.username``; False, and a request without credentials, are answered with 401. Bytes that are not UTF-8 are
    surrogates in the text. How long the function takes tells a client something: compare secrets with
    `hmac.compare_digest`, of their bytes.

    Args:
        realm: Name of what is protected, in ASCII; a browser shows it.
    """

    def mark(function: CheckFunction) -> CheckFunction:
        setattr(function, _REALM, realm)
        return _mark(function, "basic_auth")

    return mark if function is None else mark(function)


def realm_of(function: Callable[..., Any]) -> str:
    """Return the realm with which ``function`` was marked; empty where it has none."""
    realm: str = inspect.getattr_static(function, _REALM, "")
    return realm


def marked(module: ModuleType, role: str) -> list[Callable[..., Any]]:
    """Return the functions of ``module`` that are marked with ``role``, each once."""
    found: dict[int, Callable[..., Any]] = {}
    for value in vars(module).values():
        # Statically, because a module may have objects that do something when they are asked for an attribute.
        if role in inspect.getattr_static(value, _ROLES, ()):
            found.setdefault(id(value), value)
    return list(found.values())


def _mark(function: AnyFunction, role: str) -> AnyFunction:
    setattr(function, _ROLES, (*getattr(function, _ROLES, ()), role))
    return function
