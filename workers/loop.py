"""Lets the event loops of this process listen through the primary: whatever program runs on them, unmodified."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from wscluster.loops import loop_classes
from wscluster.workers.fastnet import feed_fastnet
from wscluster.workers.fed_server import FedServer, ProtocolFactory, tls_arguments
from wscluster.workers.listening import Place


class Host(Protocol):
    """Whoever listens for the loops of this process."""

    async def listen(
        self,
        loop: asyncio.AbstractEventLoop,
        factory: ProtocolFactory,
        places: Sequence[Place],
        backlog: int,
        options: dict[str, Any],
    ) -> FedServer:
        """Return a server for ``places`` that does not serve yet; ``options`` are those of `FedServer`."""
        ...

    def refuse_socket(self) -> None:
        """The program has bound a TCP socket itself and wants the loop to listen on it."""
        ...

    def loop_closes(self, loop: asyncio.AbstractEventLoop) -> None:
        """``loop`` is about to be closed."""
        ...


def feed_loops(host: Host) -> Callable[[], None]:
    """Replace what listens on the classes of the loops, so that every loop of this process listens through ``host``.

    The classes, because a program makes its loops itself, and may derive its own from them. Returns what puts them
    back.
    """
    undo: list[Callable[[], None]] = []
    for kind in loop_classes():
        undo += [
            _replace(kind, "create_server", functools.partial(_create_server, host)),
            _replace(kind, "create_unix_server", functools.partial(_create_unix_server, host)),
            _replace(kind, "close", functools.partial(_close, host)),
        ]
    # They are called as methods are, with the loop first; there is no original for a Unix socket that is open already.
    undo.append(feed_fastnet(functools.partial(_listen_tcp, host), functools.partial(_listen_unix, host)))

    def put_back() -> None:
        for one in reversed(undo):
            one()

    return put_back


def _replace(kind: type[Any], name: str, make: Callable[[Any], Any]) -> Callable[[], None]:
    original = getattr(kind, name)
    owner = next(base for base in kind.__mro__ if name in vars(base))
    made = functools.wraps(original)(make(original))
    try:
        setattr(owner, name, made)
    except TypeError:  # written in C: the class in Python that is derived from it takes it
        setattr(kind, name, made)
        return lambda: delattr(kind, name)
    return lambda: setattr(owner, name, original)


def _create_server(host: Host, original: Any) -> Any:
    async def create_server(
        self: asyncio.AbstractEventLoop, protocol_factory: ProtocolFactory, *args: Any, **options: Any
    ) -> Any:
        sock = options.get("sock")
        if sock is not None and sock.family == socket.AF_UNIX:
            return await original(self, protocol_factory, *args, **options)
        return await _listen_tcp(host, self, protocol_factory, *args, **options)

    return create_server


def _create_unix_server(host: Host, original: Any) -> Any:
    async def create_unix_server(
        self: asyncio.AbstractEventLoop, protocol_factory: ProtocolFactory, path: Any = None, **options: Any
    ) -> Any:
        if options.get("sock") is not None:
            return await original(self, protocol_factory, path, **options)
        return await _listen_unix(host, self, protocol_factory, path, **options)

    return create_unix_server


def _close(host: Host, original: Any) -> Any:
    def close(self: asyncio.AbstractEventLoop) -> None:
        # Of a loop that runs the original says what is wrong.
        if not self.is_running() and not self.is_closed():
            host.loop_closes(self)
        original(self)

    return close


async def _listen_tcp(
    to: Host,
    loop: asyncio.AbstractEventLoop,
    protocol_factory: ProtocolFactory,
    host: Any = None,
    port: Any = None,
    *,
    family: int = socket.AF_UNSPEC,
    flags: int = socket.AI_PASSIVE,
    sock: Any = None,
    backlog: int = 100,
    ssl: Any = None,
    reuse_address: bool | None = None,
    reuse_port: bool | None = None,
    keep_alive: bool | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    start_serving: bool = True,
    connect: Any = None,
) -> FedServer:
    """Stand in for ``create_server()``, with its arguments and errors.

    The primary binds as asyncio does, so ``flags``, ``reuse_address`` and ``reuse_port`` change nothing here.
    """
    tls = tls_arguments(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
    if host is None and port is None:
        if sock is None:
            raise ValueError("Neither host/port nor sock were specified")
        if sock.type != socket.SOCK_STREAM:
            raise ValueError(f"A Stream Socket was expected, got {sock!r}")
        to.refuse_socket()
    if sock is not None:
        raise ValueError("host/port and sock can not be specified at the same time")
    several = not isinstance(host, str | bytes) and isinstance(host, Iterable)
    hosts = host if several else [host]
    places = [Place(_text_of(one), _port_of(port), family) for one in hosts]
    if not places:
        raise OSError("could not bind on any address out of []")
    options = {**tls, "keep_alive": bool(keep_alive), "connect": connect}
    server = await to.listen(loop, protocol_factory, places, backlog, options)
    return await _started(server, start_serving)


async def _listen_unix(
    to: Host,
    loop: asyncio.AbstractEventLoop,
    protocol_factory: ProtocolFactory,
    path: Any,
    *,
    sock: None = None,
    backlog: int = 100,
    ssl: Any = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    start_serving: bool = True,
    cleanup_socket: bool = True,
    connect: Any = None,
) -> FedServer:
    """Stand in for ``create_unix_server()``, with its arguments and errors; the primary removes the file at its end."""
    tls = tls_arguments(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
    if path is None:
        raise ValueError("path was not specified, and no sock specified")
    server = await to.listen(loop, protocol_factory, [_unix_place(os.fsdecode(path))], backlog,
                             {**tls, "connect": connect})  # fmt: skip
    return await _started(server, start_serving)


async def _started(server: FedServer, start_serving: bool) -> FedServer:
    if start_serving:
        await server.start_serving()
    return server


def _unix_place(path: str) -> Place:
    if path.startswith("\0"):
        return Place(path=path, name=os.fsencode(path))
    # Workers in different folders do not mean the same.
    return Place(path=os.path.abspath(path), name=path)


def _text_of(host: Any) -> str:
    if host is None:
        return ""
    return host.decode("ascii") if isinstance(host, bytes | bytearray) else str(host)


def _port_of(port: Any) -> int:
    """Return the number of a port that was given as a number, its text, or the name of a service."""
    if port is None:
        return 0
    if isinstance(port, str | bytes):
        name = os.fsdecode(port)
        try:
            number = int(name or "0")
        except ValueError:
            try:
                number = socket.getservbyname(name, "tcp")
            except OSError:
                raise socket.gaierror(socket.EAI_SERVICE, "Servname not supported for ai_socktype") from None
    else:
        number = port.__index__()
    if not 0 <= number <= 65535:
        raise OverflowError("bind(): port must be 0-65535.")
    return number
