"""What programs ask to listen on: bound with real sockets, once for all workers."""

import asyncio
import errno
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support import run
from wscluster.gateway.asking import MAX_WAITING, Asking
from wscluster.gateway.binding import TcpAddress, resolve
from wscluster.gateway.listener import Accepted
from wscluster.gateway.listening import Listening
from wscluster.packets import Bind, BoundAt

Ask = Callable[..., Awaitable[BoundAt]]


class Primary:
    """The part of a primary that listens; each call of `ask` is one worker's request."""

    def __init__(self) -> None:
        self.accepted: list[Accepted] = []
        self.bound: list[str] = []
        self._serial = 0
        self._answers: dict[int, asyncio.Future[BoundAt]] = {}
        loop = asyncio.get_running_loop()
        self.listening = Listening(5, loop, self.accepted.extend, lambda: None)
        self.asking = Asking(loop, self.listening, self._answered, self.bound.append)

    def ask(
        self, host: str = "127.0.0.1", port: int = 0, path: str = "", family: int = 0, backlog: int = 1, nth: int = 0
    ) -> asyncio.Future[BoundAt]:
        self._serial += 1
        answer = self._answers[self._serial] = asyncio.get_running_loop().create_future()
        self.asking.ask(1, os.getpid(), Bind(self._serial, host, port, path, family, backlog, nth))
        return answer

    def _answered(self, worker: int, packet: BoundAt) -> None:
        assert worker == 1
        self._answers[packet.serial].set_result(packet)


@asynccontextmanager
async def primary() -> AsyncIterator[Primary]:
    one = Primary()
    try:
        yield one
    finally:
        one.asking.close()
        one.listening.close()
        for sock, *_ in one.accepted:
            sock.close()


def test_two_workers_get_the_same_port_of_the_kernels_choice_and_it_accepts_once_that_is_asked() -> None:
    async def main() -> None:
        async with primary() as one:
            first, second = await asyncio.gather(one.ask(), one.ask())
            assert (first.listeners, first.addresses) == (second.listeners, second.addresses) == ([0], first.addresses)
            (address,) = first.addresses
            assert address[0] == "127.0.0.1"
            assert one.bound == one.listening.names == [f"127.0.0.1:{address[1]}"]
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*address)
            one.listening.start()
            _, writer = await asyncio.open_connection(*address)
            writer.close()
            later = await one.ask(nth=1)
            assert later.listeners == [1]
            assert later.known == [0, 1]
            _, writer = await asyncio.open_connection(*later.addresses[0])
            writer.close()
            async with asyncio.timeout(10):
                while [number for *_, number in one.accepted] != [0, 1]:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    run(main())


def test_every_interface_is_a_socket_of_each_family_on_one_port() -> None:
    async def main() -> None:
        async with primary() as one:
            answer = await one.ask("")
            (v4, v6) = answer.addresses
            assert (v4[0], v6[0], v6[1]) == ("0.0.0.0", "::", v4[1])
            only = await one.ask("", family=socket.AF_INET6, nth=1)
            assert [address[0] for address in only.addresses] == ["::"]

    run(main())


def test_a_name_is_looked_up_and_what_comes_meanwhile_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def slow(host: str, port: int, family: int = 0, flags: int = 0) -> list[TcpAddress]:
        if host == "localhost" and not flags:
            assert go_on.wait(10)
        return resolve(host, port, family, flags)

    monkeypatch.setattr("wscluster.gateway.asking.resolve", slow)

    async def main() -> None:
        async with primary() as one:
            named, again, plain = one.ask("localhost"), one.ask("localhost"), one.ask()
            await asyncio.sleep(0)
            assert not plain.done()
            go_on.set()
            assert (await named).listeners == (await again).listeners
            assert (await plain).listeners == [len((await named).listeners)]

    run(main())


def test_what_cannot_be_bound_is_answered_with_the_systems_reason_and_tried_again() -> None:
    async def main() -> None:
        async with primary() as one:
            with socket.create_server(("127.0.0.1", 0)) as other:
                port = other.getsockname()[1]
                answer = await one.ask(port=port)
                assert answer.errno == errno.EADDRINUSE
                assert answer.reason == (
                    f"cannot listen on 127.0.0.1:{port}: Address already in use; is another server running? "
                    "choose another port"
                )
            assert (await one.ask(port=port)).errno == 0
            assert (await one.ask("192.0.2.1")).errno == errno.EADDRNOTAVAIL
            unknown = await one.ask("no-such-host.invalid")
            assert unknown.errno < 0
            assert unknown.reason.startswith("cannot listen on no-such-host.invalid:0: ")
            assert (await one.ask("x" * 300)).errno != 0
            assert (await one.ask(port=70000)).errno == errno.EINVAL
            assert one.bound == [f"127.0.0.1:{port}"]

    run(main())


def test_an_address_that_another_has_begun_to_listen_on_later_gets_no_number() -> None:
    async def main() -> None:
        async with primary() as one:
            one.listening.start()
            with socket.create_server(("127.0.0.1", 0)) as other:
                assert (await one.ask(port=other.getsockname()[1])).errno == errno.EADDRINUSE
            assert (await one.ask()).listeners == [0]
            one.listening.close()
            assert (await one.ask(nth=1)).errno == errno.ECANCELED

    run(main())


def test_a_unix_path_gets_the_mode_that_the_programs_umask_leaves_and_is_removed_at_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "a.sock"
        before = os.umask(0o077)
        try:
            async with primary() as one:
                answer = await one.ask("", path=str(path))
                assert (answer.addresses, one.bound) == ([str(path)], [f"unix:{path}"])
                assert stat.S_IMODE(path.stat().st_mode) == 0o700
                (tmp_path / "b").write_text("mine")
                assert (await one.ask("", path=str(tmp_path / "b"))).errno == errno.EADDRINUSE
                assert (await one.ask("", path=str(tmp_path / "no" / "c"))).errno == errno.ENOENT
                assert (await one.ask("", path=str(tmp_path / ("d" * 200)))).errno == errno.EINVAL
            assert not path.exists()
            assert (tmp_path / "b").read_text() == "mine"
        finally:
            os.umask(before)

    run(main())


def test_the_kernel_queues_what_the_program_or_the_flag_says_whichever_is_more(tmp_path: Path) -> None:
    async def main() -> None:
        async with primary() as one:
            one.listening.start()
            for backlog, expected in ((1, 5), (8, 8)):
                path = str(tmp_path / f"{backlog}.sock")
                await one.ask("", path=path, backlog=backlog)
                clients = [socket.socket(socket.AF_UNIX) for _ in range(expected + 2)]
                for sock in clients:
                    sock.setblocking(False)
                for sock in clients[:-1]:  # Linux queues one more than it is told
                    sock.connect(path)
                with pytest.raises(BlockingIOError):
                    clients[-1].connect(path)
                for sock in clients:
                    sock.close()

    run(main())


def test_a_name_in_the_abstract_namespace_is_listened_on() -> None:
    async def main() -> None:
        async with primary() as one:
            name = f"\0wscluster-test-{os.getpid()}"
            assert (await one.ask("", path=name)).addresses == [name]
            one.listening.start()
            _, writer = await asyncio.open_unix_connection(name)
            writer.close()

    run(main())


def test_requests_that_wait_are_bounded() -> None:
    async def main() -> None:
        async with primary() as one:
            answers = [one.ask() for _ in range(MAX_WAITING + 1)]
            assert (await answers[-1]).errno == errno.EAGAIN
            assert {tuple((await answer).listeners) for answer in answers[:-1]} == {(0,)}

    run(main())
