"""Redis or Valkey: the one file that talks to it.

Two connections for each process. `Commands` writes what it is given in pipelines, never sends anything twice, and
answers within a deadline. `Subscriber` hears channels, notices by its own heartbeat that the server is gone, comes back
by itself and subscribes again. Both stand on redis-py's connection, which speaks the protocol and logs in.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable
from typing import Any

from redis.asyncio.connection import AbstractConnection, ConnectionPool, UnixDomainSocketConnection
from redis.exceptions import AuthenticationError, NoScriptError, RedisError, ResponseError

from wscluster.envelope import PUBLISH_SCRIPT
from wscluster.errors import StartError
from wscluster.unsent import Argument, Command, UnsentCommands, WantedChannels
from wscluster.urls import find_url_fault, hide_password

Opened = tuple[AbstractConnection, asyncio.WriteTransport]

FIRST_BACKOFF = 0.05
MAX_BACKOFF = 2.0
CONNECT_SECONDS = 2.5
PING_SECONDS = 1.5
PONG_SECONDS = 2.5
"""Silence after a PING that means the server is gone: with the interval before it, noticed within 4 seconds."""

CLOSING = "not sent, because the worker is closing"

logger = logging.getLogger("wscluster.bus")


def make_connection(url: str) -> AbstractConnection:
    """Return a connection to ``url`` that is not open yet. It never retries; its reads have no timeout of their own.

    Raises:
        ValueError: The URL is malformed.
    """
    pool = ConnectionPool.from_url(url)
    # After the URL's own parameters: these are not for the URL to decide.
    pool.connection_kwargs.update(
        protocol=2,
        decode_responses=False,
        socket_timeout=None,
        socket_connect_timeout=CONNECT_SECONDS,
        health_check_interval=0,
        retry=None,
        retry_on_timeout=False,
    )
    if not issubclass(pool.connection_class, UnixDomainSocketConnection):
        pool.connection_kwargs["socket_keepalive"] = True
    connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
    return connection


async def _open(url: str) -> Opened:
    """Return an open connection, for `_end`.

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


async def _end(connection: AbstractConnection, transport: asyncio.WriteTransport) -> None:
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
            connection, transport = await _open(url)
            try:
                await connection.send_command("PING")
                await connection.read_response(timeout=math.inf)
            finally:
                await _end(connection, transport)
    except TimeoutError as exc:
        raise StartError(f"--redis-url {shown}: no answer within {min(timeout, CONNECT_SECONDS):g} s") from exc
    except (RedisError, OSError, TypeError, ValueError) as exc:
        # redis-py makes a ConnectionError of every failure to connect.
        login = "the server refuses the login: " if isinstance(exc.__cause__, AuthenticationError) else ""
        raise StartError(f"--redis-url {shown}: {login}{exc}") from exc


def _backoff(failures: int) -> float:
    return min(MAX_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures, 16)) * (0.5 + random.random() / 2)


class Commands:
    """Sends commands in pipelines, in the order in which they were given, one pipeline under way at a time.

    Args:
        url: The server.
        timeout: Seconds within which each command is answered or fails.
    """

    def __init__(self, url: str, timeout: float, loop: asyncio.AbstractEventLoop) -> None:
        self._url = url
        self._timeout = timeout
        self._loop = loop
        self._unsent = UnsentCommands()
        self._wake = asyncio.Event()
        self._expiry: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._last_error = "it was not reached yet"

    def send(self, *arguments: Argument) -> asyncio.Future[Any]:
        """Queue one command; the future gets the answer.

        The future fails with `BusUnavailable` after the timeout, and at once where the server refuses the command, the
        connection breaks while it is under way, or too much waits.
        """
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._unsent.add(arguments, self._loop.time() + self._timeout, answer)
        if self._closed:
            self._unsent.fail_all(CLOSING)
            return answer
        self._wake.set()
        if self._task is None:
            self._task = self._loop.create_task(self._run())
        if self._expiry is None:
            self._expiry = self._loop.call_later(self._timeout, self._expire)
        return answer

    async def close(self) -> None:
        """Close the connection; what waits fails, and so does whatever is sent later."""
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._unsent.fail_all(CLOSING)

    def _expire(self) -> None:
        self._unsent.expire(self._loop.time() + 0.001, f"not sent within {self._timeout:g} s: {self._last_error}")
        due = self._unsent.next_deadline
        self._expiry = None if due is None else self._loop.call_at(due, self._expire)

    async def _run(self) -> None:
        failures = 0
        while True:
            await self._wait_work()
            if failures:
                await asyncio.sleep(_backoff(failures - 1))
            try:
                connection, transport = await self._connect()
            except (RedisError, OSError) as exc:
                self._last_error = str(exc) or "no answer"
                failures += 1
                continue
            failures += 1  # until it has answered
            try:
                while True:
                    await self._wait_work()
                    if await connection.can_read():
                        break  # the server closed it while it was idle: nothing was sent, so nothing is lost
                    await self._exchange(connection, self._unsent.take_batch())
                    failures = 0
            except (RedisError, OSError) as exc:
                self._last_error = str(exc) or "no answer"
                logger.warning("the bus does not answer: %s", self._last_error)
            finally:
                await _end(connection, transport)

    async def _connect(self) -> Opened:
        """Open a connection whose server knows the script: learnt within a pipeline, its first would be its last."""
        connection, transport = await _open(self._url)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await connection.send_command("SCRIPT", "LOAD", PUBLISH_SCRIPT)
                await connection.read_response(timeout=math.inf, disconnect_on_error=False)
        except ResponseError:
            pass  # an account that may not: each pipeline says so itself
        except BaseException:
            await _end(connection, transport)
            raise
        return connection, transport

    async def _wait_work(self) -> None:
        while not self._unsent:
            self._wake.clear()
            await self._wake.wait()

    async def _exchange(self, connection: AbstractConnection, batch: list[Command]) -> None:
        """Send ``batch`` and read its answers; what the server did not know the script for is sent once more."""
        if not batch:
            return
        try:
            async with asyncio.timeout_at(max(batch[0].deadline, self._loop.time() + 0.1)):
                unknown = await self._pipeline(connection, batch)
                if unknown:
                    # Not executed, so sending it again sends nothing twice.
                    await connection.send_command("SCRIPT", "LOAD", PUBLISH_SCRIPT)
                    await connection.read_response(timeout=math.inf, disconnect_on_error=False)
                    for command in await self._pipeline(connection, unknown):
                        command.fail("the server forgets its scripts")
        finally:
            for command in batch:
                command.fail("no answer: whether it was done is unknown")

    async def _pipeline(self, connection: AbstractConnection, batch: list[Command]) -> list[Command]:
        """Send ``batch`` in one write; returns the commands that were answered by NOSCRIPT."""
        packed = connection.pack_commands([command.arguments for command in batch])
        await connection.send_packed_command(packed, check_health=False)
        unknown = []
        for command in batch:
            try:
                answer = await connection.read_response(timeout=math.inf, disconnect_on_error=False)
            except NoScriptError:
                unknown.append(command)
            except ResponseError as exc:
                command.fail(f"the server refuses: {exc}")
            else:
                if not command.answer.done():
                    command.answer.set_result(answer)
        return unknown


class Subscriber:
    """Hears channels through one connection that comes back by itself.

    Args:
        url: The server.
        on_message: Called with channel and data of each message.
        on_subscribed: Called with the channel each time the server has confirmed a subscription, after a reconnect too.
        on_connected: Called with the server's run id (None: it does not say) before any confirmation.
        on_lost: Called with the reason when the connection has ended.
    """

    def __init__(
        self,
        url: str,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[bytes, bytes], None],
        on_subscribed: Callable[[bytes], None],
        on_connected: Callable[[str | None], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._url = url
        self._loop = loop
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._channels = WantedChannels()
        self._wake = asyncio.Event()
        self._heard_at = 0.0
        self._pinged_at: float | None = None
        self.connected = False
        self._task = loop.create_task(self._run())

    def subscribe(self, channel: bytes) -> None:
        """Hear ``channel`` from now on; `on_subscribed` tells when."""
        self._channels.add(channel)
        self._wake.set()

    def unsubscribe(self, channel: bytes) -> None:
        """Hear ``channel`` no more."""
        self._channels.discard(channel)
        self._wake.set()

    async def close(self) -> None:
        """Close the connection."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        failures = 0
        while True:
            reason = "it closed the connection"
            try:
                connection, transport = await _open(self._url)
                try:
                    self._on_connected(await _run_id(connection))
                    self.connected = True
                    failures = 0
                    self._channels.tell_again()
                    await self._live(connection, transport)
                finally:
                    await _end(connection, transport)
            except (RedisError, OSError) as exc:
                reason = str(exc) or "no answer"
            if self.connected:
                self.connected = False
                self._on_lost(reason)
            elif failures == 0:
                logger.warning("the bus cannot be reached: %s; trying again", reason)
            await asyncio.sleep(_backoff(failures))
            failures += 1

    async def _live(self, connection: AbstractConnection, transport: asyncio.WriteTransport) -> None:
        """Hear and speak until the connection ends, which it does by an exception."""
        self._heard_at = self._loop.time()
        self._pinged_at = None
        self._wake.set()
        speaking = self._loop.create_task(self._speak(connection))
        speaking.add_done_callback(lambda _: transport.abort())  # which ends the reading
        try:
            while True:
                answer = await connection.read_response(timeout=math.inf, disconnect_on_error=False)
                self._heard_at = self._loop.time()
                if isinstance(answer, list) and len(answer) == 3:
                    if answer[0] == b"message":
                        self._on_message(answer[1], answer[2])
                    elif answer[0] == b"subscribe" and answer[1] in self._channels:
                        self._on_subscribed(answer[1])
        except (RedisError, OSError):
            if speaking.done() and not speaking.cancelled() and (cause := speaking.exception()) is not None:
                raise cause from None
            raise
        finally:
            speaking.cancel()
            await asyncio.wait([speaking])

    async def _speak(self, connection: AbstractConnection) -> None:
        """Write what is wanted, and a PING whenever the server has been silent; end the connection when it stays so."""
        while True:
            self._wake.clear()
            for command in self._channels.take_untold():
                await _say(connection, *command)
            try:
                async with asyncio.timeout_at(await self._keep_alive(connection)):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _keep_alive(self, connection: AbstractConnection) -> float:
        """PING where it is due; returns when to look again.

        Raises:
            ConnectionResetError: The last PING was not answered in time.
        """
        now = self._loop.time()
        if self._pinged_at is not None and self._heard_at >= self._pinged_at:
            self._pinged_at = None
        if self._pinged_at is not None:
            if now - self._pinged_at >= PONG_SECONDS:
                raise ConnectionResetError(f"no answer to a PING within {PONG_SECONDS:g} s")
            return self._pinged_at + PONG_SECONDS
        if now - self._heard_at < PING_SECONDS:
            return self._heard_at + PING_SECONDS
        self._pinged_at = now
        await _say(connection, "PING")
        return now + PONG_SECONDS


async def _say(connection: AbstractConnection, *command: str | bytes) -> None:
    """Write ``command``.

    Raises:
        ConnectionResetError: Not in time: the socket of a server that hangs may be full before a PING is due.
    """
    try:
        async with asyncio.timeout(PONG_SECONDS):
            await connection.send_command(*command)
    except TimeoutError:
        raise ConnectionResetError(f"nothing was taken for {PONG_SECONDS:g} s") from None


async def _run_id(connection: AbstractConnection) -> str | None:
    """Return the id that the server took when it started: another one means that its memory is another."""
    await connection.send_command("INFO", "server")
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            info = await connection.read_response(timeout=math.inf, disconnect_on_error=False)
    except ResponseError:
        return None  # an account that may not ask
    for line in bytes(info).split(b"\r\n"):
        if line.startswith(b"run_id:"):
            return line.removeprefix(b"run_id:").decode()
    return None
