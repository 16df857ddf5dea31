"""Where the bus is: the URL of the configuration, or the private server that the primary starts at the first use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from wscluster import config
from wscluster.commands import Commands
from wscluster.errors import BusUnavailable

ASK_AGAIN_SECONDS = 5.0


class BusFinder:
    """Opens the bus at its first use.

    Args:
        bus: Where the bus is and how long it may take.
        want_bus: Asks the primary for the private server; `at` gets the answer.
        on_found: Called once with the URL, when `commands` is set.

    Attributes:
        commands: What is sent to the bus goes here; None before it is found.
    """

    def __init__(
        self,
        bus: config.Bus,
        loop: asyncio.AbstractEventLoop,
        want_bus: Callable[[], None],
        on_found: Callable[[str], None],
    ) -> None:
        self._config = bus
        self._loop = loop
        self._want_bus = want_bus
        self._on_found = on_found
        self._address: asyncio.Future[str] | None = None
        self._refusal = ""
        self._asked_at = 0.0
        self.commands: Commands | None = None

    def at(self, url: str | None, reason: str) -> None:
        """The primary says where the private server is, or why there is none."""
        self._refusal = reason
        waiting, self._address = self._address, None
        if url is not None and self.commands is None:
            self._open(url)
        if waiting is None or waiting.done():
            return
        if url is not None:
            waiting.set_result(url)
        else:
            waiting.set_exception(BusUnavailable(reason))
            waiting.exception()  # whoever waited may have given up

    async def wait_commands(self) -> Commands:
        """Find the bus at its first use.

        Raises:
            BusUnavailable: There is none, or not within the bus's timeout.
        """
        if self.commands is None and self._config.redis_url is not None:
            self._open(self._config.redis_url)
        if self.commands is None:
            await self._wait_address()
        assert self.commands is not None
        return self.commands

    async def close(self) -> None:
        """Close the connection that commands are sent on."""
        if self.commands is not None:
            await self.commands.close()

    def _open(self, url: str) -> None:
        self.commands = Commands(url, self._config.bus_timeout, self._loop)
        self._on_found(url)

    async def _wait_address(self) -> None:
        now = self._loop.time()
        if not self._asked_at or now - self._asked_at >= ASK_AGAIN_SECONDS:
            # Asked again after a while, because what was missing may have been installed.
            self._asked_at = now
            self._refusal = ""
            self._want_bus()
        if self._refusal:
            raise BusUnavailable(self._refusal)
        if self._address is None:
            self._address = self._loop.create_future()
        try:
            async with asyncio.timeout(self._config.bus_timeout):
                await asyncio.shield(self._address)
        except TimeoutError:
            raise BusUnavailable(f"no private Valkey within {self._config.bus_timeout:g} s") from None
