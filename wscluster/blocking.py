"""Commands to the bus for code without an event loop: one at a time, and nothing is ever sent twice."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

from wscluster.broker import (
    CONNECT_SECONDS,
    BlockingConnection,
    NoScriptError,
    RedisError,
    ResponseError,
    backoff,
    open_blocking,
)
from wscluster.envelope import PUBLISH_SCRIPT
from wscluster.errors import BusUnavailable, WsclusterError
from wscluster.unsent import Argument


class BlockingCommands:
    """One connection that the threads of a process use in turn; a process that is forked opens its own.

    Args:
        url: The server.
        timeout: Seconds within which each command is answered or fails.
        find_url: Asked where the server is when it cannot be reached; it may raise `WsclusterError`.
    """

    def __init__(self, url: str, timeout: float, find_url: Callable[[], str] | None = None) -> None:
        self._url = url
        self._timeout = timeout
        self._find_url = find_url
        self._lock = threading.Lock()
        self._connection: BlockingConnection | None = None
        _all.add(self)

    def send(self, *arguments: Argument) -> Any:
        """Send one command and return its answer.

        Raises:
            BusUnavailable: No answer within the timeout, or the server refuses the command.
        """
        deadline = time.monotonic() + self._timeout
        if not self._lock.acquire(timeout=self._timeout):
            _fail(f"not sent within {self._timeout:g} s: what other threads sent is not answered")
        try:
            connection = self._wait_connected(deadline)
            try:
                return _exchange(connection, arguments, deadline)
            except ResponseError as exc:
                _fail(f"the server refuses: {exc}")
            except BaseException as exc:
                # Whatever it was, an exception that a signal raised too: the next answer would be that of this command.
                self._drop()
                if isinstance(exc, (RedisError, OSError)):
                    _fail("no answer: whether it was done is unknown")
                raise
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the connection; the next command opens another."""
        with self._lock:
            self._drop()

    def forget(self) -> None:
        """Leave the connection to the process that this one was forked from, where another thread may have used it."""
        self._lock = threading.Lock()
        self._drop()

    def _wait_connected(self, deadline: float) -> BlockingConnection:
        """Return a connection on which nothing is under way; only to open it is tried again and again."""
        failures, reason = 0, "it was not reached"
        while True:
            if self._connection is not None and _is_idle(self._connection):
                return self._connection
            self._drop()
            if (left := deadline - time.monotonic()) <= 0:
                _fail(f"not sent within {self._timeout:g} s: {reason}")
            try:
                self._connection = open_blocking(self._url, min(CONNECT_SECONDS, left))
                continue
            except (RedisError, OSError, ValueError) as exc:  # ValueError: a host that is no name
                reason = str(exc) or "no answer"
            time.sleep(max(0.0, min(backoff(failures), deadline - time.monotonic())))
            failures += 1
            if self._find_url is not None:
                try:
                    self._url = self._find_url()
                except (WsclusterError, ValueError) as exc:
                    reason = str(exc)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()  # type: ignore[no-untyped-call]


def _is_idle(connection: BlockingConnection) -> bool:
    """Say whether the connection is open and silent, as it is where every answer was read."""
    try:
        return not connection.can_read()
    except RedisError:
        return False


def _exchange(connection: BlockingConnection, arguments: tuple[Argument, ...], deadline: float) -> Any:
    try:
        return _ask(connection, arguments, deadline)
    except NoScriptError:
        # Not executed, so sending it again sends nothing twice.
        _ask(connection, ("SCRIPT", "LOAD", PUBLISH_SCRIPT), deadline)
        return _ask(connection, arguments, deadline)


def _ask(connection: BlockingConnection, arguments: tuple[Argument, ...], deadline: float) -> Any:
    sock = connection._sock
    assert sock is not None
    sock.settimeout(max(0.001, deadline - time.monotonic()))
    connection.send_command(*arguments, check_health=False)
    sock.settimeout(max(0.001, deadline - time.monotonic()))
    return connection.read_response(disconnect_on_error=False)


def _fail(reason: str) -> NoReturn:
    raise BusUnavailable(f"the bus is unavailable: {reason}")


_all: weakref.WeakSet[BlockingCommands] = weakref.WeakSet()


def _forked() -> None:
    for commands in list(_all):
        commands.forget()


os.register_at_fork(after_in_child=_forked)
