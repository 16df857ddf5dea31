"""A server whose connections come over the worker's link, and that is else what ``loop.create_server()`` returns."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import socket
from asyncio.trsock import TransportSocket
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from wscluster.tls import Context
from wscluster.workers.described import Described
from wscluster.workers.giving_back import bytes_read
from wscluster.workers.true_client import with_true_client

if TYPE_CHECKING:
    from wscluster.packets import Offered

ProtocolFactory = Callable[[], asyncio.BaseProtocol]

logger = logging.getLogger("wscluster.worker")


class FedSocket(socket.socket):
    """Stands in a worker for a listening socket that the primary has.

    It is a socket of its own that listens nowhere: options may be set on it, and `close` closes it.

    Args:
        listener: The primary's number for it, as in `Offered.listener`; None stands for every listener.
        address: What ``getsockname()`` says.
        family: Address family.
    """

    def __init__(
        self, listener: int | None = None, address: Any = ("127.0.0.1", 0), family: int = socket.AF_INET
    ) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self.listener = listener
        self._address = address

    def getsockname(self) -> Any:
        """Return the address that the primary listens on."""
        return self._address


class FedConnection(socket.socket):
    """The socket of one connection; it tells its server when the transport that owns it lets go of it.

    asyncio closes the socket of a transport right after the protocol's ``connection_lost``, uvloop detaches it there,
    and neither does it before. So the end is known whatever the protocol is, with TLS and without, and nothing is
    asked of the data's path.
    """

    server: FedServer | None = None  # until the end
    number: int = 0
    offered: Offered | None = None
    opening: asyncio.Task[Any] | None = None
    transport: asyncio.Transport | None = None
    made: bool = False
    read_before: int | None = 0
    """Bytes that were read of it before it came here: its PROXY header."""

    def make_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol of this connection; from now on its transport owns the socket."""
        assert self.server is not None
        protocol = self.server.factory()
        self.made = True
        return protocol

    def opened(self, task: asyncio.Task[Any]) -> None:
        """The transport is there, or could not be made."""
        self.opening = None
        if task.cancelled() or task.exception() is not None:
            if not task.cancelled() and self.server is not None:
                self.server.not_opened(task.exception())
            if not self.made:
                self.close()
        elif self.server is not None:  # else it has already ended
            self.transport = task.result()[0]

    def close(self) -> None:
        super().close()
        if self.fileno() < 0:  # uvloop holds it open until it detaches it
            self._tell_end()

    def detach(self) -> int:
        fd = super().detach()
        self._tell_end()
        return fd

    def _tell_end(self) -> None:
        server, self.server, self.transport = self.server, None, None
        if server is not None:
            server.ended(self)


def tls_arguments(ssl: Any, handshake_timeout: float | None, shutdown_timeout: float | None) -> dict[str, Any]:
    """Return the arguments of TLS of ``connect_accepted_socket()``; empty without TLS.

    Raises:
        TypeError: ``ssl`` is no context.
        ValueError: A timeout is given without TLS.
    """
    if ssl is not None and not isinstance(ssl, Context):
        raise TypeError("ssl argument must be an SSLContext or None")
    arguments: dict[str, Any] = {} if ssl is None else {"ssl": ssl}
    timeouts = {"ssl_handshake_timeout": handshake_timeout, "ssl_shutdown_timeout": shutdown_timeout}
    for name, seconds in timeouts.items():
        if seconds is not None:
            if ssl is None:
                raise ValueError(f"{name} is only meaningful with ssl")
            arguments[name] = seconds
    return arguments


class FedServer(asyncio.AbstractServer):
    """What a program gets of ``create_server()`` in a worker: the primary accepts, the link feeds it.

    It behaves as asyncio documents for Python 3.13, on every Python and loop.

    Args:
        loop: The loop that the connections live on.
        factory: Makes the protocol of a connection.
        sockets: What it listens on; `close` closes them.
        ssl: Ends TLS on every connection.
        ssl_handshake_timeout: Seconds; None: the loop's default.
        ssl_shutdown_timeout: Seconds; None: the loop's default.
        connect: Makes a transport of a socket; None: the loop's ``connect_accepted_socket()``.
        keep_alive: The system probes idle connections (SO_KEEPALIVE).
        proxied: Clients may have other addresses than the peers of their sockets (PROXY protocol).

    Attributes:
        on_serving: Called with the server when it begins to serve.
        on_close: Called with the server when it is closed, in the same turn.
        on_ended: Called with the primary's number of each adopted connection that has ended.
        adopted: Connections so far.

    Raises:
        TypeError: ``ssl`` is no context.
        ValueError: A timeout of TLS is given without TLS.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        factory: ProtocolFactory,
        sockets: Sequence[FedSocket],
        *,
        ssl: Context | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        connect: Callable[..., Coroutine[Any, Any, Any]] | None = None,
        keep_alive: bool = False,
        proxied: bool = False,
    ) -> None:
        self._tls = tls_arguments(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
        self.factory = factory
        self.on_serving: Callable[[FedServer], None] | None = None
        self.on_close: Callable[[FedServer], None] | None = None
        self.on_ended: Callable[[int], None] | None = None
        self.adopted = 0
        self._loop = loop
        self._sockets = tuple(sockets)
        self._listeners = {sock.listener for sock in sockets}
        self._connect = loop.connect_accepted_socket if connect is None else connect
        self._keep_alive = keep_alive
        self._proxied = proxied
        self._context = contextvars.copy_context()
        self._open: set[FedConnection] = set()
        self._serving = False
        self._closed = False
        self._waiters: list[asyncio.Future[None]] = []
        self._forever: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<FedServer sockets={self.sockets!r}>"

    # What the link asks

    @property
    def connections(self) -> int:
        """How many connections are open, those in their TLS handshake included."""
        return len(self._open)

    def takes(self, offered: Offered) -> bool:
        """Say whether it serves the listener of this connection."""
        return self._serving and (offered.listener in self._listeners or None in self._listeners)

    def adopt(self, fd: int, offered: Offered) -> None:
        """Make a connection of the socket ``fd``; where the server was closed meanwhile, close it."""
        # The family is asked of the socket: behind a balancer the client has an address of another one.
        sock = FedConnection(-1, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=fd)
        sock.setblocking(False)
        sock.server = self
        sock.number = offered.number
        sock.offered = offered
        if self._proxied:
            sock.read_before = bytes_read(fd)
        self.adopted += 1
        self._open.add(sock)
        if self._closed:
            sock.close()
            return
        if self._keep_alive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, True)
        factory = with_true_client(sock.make_protocol, sock, offered) if self._proxied else sock.make_protocol
        sock.opening = self._loop.create_task(self._connect(factory, sock, **self._tls), context=self._context.copy())
        sock.opening.add_done_callback(sock.opened)

    def not_opened(self, exc: BaseException | None) -> None:
        """A connection ended before it began."""
        if isinstance(exc, OSError):
            # Every scanner of ports does this.
            logger.debug("a client's connection ended before it began: %s", exc)
        else:
            self._loop.call_exception_handler(
                {"message": "Error on transport creation for incoming connection", "exception": exc}
            )

    def ended(self, sock: FedConnection) -> None:
        """The transport of ``sock`` has ended."""
        self._open.discard(sock)
        if self.on_ended is not None:
            self.on_ended(sock.number)
        self._wake()

    # What a program asks

    @property
    def sockets(self) -> tuple[TransportSocket, ...]:
        """What it listens on; empty once it is closed.

        Each tells family and address of a socket that the primary has. The one behind it listens nowhere.
        """
        return () if self._closed else tuple(map(TransportSocket, self._sockets))

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop of its connections."""
        return self._loop

    def is_serving(self) -> bool:
        """Say whether it takes connections."""
        return self._serving

    def begin_serving(self) -> None:
        """Take connections from now on; once is enough.

        Raises:
            RuntimeError: It is closed.
        """
        if self._closed:
            raise RuntimeError(f"server {self!r} is closed")
        if not self._serving:
            self._serving = True
            if self.on_serving is not None:
                self.on_serving(self)

    async def start_serving(self) -> None:
        """Take connections from now on.

        Raises:
            RuntimeError: It is closed.
        """
        self.begin_serving()
        await asyncio.sleep(0)

    async def serve_forever(self) -> None:
        """Serve until it is closed or this is cancelled, which closes server and connections.

        Raises:
            RuntimeError: It is closed, or somebody already waits here.
            CancelledError: Always at the end.
        """
        if self._forever is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        self.begin_serving()
        self._forever = self._loop.create_future()
        try:
            await self._forever
        except asyncio.CancelledError:
            self.close()
            self.close_clients()
            await self.wait_closed()
            raise
        finally:
            self._forever = None

    def close(self) -> None:
        """Take nothing any more; open connections stay."""
        if self._closed:
            return
        self._closed = True
        self._serving = False
        for sock in self._sockets:
            sock.close()
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()
        if self.on_close is not None:
            self.on_close(self)
        self._wake()

    async def wait_closed(self) -> None:
        """Wait until it is closed and its last connection has ended."""
        if self._closed and not self._open:
            return
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def described(self, worker: int) -> list[Described]:
        """Return each connection, named by ``worker`` and the primary's number."""
        return [
            Described(f"{worker}-{sock.number}", sock.offered.client if sock.offered is not None else None)
            for sock in sorted(self._open, key=lambda one: one.number)
        ]

    def find(self, worker: int, connection: str) -> asyncio.Transport | None:
        """Return the transport of the connection with this id; None where there is none."""
        for sock in self._open:
            if f"{worker}-{sock.number}" == connection:
                return sock.transport
        return None

    def unread(self) -> list[tuple[Offered, int, Callable[[], None]]]:
        """Return what `GivingBack.give` wants of each connection that nobody has read a byte of, but its PROXY header.

        None on Unix sockets, of which the kernel does not tell, and none whose transport is not there yet, as within a
        TLS handshake: it may read on until its task has noticed that it is cancelled.
        """
        return [
            (sock.offered, sock.fileno(), sock.transport.abort)
            for sock in self._open
            if sock.transport is not None
            and sock.offered is not None
            and sock.read_before is not None
            and bytes_read(sock.fileno()) == sock.read_before
        ]

    def close_clients(self) -> None:
        """Close every connection once what is unsent has been sent."""
        for sock in list(self._open):
            if sock.transport is not None:
                sock.transport.close()
        self.cancel_opening()

    def abort_clients(self) -> None:
        """Close every connection at once."""
        for sock in list(self._open):
            if sock.transport is not None:
                sock.transport.abort()
        self.cancel_opening()

    def cancel_opening(self) -> None:
        """Close connections whose protocols know nothing of them yet, as in a TLS handshake."""
        for sock in list(self._open):
            if sock.opening is not None:
                sock.opening.cancel()

    def _wake(self) -> None:
        if self._closed and not self._open:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._waiters.clear()
