"""Hears channels of the bus, notices by its own heartbeat that the server is gone, and comes back by itself."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable

from wscluster.broker import (
    CONNECT_SECONDS,
    AbstractConnection,
    RedisError,
    ResponseError,
    backoff,
    end_connection,
    open_connection,
)
from wscluster.unsent import WantedChannels

PING_SECONDS = 1.5
PONG_SECONDS = 2.5
"""Silence after a PING that means the server is gone: with the interval before it, noticed within 4 seconds."""

LATE_SECONDS = 0.25
"""A loop that is late by more than that has not yet read what came meanwhile: it gets as long to do so, once."""
FAULTS_FORGOTTEN_SECONDS = 10.0

logger = logging.getLogger("wscluster.bus")


class Subscriber:
    """Hears channels through one connection that comes back by itself.

    It reads as fast as the process can and holds nothing back: the callbacks are called between two reads, may not wait
    for anybody, and see no more than a few hundred KiB in one turn of the loop. What a process is too slow to read
    waits in the server, which ends the connection at its limit (``client-output-buffer-limit pubsub``). Then it is
    subscribed again, and whoever is told of that looks at what was missed. So it is after a callback that raises.

    Args:
        url: The server.
        on_message: Called with channel and data of each message.
        on_subscribed: Called with the channel each time the server has confirmed a subscription, after a reconnect too.
        on_connected: Called with the server's run id (None: it does not say) before any confirmation.
        on_lost: Called with the reason when the connection has ended.

    Attributes:
        connected: Whether it hears the server.
        probe_seconds: What the last PING took that was answered; None before the first. While messages come, none is
            sent.
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
        self._probed_at = 0.0
        self._late = False
        self.probe_seconds: float | None = None
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
        failures = faults = 0
        while True:
            reason = "it closed the connection"
            began = self._loop.time()
            try:
                connection, transport = await open_connection(self._url)
                try:
                    self._on_connected(await _run_id(connection))
                    self.connected = True
                    failures = 0
                    self._channels.tell_again()
                    await self._live(connection, transport)
                finally:
                    await end_connection(connection, transport)
            except (RedisError, OSError) as exc:
                reason = str(exc) or "no answer"
                faults = 0
            except Exception:
                # Ours: what was heard may not have been handled. Whoever subscribes again looks at what was missed.
                logger.exception("what the bus said could not be handled: connecting again")
                reason = "what it said could not be handled"
                faults = faults + 1 if self._loop.time() - began < FAULTS_FORGOTTEN_SECONDS else 1
            self._ended(reason, first=failures == 0)
            await asyncio.sleep(backoff(failures + faults))
            failures += 1

    def _ended(self, reason: str, *, first: bool) -> None:
        if not self.connected:
            if first:
                logger.warning("the bus cannot be reached: %s; trying again", reason)
            return
        self.connected = False
        try:
            self._on_lost(reason)
        except Exception:
            logger.exception("the loss of the bus could not be handled")

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
                elif self._pinged_at is not None:
                    self.probe_seconds = time.perf_counter() - self._probed_at
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
            late = now - self._pinged_at - PONG_SECONDS
            if late > LATE_SECONDS and not self._late:
                self._late = True
                self._pinged_at = now - PONG_SECONDS + LATE_SECONDS
            elif late >= 0:
                raise ConnectionResetError(f"no answer to a PING within {PONG_SECONDS:g} s")
            return self._pinged_at + PONG_SECONDS
        if now - self._heard_at < PING_SECONDS:
            return self._heard_at + PING_SECONDS
        # The loop's clock counts milliseconds, uvloop's at least.
        self._pinged_at, self._probed_at, self._late = now, time.perf_counter(), False
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
