"""What a handler is given: the names and types that programs are written against. Nothing here does anything."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from types import TracebackType

    from websockets.http11 import Response

Data = str | bytes
"""A message: text is `str`, binary is `bytes`."""

DataLike = str | bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Joined:
    """What `Connection.join` returns.

    Attributes:
        position: Position of the room's last message at the moment of the join; with a replay, of the last one of it.
        recovered: False where ``since`` was given and not all that came after it is kept: nothing was replayed.
        missed: Number of messages that were replayed.
    """

    position: str
    recovered: bool = True
    missed: int = 0


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages of ``room`` between the positions ``after`` and ``before``, neither of them included, were lost.

    Attributes:
        after: Position of the last message before the loss.
        before: Position of the first message after it, which comes next; empty where none has come yet.
    """

    room: str
    after: str
    before: str


@dataclass(frozen=True, slots=True)
class Message:
    """A room's message as `wscluster.subscribe` gives it; ``data`` is `str` for text, `bytes` for binary."""

    room: str
    data: Data
    position: str


class ThisWorker(Protocol):
    """The worker that the program runs in (`wscluster.this_worker`)."""

    @property
    def slot(self) -> int: ...
    @property
    def phase(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def id(self) -> int: ...
    @property
    def state(self) -> Mapping[str, Any]: ...


@runtime_checkable
class Connection(Protocol):
    """One open WebSocket, as a handler sees it.

    It has what `websockets.asyncio.server.ServerConnection` gives a handler, with the same meaning and the same
    exceptions (`websockets.exceptions`), and the rooms of wscluster.
    """

    session: dict[str, Any]
    """Values (JSON-able) that are the application's own and stay with the connection."""

    @property
    def id(self) -> uuid.UUID:
        """Names the connection in the log."""

    @property
    def client(self) -> tuple[str, int] | None:
        """Host and port of the true client; None on a Unix socket."""

    @property
    def remote_address(self) -> Any:
        """The same as `client`."""

    @property
    def local_address(self) -> Any:
        """Address that the client connected to."""

    @property
    def slot(self) -> int:
        """Number of the slot that the worker sits in."""

    @property
    def request(self) -> Any:
        """The opening handshake's request: ``path`` and ``headers``."""

    @property
    def response(self) -> Any:
        """The opening handshake's response."""

    @property
    def subprotocol(self) -> str | None:
        """The negotiated subprotocol."""

    username: str | None
    """Name of the client, where HTTP Basic authentication told it."""

    @property
    def transport(self) -> Any:
        """The TCP connection, for `asyncio.BaseTransport.get_extra_info`; whoever writes to it breaks the protocol."""

    @property
    def state(self) -> Any:
        """`websockets.protocol.State`."""

    @property
    def latency(self) -> float:
        """Seconds of the last measured round trip; 0.0 before the first."""

    @property
    def close_code(self) -> int | None:
        """Close code that the client sent (RFC 6455, 7.1.5); None while open, 1006 where there was none."""

    @property
    def close_reason(self) -> str | None:
        """Close reason that the client sent; None while open."""

    @property
    def logger(self) -> Any:
        """Logger whose lines carry the connection's id."""

    @property
    def rooms(self) -> frozenset[str]:
        """Rooms that this connection is in."""

    @property
    def positions(self) -> Mapping[str, str]:
        """For each room, the position of the last message delivered to this connection: an opaque text.

        What was published without this connection (``exclude_self``) and what was told as a gap counts as delivered.
        What rooms say amid a fragmented message of this connection is delivered, and counts, when that message is
        whole. A room whose missed messages are still being replayed has an entry too.
        """

    async def recv(self, decode: bool | None = None) -> Any:
        """Return the next message; ``decode`` forces `str` (True) or `bytes` (False).

        Cancelling it is safe: the next call returns the message.

        Raises:
            ConnectionClosed: The connection is closed.
            ConcurrencyError: Another task receives already, or a message was not read to its end (`recv_streaming`).
        """

    def recv_streaming(self, decode: bool | None = None) -> AsyncIterator[Any]:
        """Iterate over the fragments of the next message, each as it arrives; ``decode`` as for `recv`.

        It must be read to its end, else nothing can be received any more. Cancelling it before the first fragment is
        safe.

        Raises:
            ConnectionClosed: The connection was closed before the message was whole.
            ConcurrencyError: As for `recv`.
        """

    async def send(
        self, message: DataLike | Iterable[DataLike] | AsyncIterable[DataLike], *, text: bool | None = None
    ) -> None:
        """Send a message, or fragments of one; waits while the client reads too slowly.

        Behind the Close of a reload or a stop it goes nowhere, and is no error as long as there is something to hear.

        Raises:
            ConnectionClosed: The connection is closed.
            TypeError: The message is neither text nor binary.
        """

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Perform the closing handshake (RFC 6455, 7) and wait for its end; does nothing when it is closed."""

    async def wait_closed(self) -> None:
        """Wait until the connection is closed."""

    async def ping(self, data: DataLike | None = None) -> Awaitable[float]:
        """Send a ping; await what is returned for the pong and the latency in seconds."""

    async def pong(self, data: DataLike = b"") -> None:
        """Send an unsolicited pong."""

    def respond(self, status: int, text: str) -> Response:
        """Make a plain text HTTP response, for ``process_request``."""

    async def __aenter__(self) -> Self:
        """Close the connection at the end of the block: with 1000, or with 1011 where it raised."""

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def __aiter__(self) -> AsyncIterator[Any]:
        """Iterate over the messages until the connection is closed normally."""

    async def join(self, room: str, *, since: str | None = None, on_gap: Callable[[Gap], Any] | None = None) -> Joined:
        """Become a member of ``room`` (1 to 255 bytes of UTF-8); returns when the subscription is live.

        Args:
            since: A position that `positions`, a join or a publish gave, on this or on another connection: what came
                after it is sent to the client, in order, before anything later and before this returns. Where the
                room's log no longer has all of that, nothing is replayed and ``recovered`` is False. The replay waits
                for a client that reads slowly; one for which the log no longer has what is next is closed (1013). A
                connection that is in the room already gets no replay: ``recovered`` says whether it needs none.
            on_gap: A function or coroutine function that is called with each `Gap` of the room, until the connection
                leaves it. What it raises is logged. A coroutine function is called once at a time; what is lost
                meanwhile is told by one more call, as one gap.

        Raises:
            TypeError: An argument is of a wrong type.
            ValueError: The name is empty or too long; or ``since`` is no position at all.
            BusUnavailable: The bus did not answer within ``--bus-timeout``, or lost messages during the replay.
            ConnectionClosed: The connection is closed.
        """

    async def leave(self, room: str) -> None:
        """Stop being a member of ``room``; no error where it is none."""

    async def publish(self, room: str, message: DataLike, *, exclude_self: bool = False) -> str:
        """Send ``message`` to every member of ``room`` on every worker; returns its position.

        ``exclude_self`` means this connection: a client that comes back with ``since`` has another one, and gets its
        earlier messages.

        Raises:
            TypeError: The message is neither `str` nor bytes-like.
            ValueError: The room's name is empty or too long.
            BusUnavailable: No answer within ``--bus-timeout``; whether the message arrived is unknown.
        """
