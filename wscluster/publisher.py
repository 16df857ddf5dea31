"""Publishing to rooms from a program that is no worker: a web application, a job, a script."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from wscluster.blocking import BlockingCommands
from wscluster.bus_lookup import BusFacts, BusLookup
from wscluster.commands import Commands
from wscluster.envelope import check_room, encode_message, key_of, publish_arguments
from wscluster.errors import WsclusterError

if TYPE_CHECKING:
    from wscluster.api import DataLike
    from wscluster.unsent import Argument


class Publisher:
    """Publishes to rooms, with asyncio::

        async with wscluster.Publisher() as publisher:
            position = await publisher.publish("lobby", "hello")

    The bus is that of ``redis_url``; without it that of the environment's ``REDIS_URL``; without that the one of the
    running primary, which starts its private Valkey if need be. A primary that is named comes before ``REDIS_URL``.
    What is published in one turn of the loop travels together. Nothing is ever sent twice: where the connection breaks
    before the answer, `publish` raises, and only the program can know whether to publish again.

    Args:
        redis_url: ``redis://``, ``rediss://`` or ``unix://``.
        prefix: Begins the name of every key and channel, as ``--redis-prefix`` of the cluster. None: what the primary
            has, and ``wscluster`` with a URL.
        control_socket: Control socket of the primary.
        port: A port that the primary listens on.
        pid: Process id of the primary.
        room_log, room_log_ttl, bus_timeout: As the flags of ``serve``: messages that a room's log keeps, seconds that
            it outlives the last one, seconds within which `publish` succeeds or fails. None: what the primary has, and
            the flags' defaults with a URL. Give the log's two as the cluster has them: each message trims the log.

    Raises:
        ValueError: The URL is malformed, both a URL and a primary are given, or a number is out of range.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        prefix: str | None = None,
        control_socket: str | None = None,
        port: int | None = None,
        pid: int | None = None,
        room_log: int | None = None,
        room_log_ttl: float | None = None,
        bus_timeout: float | None = None,
    ) -> None:
        self._lookup = BusLookup(
            redis_url=redis_url, control_socket=control_socket, pid=pid, port=port, prefix=prefix,
            room_log=room_log, room_log_ttl=room_log_ttl, bus_timeout=bus_timeout,
        )  # fmt: skip
        self._facts: BusFacts | None = None
        self._commands: Commands | None = None

    async def __aenter__(self) -> Self:
        """Find the bus.

        Raises:
            WsclusterError: No primary runs, or several do.
            BusUnavailable: The primary cannot start its private Valkey.
            ValueError: ``REDIS_URL`` is malformed.
        """
        url = await self._find_url()
        assert self._facts is not None
        self._commands = Commands(url, self._facts.bus_timeout, asyncio.get_running_loop(), self._find_url)
        return self

    async def __aexit__(self, *exc: object) -> None:
        commands, self._commands = self._commands, None
        if commands is not None:
            await commands.close()

    async def publish(self, room: str, message: DataLike) -> str:
        """Send ``message`` to every member of ``room`` on every worker and machine; returns its position.

        Text (`str`) arrives as text, bytes as binary.

        Raises:
            TypeError: The message is neither `str` nor bytes-like, or the room no `str`.
            ValueError: The room's name is empty or longer than 255 bytes.
            BusUnavailable: No answer within the bus's timeout; whether the message
                arrived is unknown. Or the server refuses, and says why.
            WsclusterError: The publisher is not open.
        """
        if self._commands is None or self._facts is None:
            raise WsclusterError("this publisher is not open: use it within `async with`")
        position = await self._commands.send(*_arguments(self._facts, room, message))
        return bytes(position).decode("ascii")

    async def _find_url(self) -> str:
        self._facts = await asyncio.to_thread(self._lookup.find)
        return self._facts.url


class SyncPublisher:
    """Publishes to rooms from synchronous code, such as a Django view or a Celery task::

        publisher = wscluster.SyncPublisher()
        position = publisher.publish("lobby", "hello")

    Several threads may use one; their messages go one after the other, each after the answer to the one before. It
    opens its connection at the first message and whenever it is needed again, and a process that was forked opens its
    own: one is enough for a whole program. It is a context manager too, which finds the bus at once and closes the
    connection at the end. The arguments are those of `Publisher`.

    Raises:
        ValueError: The URL is malformed, both a URL and a primary are given, or a number is out of range.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        prefix: str | None = None,
        control_socket: str | None = None,
        port: int | None = None,
        pid: int | None = None,
        room_log: int | None = None,
        room_log_ttl: float | None = None,
        bus_timeout: float | None = None,
    ) -> None:
        self._lookup = BusLookup(
            redis_url=redis_url, control_socket=control_socket, pid=pid, port=port, prefix=prefix,
            room_log=room_log, room_log_ttl=room_log_ttl, bus_timeout=bus_timeout,
        )  # fmt: skip
        self._facts: BusFacts | None = None
        self._commands: BlockingCommands | None = None

    def __enter__(self) -> Self:
        """Find the bus; raises what `publish` raises where it cannot be found."""
        self._open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a later `publish` opens another."""
        commands, self._commands = self._commands, None
        if commands is not None:
            commands.close()

    def publish(self, room: str, message: DataLike) -> str:
        """Send ``message`` to every member of ``room`` on every worker and machine; returns its position.

        Text (`str`) arrives as text, bytes as binary.

        Raises:
            TypeError: The message is neither `str` nor bytes-like, or the room no `str`.
            ValueError: The room's name is empty or longer than 255 bytes, or ``REDIS_URL`` is malformed.
            BusUnavailable: No answer within the bus's timeout; whether the message
                arrived is unknown. Or the server refuses, and says why.
            WsclusterError: No primary runs, or several do.
        """
        commands = self._commands or self._open()
        assert self._facts is not None
        return bytes(commands.send(*_arguments(self._facts, room, message))).decode("ascii")

    def _open(self) -> BlockingCommands:
        url = self._find_url()
        assert self._facts is not None
        commands = BlockingCommands(url, self._facts.bus_timeout, self._find_url)
        if self._commands is None:  # another thread may have been faster; nothing is open yet
            self._commands = commands
        return self._commands

    def _find_url(self) -> str:
        self._facts = self._lookup.find()
        return self._facts.url


def _arguments(facts: BusFacts, room: str, message: object) -> tuple[Argument, ...]:
    key = key_of(facts.prefix, check_room(room))
    return publish_arguments(key, encode_message(message), facts.room_log, facts.room_log_ttl)
