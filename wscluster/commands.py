"""Commands to the bus: written in pipelines, answered within a deadline, and nothing is ever sent twice."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

from wscluster.broker import (
    CONNECT_SECONDS,
    AbstractConnection,
    NoScriptError,
    Opened,
    RedisError,
    ResponseError,
    backoff,
    end_connection,
    open_connection,
)
from wscluster.envelope import PUBLISH_SCRIPT
from wscluster.errors import WsclusterError
from wscluster.unsent import Argument, Command, UnsentCommands

CLOSING = "not sent, because this side is closing"

logger = logging.getLogger("wscluster.bus")


class Commands:
    """Sends commands in pipelines, in the order in which they were given, one pipeline under way at a time.

    Args:
        url: The server.
        timeout: Seconds within which each command is answered or fails.
        find_url: Asked where the server is when it cannot be reached; it may raise `WsclusterError`.
    """

    def __init__(
        self,
        url: str,
        timeout: float,
        loop: asyncio.AbstractEventLoop,
        find_url: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        self._url = url
        self._timeout = timeout
        self._find_url = find_url
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
                await asyncio.sleep(backoff(failures - 1))
                await self._look_again()
            failures += 1  # until it has answered
            try:
                connection, transport = await self._connect()
            except Exception as exc:
                if not isinstance(exc, (RedisError, OSError, ValueError)):  # ValueError: a host that is no name
                    logger.exception("the connection to the bus cannot be opened")
                self._last_error = str(exc) or "no answer"
                continue
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
            except Exception:
                self._last_error = "a fault of wscluster"
                logger.exception("a pipeline to the bus failed: connecting again")
            finally:
                await end_connection(connection, transport)

    async def _look_again(self) -> None:
        if self._find_url is None:
            return
        try:
            self._url = await self._find_url()
        except (WsclusterError, ValueError) as exc:
            self._last_error = str(exc)

    async def _connect(self) -> Opened:
        """Open a connection whose server knows the script: learnt within a pipeline, its first would be its last."""
        connection, transport = await open_connection(self._url)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await connection.send_command("SCRIPT", "LOAD", PUBLISH_SCRIPT)
                await connection.read_response(timeout=math.inf, disconnect_on_error=False)
        except ResponseError:
            pass  # an account that may not: each pipeline says so itself
        except BaseException:
            await end_connection(connection, transport)
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
        unknown: list[Command] = []
        try:
            async with asyncio.timeout_at(max(batch[0].deadline, self._loop.time() + 0.1)):
                unknown = await self._pipeline(connection, batch)
                if unknown:
                    # Not executed, so sending it again sends nothing twice.
                    await connection.send_command("SCRIPT", "LOAD", PUBLISH_SCRIPT)
                    await connection.read_response(timeout=math.inf, disconnect_on_error=False)
                    for command in await self._pipeline(connection, unknown):
                        command.fail("the server forgets its scripts")
        except ResponseError as exc:
            for command in unknown:
                command.fail(f"the server refuses the script: {exc}")
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
