"""Lets a protocol see the true client of a connection that came through a balancer with the PROXY protocol."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from wscluster.packets import Offered


def with_true_client(
    factory: Callable[[], asyncio.BaseProtocol], sock: socket.socket, offered: Offered
) -> Callable[[], asyncio.BaseProtocol]:
    """Return ``factory``, or one whose protocols find the address of ``offered`` as that of their peer.

    Their transport says it for ``peername``, and so does its ``socket``. Where the socket's own peer has that address,
    and on a Unix socket without one, nothing is put around anything.
    """
    try:
        peer = sock.getpeername()
    except OSError:  # it has already gone
        return factory
    if not offered.host or (isinstance(peer, tuple) and peer[:2] == (offered.host, offered.port)):
        return factory
    # The tuple of IPv6 also has flow and scope.
    client = (offered.host, offered.port, 0, 0) if ":" in offered.host else (offered.host, offered.port)
    return functools.partial(_Introduction, factory, client)


class _Introduction(asyncio.Protocol):
    """Is called with the transport, hands it on in its wrapper, and is out of the way."""

    def __init__(self, factory: Callable[[], asyncio.BaseProtocol], client: tuple[Any, ...]) -> None:
        self._protocol = factory()
        self._client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        made = cast("asyncio.Transport", transport)  # uvloop's are none by their class
        made.set_protocol(self._protocol)
        self._protocol.connection_made(ProxiedTransport(made, self._client))


class ProxiedTransport(asyncio.Transport):
    """A transport whose peer is ``client``; everything else is that of ``transport``."""

    def __init__(self, transport: asyncio.Transport, client: tuple[Any, ...]) -> None:
        super().__init__()
        self._transport = transport
        self._client = client

    def __getattr__(self, name: str) -> Any:
        # What a loop's own transports have beyond the documented methods.
        return getattr(self._transport, name)

    def __repr__(self) -> str:
        return f"<ProxiedTransport client={self._client!r} {self._transport!r}>"

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peername":
            return self._client
        value = self._transport.get_extra_info(name, default)
        return ProxiedSocket(value, self._client) if name == "socket" and value is not None else value

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._transport.write(data)

    def writelines(self, list_of_data: Any) -> None:
        self._transport.writelines(list_of_data)

    def write_eof(self) -> None:
        self._transport.write_eof()

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def abort(self) -> None:
        self._transport.abort()

    def close(self) -> None:
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def is_reading(self) -> bool:
        return self._transport.is_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._transport.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._transport.get_protocol()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._transport.get_write_buffer_limits()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()


class ProxiedSocket:
    """The ``socket`` of a `ProxiedTransport`: its peer is the true client."""

    def __init__(self, sock: Any, client: tuple[Any, ...]) -> None:
        self._sock = sock
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def getpeername(self) -> tuple[Any, ...]:
        """Return the address of the true client."""
        return self._client
