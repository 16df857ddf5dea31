"""Feeds what listens with `aiofastnet`, whose transports stand beside those of the loop: picows uses it."""

from __future__ import annotations

import functools
import importlib.util
import socket
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAME = "aiofastnet"


class AfterImport:
    """Calls ``then`` with a top-level module as soon as a program has imported it; without the program nobody does."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._then = then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Find the module where the others find it, and be heard when it was executed."""
        if name != self._name or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self._then(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def feed_fastnet(tcp: Callable[..., Any], unix: Callable[..., Any]) -> Callable[[], None]:
    """Let `aiofastnet`'s ``create_server`` and ``create_unix_server`` be these once a program imports it.

    They are called with the loop, the arguments of the original, and ``connect``, which makes a transport of a socket.
    Returns what takes that back.
    """

    def then(module: ModuleType) -> None:
        for name, make in (("create_server", tcp), ("create_unix_server", unix)):
            original = getattr(module, name)
            _replace_everywhere(original, _replacement(original, make, module.connect_accepted_socket))

    hook = AfterImport(NAME, then)
    sys.meta_path.insert(0, hook)

    def take_back() -> None:
        if hook in sys.meta_path:
            sys.meta_path.remove(hook)

    return take_back


def _replacement(original: Any, make: Callable[..., Any], connect: Any) -> Any:
    @functools.wraps(original)
    async def create(
        loop: Any,
        protocol_factory: Any,
        *args: Any,
        ssl_incoming_bio_size: int | None = None,
        ssl_outgoing_bio_size: int | None = None,
        **options: Any,
    ) -> Any:
        sock = options.get("sock")
        if sock is not None and sock.family == socket.AF_UNIX:
            return await original(loop, protocol_factory, *args, **options)
        sizes = {"ssl_incoming_bio_size": ssl_incoming_bio_size, "ssl_outgoing_bio_size": ssl_outgoing_bio_size}
        given = {name: size for name, size in sizes.items() if size is not None}
        return await make(loop, protocol_factory, *args, connect=functools.partial(connect, loop, **given), **options)

    return create


def _replace_everywhere(original: Any, replacement: Any) -> None:
    """Its modules have imported the function from each other, and its table of methods has it too."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != NAME:
            continue
        for key, value in list(vars(module).items()):
            if value is original:
                setattr(module, key, replacement)
            elif isinstance(value, dict):
                value.update({inner: replacement for inner, one in value.items() if one is original})
