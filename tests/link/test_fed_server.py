"""A server that is fed sockets: what asyncio documents of a server holds of it, on asyncio's loop and on uvloop's."""

import asyncio
import contextlib
import contextvars
import os
import socket
import ssl
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
import trustme

from tests.certificate_support import write_server
from wscluster.loops import new_event_loop
from wscluster.packets import Offered
from wscluster.workers.fed_server import FedServer, FedSocket
from wscluster.workers.true_client import ProxiedTransport

RESET = struct.pack("ii", 1, 0)
AUTHORITY = trustme.CA()
OFFERED = Offered(7, "127.0.0.1", 40000)
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="")

Main = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(params=[asyncio.new_event_loop, new_event_loop], ids=["asyncio", "uvloop"])
def on_loop(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    """Runs a coroutine function on a loop of this kind, for 20 seconds at most."""

    def run(main: Main) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(20):
                await main()

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(bounded())

    return run


class Echo(asyncio.Protocol):
    def __init__(self) -> None:
        self.made: asyncio.Future[asyncio.Transport] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are none by their class
        self.made.set_result(self.transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


class Fed:
    """A server, the numbers of the connections that have ended, and the protocols of all."""

    def __init__(self, factory: Callable[[], asyncio.BaseProtocol] | None = None, **options: Any) -> None:
        self.protocols: list[Echo] = []
        self.asked = asyncio.Event()
        self.ended: asyncio.Queue[int] = asyncio.Queue()
        self.server = FedServer(asyncio.get_running_loop(), factory or self.make, [FedSocket()], **options)
        self.server.on_ended = self.ended.put_nowait
        self.server.begin_serving()

    def make(self) -> Echo:
        self.protocols.append(Echo())
        self.asked.set()
        return self.protocols[-1]

    def connect(self, offered: Offered = OFFERED, family: int = socket.AF_INET) -> socket.socket:
        """Connect a client whose other end is fed; returns the client's socket."""
        if family == socket.AF_UNIX:
            client, accepted = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                client = socket.create_connection(listening.getsockname())
                accepted, _ = listening.accept()
        client.setblocking(False)
        self.server.adopt(accepted.detach(), offered)
        return client

    async def gone(self) -> None:
        """Wait for the end of one connection, of which there is no other."""
        assert await self.ended.get() == 7
        assert self.server.connections == 0
        assert self.ended.empty()


async def echoed(client: socket.socket, data: bytes = b"hello") -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, data)
    assert await loop.sock_recv(client, 100) == data


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_the_end_of_a_connection_is_known_whoever_ends_it(family: int, on_loop: Callable[[Main], None]) -> None:
    async def main() -> None:
        fed = Fed()
        for end in ("client", "close", "abort"):
            with fed.connect(family=family) as client:
                await echoed(client)
                assert fed.server.connections == 1
                match end:
                    case "client":
                        client.close()
                    case "close":
                        fed.server.close_clients()
                    case "abort":
                        fed.server.abort_clients()
                await fed.gone()
                assert fed.protocols.pop().lost.done()
        assert fed.server.adopted == 3
        fed.server.close()

    on_loop(main)


def test_what_is_given_back_was_read_by_nobody_and_is_read_by_nobody_here(on_loop: Callable[[Main], None]) -> None:
    """In whatever turn of the loop it is asked, and also while the transport is being made."""

    async def main() -> None:
        given = 0
        for turns in range(12):
            for speaks in (False, True):
                fed = Fed()
                with fed.connect() as client:
                    if speaks:
                        client.sendall(b"hello")
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    unread = fed.server.unread()
                    assert len(unread) <= 1
                    for offered, fd, let_go in unread:
                        assert offered == OFFERED
                        with socket.socket(fileno=os.dup(fd)) as kept:
                            let_go()
                            await fed.gone()
                            client.sendall(b", world")
                            assert kept.recv(100) == (b"hello, world" if speaks else b", world")
                        given += 1
                    if not unread:
                        client.close()
                        await fed.gone()
                    fed.server.close()
        assert given > 6

    on_loop(main)


def test_a_reset_is_an_end(on_loop: Callable[[Main], None]) -> None:
    async def main() -> None:
        fed = Fed()
        client = fed.connect()
        await echoed(client)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
        await fed.gone()
        fed.server.close()

    on_loop(main)


def test_a_connection_that_is_reset_before_it_is_adopted_ends_too(on_loop: Callable[[Main], None]) -> None:
    async def main() -> None:
        fed = Fed(proxied=True)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            client = socket.create_connection(listening.getsockname())
            accepted, _ = listening.accept()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
        fed.server.adopt(accepted.detach(), OFFERED)
        await fed.gone()
        fed.server.close()

    on_loop(main)


def test_a_protocol_that_takes_over_hides_no_end(on_loop: Callable[[Main], None]) -> None:
    """As uvicorn's WebSocket protocol does: the first protocol's connection_lost is never called."""

    async def main() -> None:
        fed = Fed()
        with fed.connect() as client:
            await echoed(client)
            first, second = fed.protocols[0], Echo()
            second.connection_made(first.transport)
            first.transport.set_protocol(second)
            await echoed(client)
        await second.lost
        await fed.gone()
        assert not first.lost.done()
        fed.server.close()

    on_loop(main)


def test_a_factory_that_raises_ends_the_connection_and_tells_the_loop(on_loop: Callable[[Main], None]) -> None:
    async def main() -> None:
        def fail() -> asyncio.Protocol:
            raise LookupError("no protocol today")

        told: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context))
        fed = Fed(fail)
        with fed.connect() as client:
            assert await loop.sock_recv(client, 1) == b""
            await fed.gone()
        assert [str(context["exception"]) for context in told] == ["no protocol today"]
        fed.server.close()

    on_loop(main)


def test_a_connection_that_comes_after_the_close_is_closed(on_loop: Callable[[Main], None]) -> None:
    async def main() -> None:
        fed = Fed()
        fed.server.close()
        assert not fed.server.takes(OFFERED)
        with fed.connect() as client:
            assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
            await fed.gone()
        assert fed.protocols == []

    on_loop(main)


# TLS


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a server and of its client."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*write_server(tmp_path, AUTHORITY))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(client)
    return server, client


def test_tls_connections_are_echoed_and_their_end_is_known(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], on_loop: Callable[[Main], None]
) -> None:
    async def main() -> None:
        fed = Fed(ssl=contexts[0], ssl_handshake_timeout=5.0, ssl_shutdown_timeout=5.0, proxied=True)
        for ending in ("client", "close", "abort"):
            sock = fed.connect(Offered(7, "192.0.2.7", 40000))
            reader, writer = await asyncio.open_connection(sock=sock, ssl=contexts[1], server_hostname="localhost")
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            transport = fed.protocols[-1].transport
            assert transport.get_extra_info("peername") == ("192.0.2.7", 40000)
            assert transport.get_extra_info("sslcontext") is contexts[0]
            if ending == "close":
                fed.server.close_clients()
            elif ending == "abort":
                fed.server.abort_clients()
            else:
                writer.close()
            await fed.gone()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                writer.close()
                await writer.wait_closed()
        fed.server.close()

    on_loop(main)


@pytest.mark.parametrize("ending", ["no TLS", "client", "timeout", "cancelled"])
def test_a_tls_handshake_that_fails_is_an_end(
    ending: str, contexts: tuple[ssl.SSLContext, ssl.SSLContext], on_loop: Callable[[Main], None]
) -> None:
    async def main() -> None:
        fed = Fed(ssl=contexts[0], ssl_handshake_timeout=0.1 if ending == "timeout" else 20.0)
        with fed.connect() as client:
            match ending:
                case "no TLS":
                    await asyncio.get_running_loop().sock_sendall(client, b"GET / HTTP/1.1\r\n\r\n")
                case "client":
                    client.close()
                case "cancelled":
                    await fed.asked.wait()
                    fed.server.cancel_opening()
            await fed.gone()
        assert fed.protocols[0].made.done() is False
        fed.server.close()

    on_loop(main)


def test_options_of_tls_are_checked_as_by_create_server(on_loop: Callable[[Main], None]) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="ssl argument must be an SSLContext or None"):
            FedServer(asyncio.get_running_loop(), Echo, [], ssl=True)  # type: ignore[arg-type]
        for name in ("ssl_handshake_timeout", "ssl_shutdown_timeout"):
            with pytest.raises(ValueError, match=f"{name} is only meaningful with ssl"):
                FedServer(asyncio.get_running_loop(), Echo, [], **{name: 1.0})  # type: ignore[arg-type]

    on_loop(main)


# What a program asks


def test_it_serves_from_the_start_it_is_told_to_the_close(on_loop: Callable[[Main], None]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        sockets = [FedSocket(0, ("127.0.0.1", 8000)), FedSocket(3, ("::1", 8000, 0, 0), socket.AF_INET6)]
        server = FedServer(loop, Echo, sockets)
        told: list[str] = []
        server.on_serving = lambda each: told.append(f"serving {each is server}")
        server.on_close = lambda each: told.append(f"closed {each is server}")
        assert [sock.getsockname() for sock in server.sockets] == [("127.0.0.1", 8000), ("::1", 8000, 0, 0)]
        assert [sock.family for sock in server.sockets] == [socket.AF_INET, socket.AF_INET6]
        assert server.get_loop() is loop
        assert not server.is_serving()
        assert not server.takes(Offered(1, "", 0, 0))
        for _ in range(2):
            await server.start_serving()
            assert server.is_serving()
        assert [number for number in range(5) if server.takes(Offered(1, "", 0, number))] == [0, 3]
        for _ in range(2):
            server.close()
            assert not server.is_serving()
        assert told == ["serving True", "closed True"]
        assert server.sockets == ()
        assert {sock.fileno() for sock in sockets} == {-1}
        with pytest.raises(RuntimeError, match="is closed"):
            await server.start_serving()
        with pytest.raises(RuntimeError, match="is closed"):
            await server.serve_forever()

    on_loop(main)


def test_wait_closed_waits_for_the_close_and_for_the_last_connection(on_loop: Callable[[Main], None]) -> None:
    async def main() -> None:
        fed = Fed()
        waiting = asyncio.ensure_future(fed.server.wait_closed())
        with fed.connect() as client:
            await echoed(client)
            fed.server.close()
            await echoed(client)
            assert not waiting.done()
        await waiting
        await fed.gone()
        await fed.server.wait_closed()

    on_loop(main)


def test_the_context_closes_and_waits(on_loop: Callable[[Main], None]) -> None:
    async def main() -> None:
        fed = Fed()
        async with fed.server as server:
            assert server is fed.server
            client = fed.connect()
            await echoed(client)
            asyncio.get_running_loop().call_later(0.05, client.close)
        assert fed.protocols[0].lost.done()

    on_loop(main)


def test_serve_forever_ends_with_its_cancellation_or_the_close_and_ends_the_connections(
    on_loop: Callable[[Main], None],
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for end in ("cancel", "close"):
            fed = Fed()
            serving = asyncio.ensure_future(fed.server.serve_forever())
            with fed.connect() as client:
                await echoed(client)
                with pytest.raises(RuntimeError, match="already being awaited"):
                    await fed.server.serve_forever()
                if end == "cancel":
                    serving.cancel()
                else:
                    fed.server.close()
                assert await loop.sock_recv(client, 1) == b""
                with pytest.raises(asyncio.CancelledError):
                    await serving
            assert fed.server.sockets == ()

    on_loop(main)


def test_connections_live_in_the_context_in_which_the_server_was_made(on_loop: Callable[[Main], None]) -> None:
    async def main() -> None:
        seen: list[str] = []

        class Look(Echo):
            def data_received(self, data: bytes) -> None:
                seen.append(VARIABLE.get())
                VARIABLE.set("of one connection")
                super().data_received(data)

        VARIABLE.set("of the server")
        fed = Fed(Look)
        VARIABLE.set("later")
        for _ in range(2):
            with fed.connect() as client:
                await echoed(client)
            await fed.gone()
        assert seen == ["of the server", "of the server"]
        fed.server.close()

    on_loop(main)


# The true client


@pytest.mark.parametrize(
    ("offered", "client"),
    [
        (Offered(7, "192.0.2.7", 40000), ("192.0.2.7", 40000)),
        (Offered(7, "2001:db8::7", 40000), ("2001:db8::7", 40000, 0, 0)),
    ],
)
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_transport_names_the_true_client(
    family: int, offered: Offered, client: tuple[Any, ...], on_loop: Callable[[Main], None]
) -> None:
    async def main() -> None:
        fed = Fed(proxied=True)
        with fed.connect(offered, family) as sock:
            await echoed(sock)
            transport = fed.protocols[0].transport
            assert transport.get_extra_info("peername") == client
            assert transport.get_extra_info("socket").getpeername() == client
            assert transport.get_extra_info("socket").getsockname() == sock.getpeername()
            assert transport.get_extra_info("sockname") == sock.getpeername()
            assert transport.get_extra_info("sslcontext") is None
            assert transport.get_extra_info("nothing", "else") == "else"
            assert str(client) in repr(transport)
        await fed.gone()
        assert fed.protocols[0].lost.done()
        fed.server.close()

    on_loop(main)


def test_a_transport_with_another_client_is_a_transport_in_everything_else(on_loop: Callable[[Main], None]) -> None:
    async def main() -> None:
        fed = Fed(proxied=True)
        with fed.connect(Offered(7, "192.0.2.7", 40000)) as sock:
            transport = await until_made(fed)
            assert isinstance(transport, ProxiedTransport)
            assert transport.get_protocol() is fed.protocols[0]
            transport.set_write_buffer_limits(high=1000)
            assert transport.get_write_buffer_limits() == (250, 1000)
            assert transport.get_write_buffer_size() == 0
            transport.pause_reading()
            assert not transport.is_reading()
            transport.resume_reading()
            assert transport.is_reading()
            transport.writelines([b"one ", b"two"])
            assert transport.can_write_eof()
            transport.write_eof()
            loop = asyncio.get_running_loop()
            data = b""
            while chunk := await loop.sock_recv(sock, 100):
                data += chunk
            assert data == b"one two"
            second = Echo()
            transport.set_protocol(second)
            assert not transport.is_closing()
            transport.close()
            assert transport.is_closing()
            await second.lost
            transport.abort()
            await fed.gone()
        fed.server.close()

    on_loop(main)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_where_the_peer_is_the_client_its_transport_is_the_loops_own(
    family: int, on_loop: Callable[[Main], None]
) -> None:
    async def main() -> None:
        fed = Fed(proxied=True)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            client = socket.create_connection(listening.getsockname())
            accepted, _ = listening.accept()
        if family == socket.AF_UNIX:
            client.close()
            accepted.close()
            client, accepted = socket.socketpair()
            fed.server.adopt(accepted.detach(), Offered(7, "", 0))
        else:
            fed.server.adopt(accepted.detach(), Offered(7, *client.getsockname()))
        transport = await until_made(fed)
        assert not isinstance(transport, ProxiedTransport)
        client.close()
        await fed.gone()
        fed.server.close()

    on_loop(main)


async def until_made(fed: Fed) -> asyncio.Transport:
    await fed.asked.wait()
    return await fed.protocols[0].made
