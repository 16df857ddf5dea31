"""What the target is: imports ``module:attribute`` and says what can be done with it."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, fields
from types import ModuleType, TracebackType
from typing import Any

from wscluster import marks
from wscluster.config import Asgi, Config, Handshake, flag_of
from wscluster.errors import TargetError
from wscluster.workers.kinds import ASGI, kind_of

ROLES = {
    "lifespan": (),
    "process_request": ("the connection", "the request"),
    "process_response": ("the connection", "the request", "the response"),
    "select_subprotocol": ("the connection", "the subprotocols that the client offers"),
    "basic_auth": ("the user name", "the password"),
}
"""What a function beside the handler can be for, and what it is called with."""


HANDSHAKE_ONLY = tuple(
    item.name for item in fields(Handshake) if item.name not in ("proxy_headers", "forwarded_allow_ips")
)
"""Options of the opening handshake that an ASGI app does for itself."""
WEBSOCKET_ONLY = ("ws_message_timeout", "max_send_queue", "limit_max_messages")
"""Options of a handler's WebSocket that uvicorn has no counterpart of."""


@dataclass(frozen=True, slots=True)
class Target:
    """A handler, and the functions that are marked in its module or named by a flag."""

    handler: Callable[[Any], Awaitable[None]]
    lifespan: Callable[[], Any] | None = None
    process_request: Callable[[Any, Any], Any] | None = None
    process_response: Callable[[Any, Any, Any], Any] | None = None
    select_subprotocol: Callable[[Any, Any], Any] | None = None
    basic_auth: Callable[[str, str], Any] | None = None


@dataclass(frozen=True, slots=True)
class App:
    """An ASGI 3 app."""

    app: Callable[[Any, Any, Any], Awaitable[None]]


def load_target(config: Config) -> Target | App:
    """Import the target of ``config`` (``module:attribute``, dots allowed in both), with its ``app_dir`` importable.

    A function of the opening handshake that an option names takes the place of a marked one.

    Raises:
        TargetError: It cannot be imported, or is nothing that can be served; or a function cannot be what it is for;
            or an option is for the other kind of target.
    """
    folder = os.path.abspath(config.operate.app_dir)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = config.target
    module, value = import_path(name, folder)
    interface = config.operate.interface
    who = repr(name)
    if config.asgi.factory:
        who, value, interface = f"what {name!r} returned", _call_factory(name, value), ASGI
    try:
        kind = kind_of(value, interface)
    except ValueError as exc:
        raise TargetError(f"{who} {exc}") from None
    if kind == ASGI:
        _refuse_handler_options(name, module, config)
        return App(value)
    _refuse_given(f"{name!r} is a handler, but {{}} is for ASGI apps", config.asgi, [i.name for i in fields(Asgi)])
    functions: dict[str, Callable[..., Any] | None] = {}
    for role in ROLES:
        named = getattr(config.handshake, role, None)
        functions[role] = _only(module, role) if named is None else _named(role, named, folder)
    return Target(value, **functions)


def _call_factory(name: str, factory: Any) -> Any:
    if not callable(factory):
        raise TargetError(f"{name!r} is of the type {type(factory).__name__!r}: --factory wants a function")
    try:
        inspect.signature(factory).bind()
    except TypeError:
        raise TargetError(f"{name!r} takes arguments, but with --factory it is called without any") from None
    except ValueError:  # some functions in C do not say
        pass
    try:
        app = factory()
    except (Exception, SystemExit) as exc:
        brief = " ".join(traceback.format_exception_only(exc)[-1].split())
        raise TargetError(f"the factory {name!r} raised {brief}", user_traceback(exc)) from exc
    if inspect.iscoroutine(app):
        app.close()
        raise TargetError(f"the factory {name!r} is a coroutine function, but it is not awaited: `def` is wanted")
    return app


def _refuse_handler_options(name: str, module: ModuleType, config: Config) -> None:
    text = f"{name!r} is an ASGI app, but {{}} is for handlers"
    _refuse_given(text, config.handshake, HANDSHAKE_ONLY)
    _refuse_given(text, config.websocket, WEBSOCKET_ONLY)
    for role in ROLES:
        if marks.marked(module, role):
            hint = ": an app has its own lifespan, which is spoken" if role == "lifespan" else ""
            raise TargetError(f"{text.format(f'@wscluster.{role} of {module.__name__!r}')}{hint}")


def _refuse_given(text: str, group: Any, names: Iterable[str]) -> None:
    """Refuse options whose values are not their defaults; ``text`` says why of the flag in its braces."""
    usual = type(group)()
    given = [flag_of(name) for name in names if getattr(group, name) != getattr(usual, name)]
    if given:
        raise TargetError(text.format(", ".join(given)).replace(" is for", " are for" if len(given) > 1 else " is for"))


def import_path(name: str, folder: str) -> tuple[ModuleType, Any]:
    module_name, _, path = name.partition(":")
    module = _import_module(module_name, folder)
    value: Any = module
    for step in path.split("."):
        try:
            value = getattr(value, step)
        except AttributeError:
            raise TargetError(f"module {module_name!r} has no attribute {path!r}{_hint(module, path)}") from None
    return module, value


def _import_module(name: str, folder: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        # The target itself is missing, or something that it imports is: only the latter is the user's own code.
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            raise TargetError(f"no module named {exc.name!r} in {folder} or on the import path") from None
        raise _import_failed(name, exc) from exc
    except BaseException as exc:  # a module may raise anything, SystemExit too
        raise _import_failed(name, exc) from exc


def _import_failed(name: str, exc: BaseException) -> TargetError:
    brief = " ".join(traceback.format_exception_only(exc)[-1].split())
    return TargetError(f"module {name!r} cannot be imported: {brief}", user_traceback(exc))


def user_traceback(exc: BaseException) -> str:
    """Return the traceback of ``exc`` without the frames of wscluster and of the import machinery."""
    tb: TracebackType | None = exc.__traceback__
    while tb is not None and _is_ours(tb.tb_frame.f_code.co_filename):
        tb = tb.tb_next
    return "".join(traceback.format_exception(type(exc), exc, tb))


def _is_ours(filename: str) -> bool:
    return "importlib" in filename or os.path.dirname(os.path.abspath(filename)) == os.path.dirname(__file__)


def _hint(module: ModuleType, path: str) -> str:
    import difflib

    names = [name for name, value in vars(module).items() if inspect.iscoroutinefunction(value)]
    close = difflib.get_close_matches(path, names, n=1) or names[:3]
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def _only(module: ModuleType, role: str) -> Callable[..., Any] | None:
    found = marks.marked(module, role)
    if len(found) > 1:
        names = ", ".join(getattr(function, "__name__", "?") for function in found)
        raise TargetError(f"module {module.__name__!r} marks more than one function @wscluster.{role}: {names}")
    if not found:
        return None
    return _check_function(f"@wscluster.{role} of {module.__name__!r}", role, found[0])


def _named(role: str, name: str, folder: str) -> Callable[..., Any]:
    who = f"{flag_of(role)} {name}"
    try:
        _, value = import_path(name, folder)
    except TargetError as exc:
        raise TargetError(f"{who}: {exc}", exc.traceback) from exc
    return _check_function(who, role, value)


def _check_function(who: str, role: str, value: Any) -> Callable[..., Any]:
    """Return the function ``value`` where it can be called for ``role``; ``who`` begins the message where not."""
    if not callable(value):
        raise TargetError(f"{who} is no function, but of the type {type(value).__name__!r}")
    if role == "lifespan" and not inspect.isasyncgenfunction(value):
        raise TargetError(f"{who} is no async generator function (`yield` once)")
    if role == "select_subprotocol" and inspect.iscoroutinefunction(value):
        raise TargetError(f"{who} is a coroutine function, but it cannot wait: `def` is wanted")
    try:
        signature = inspect.signature(value)
    except (ValueError, TypeError):  # some functions in C do not say
        return value  # type: ignore[no-any-return]
    wanted = ROLES[role]
    try:
        signature.bind(*wanted)
    except TypeError:
        arguments = ", ".join(wanted) or "no arguments"
        raise TargetError(f"{who} takes {signature}, but it is called with {arguments}") from None
    if role == "basic_auth":
        _check_realm(who, value)
    return value  # type: ignore[no-any-return]


def _check_realm(who: str, function: Callable[..., Any]) -> None:
    realm = marks.realm_of(function)
    if not isinstance(realm, str) or not ((realm.isascii() and realm.isprintable()) or not realm):
        raise TargetError(f"{who} has the realm {realm!r}: printable ASCII is wanted")
