"""A listener: what it does at its end, with and without file descriptors."""

import asyncio
import contextlib
import os
import resource
import socket
import time
from collections.abc import Iterator
from typing import Any

from tests.support import run
from wscluster.addresses import Tcp
from wscluster.gateway.binding import bind
from wscluster.gateway.listener import PAUSE_SECONDS, Accepted, Listener


def start(backlog: int) -> tuple[Listener, tuple[str, int], list[Accepted], list[None]]:
    """Return a listener that accepts, its address, what it has accepted, and one entry for each that it has reset."""
    (bound,) = bind([Tcp("127.0.0.1", 0)], {})
    address = bound.sock.getsockname()
    accepted: list[Accepted] = []
    shed: list[None] = []
    listener = Listener(bound, backlog, asyncio.get_running_loop(), accepted.extend, lambda: shed.append(None))
    listener.start()
    return listener, address, accepted, shed


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Within, this process cannot open anything."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
    opened = []
    try:
        with contextlib.suppress(OSError):
            while True:
                opened.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for fd in opened:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_waits_when_it_ends_is_accepted_and_the_size_of_the_backlog_costs_no_time() -> None:
    async def main() -> None:
        listener, address, accepted, _ = start(2**31 - 1)
        clients = [socket.create_connection(address) for _ in range(3)]
        begun = time.monotonic()
        listener.close()
        assert time.monotonic() - begun < 5
        assert len(accepted) == 3
        for sock in (*clients, *(sock for sock, *_ in accepted)):
            sock.close()

    run(main())


def test_an_end_without_descriptors_resets_what_waits_and_leaves_nothing_behind() -> None:
    async def main() -> None:
        faults: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
        listener, address, accepted, shed = start(2048)
        client = socket.create_connection(address)
        with no_descriptors():
            listener.close()
        assert (accepted, len(shed)) == ([], 1)
        client.settimeout(5)
        with contextlib.closing(client):
            try:
                assert client.recv(1) == b"", "it is reset"
            except ConnectionResetError:
                pass
        await asyncio.sleep(PAUSE_SECONDS * 2)  # when it would go on
        assert faults == []

    run(main())
