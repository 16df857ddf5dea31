"""Redis or Valkey: the one file that knows redis-py, whose connections speak the protocol and log in.

`Commands`, `Subscriber` and `BlockingCommands`, each in a module of its own, stand on it.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
from typing import Any

from redis import connection as blocking
from redis.asyncio.connection import AbstractConnection, ConnectionPool, UnixDomainSocketConnection
from redis.exceptions import AuthenticationError, NoScriptError, RedisError, ResponseError

from wscluster.errors import StartError
from wscluster.urls import find_url_fault, hide_password

__all__ = [
    "CONNECT_SECONDS",
    "AbstractConnection",
    "BlockingConnection",
    "NoScriptError",
    "Opened",
    "RedisError",
    "ResponseError",
    "backoff",
    "end_connection",
    "make_connection",
    "open_blocking",
    "open_connection",
    "probe",
]

Opened = tuple[AbstractConnection, asyncio.WriteTransport]
BlockingConnection = blocking.AbstractConnection

FIRST_BACKOFF = 0.05
MAX_BACKOFF = 2.0
CONNECT_SECONDS = 2.5
UNANSWERED_SECONDS = 4.0
"""What was sent over TCP and is not acknowledged for so long ends the connection."""

# For every connection, whatever its URL says: these are not for a URL to decide.
_ALWAYS: dict[str, Any] = {
    "protocol": 2,
    "decode_responses": False,
    "socket_timeout": None,
    "socket_connect_timeout": CONNECT_SECONDS,
    "health_check_interval": 0,
    "retry": None,
    "retry_on_timeout": False,
}
# Over TCP. With TCP_USER_TIMEOUT the kernel itself gives up on a peer that acknowledges nothing, which writing alone
# would not show for a quarter of an hour (tcp(7)).
_ALWAYS_TCP: dict[str, Any] = {
    "socket_keepalive": True,
    "socket_keepalive_options": (
        {socket.TCP_USER_TIMEOUT: round(UNANSWERED_SECONDS * 1000)} if hasattr(socket, "TCP_USER_TIMEOUT") else {}
    ),
}


def make_connection(url: str) -> AbstractConnection:
    """Return a connection to ``url`` that is not open yet. It never retries; its reads have no timeout of their own.

    Raises:
        ValueError: The URL is malformed.
    """
    pool = ConnectionPool.from_url(url)
    over_tcp = not issubclass(pool.connection_class, UnixDomainSocketConnection)
    pool.connection_kwargs.update(_ALWAYS | (_ALWAYS_TCP if over_tcp else {}))
    connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
    return connection


async def open_connection(url: str) -> Opened:
    """Return an open connection, for `end_connection`.

    Raises:
        RedisError, OSError: The server cannot be reached or refuses.
        TimeoutError: It does not answer.
    """
    connection = make_connection(url)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await connection.connect()  # type: ignore[no-untyped-call]
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    assert connection._writer is not None
    return connection, connection._writer.transport


def open_blocking(url: str, timeout: float) -> BlockingConnection:
    """Return an open connection for code without an event loop; each wait while it opens takes ``timeout`` seconds.

    Raises:
        ValueError: The URL is malformed.
        RedisError, OSError: The server cannot be reached, refuses, or does not answer.
    """
    pool = blocking.ConnectionPool.from_url(url)
    over_tcp = not issubclass(pool.connection_class, blocking.UnixDomainSocketConnection)
    pool.connection_kwargs.update(_ALWAYS | (_ALWAYS_TCP if over_tcp else {}))
    pool.connection_kwargs.update(socket_connect_timeout=timeout, socket_timeout=timeout)
    connection = pool.make_connection()
    assert isinstance(connection, BlockingConnection)
    connection.connect()  # type: ignore[no-untyped-call]
    return connection


async def end_connection(connection: AbstractConnection, transport: asyncio.WriteTransport) -> None:
    """End a connection at once; merely closed, it would wait until a server that hangs has taken what was written."""
    transport.abort()
    await connection.disconnect(nowait=True)


async def probe(url: str, timeout: float) -> None:
    """Check that a server answers at ``url`` within ``timeout`` seconds.

    Raises:
        StartError: It does not; the text says why, without the password.
    """
    shown = hide_password(url)
    if (fault := find_url_fault(url)) is not None:
        raise StartError(f"--redis-url {shown}: {fault}")
    try:
        async with asyncio.timeout(timeout):
            connection, transport = await open_connection(url)
            try:
                await connection.send_command("PING")
                await connection.read_response(timeout=math.inf)
            finally:
                await end_connection(connection, transport)
    except TimeoutError as exc:
        raise StartError(f"--redis-url {shown}: no answer within {min(timeout, CONNECT_SECONDS):g} s") from exc
    except (RedisError, OSError, TypeError, ValueError) as exc:
        # redis-py makes a ConnectionError of every failure to connect.
        login = "the server refuses the login: " if isinstance(exc.__cause__, AuthenticationError) else ""
        raise StartError(f"--redis-url {shown}: {login}{exc}") from exc


def backoff(failures: int) -> float:
    """Return how many seconds to wait after that many failures in a row: ever more, up to two, and never the same."""
    return min(MAX_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures, 16)) * (0.5 + random.random() / 2)
