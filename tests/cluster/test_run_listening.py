"""What a program listens on under `wscluster run`: bound once by the primary, served by every worker."""

import asyncio
import errno
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.process_support import is_alive, printed, wait_gone
from tests.support import ROOT, run
from wscluster.testing import WAIT_SECONDS, Cluster, ClusterFailed

PROGRAM = ROOT / "tests/cluster/listening_program.py"
SETSID = ("setsid", sys.executable, "-m", "wscluster")


class Client:
    """A client of the program; `told` is what it was told at first."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.told: dict[str, Any] = {}
        self._reader = reader
        self._writer = writer

    async def read(self) -> str:
        async with asyncio.timeout(WAIT_SECONDS):
            return (await self._reader.readline()).decode()

    async def ask(self, line: str) -> str:
        self._writer.write(f"{line}\n".encode())
        return (await self.read()).rstrip("\n")


@asynccontextmanager
async def client(host: str, port: int = 0, source: str | None = None, first: bytes = b"") -> AsyncIterator[Client]:
    """Connect to an address, or to a path."""
    if host.startswith("/"):
        reader, writer = await asyncio.open_unix_connection(host)
    else:
        local = None if source is None else (source, 0)
        reader, writer = await asyncio.open_connection(host, port, local_addr=local)
    try:
        writer.write(first)
        one = Client(reader, writer)
        one.told = json.loads(await one.read())
        yield one
    finally:
        writer.close()


async def served(port: int, first: bytes) -> bool:
    """Say whether the program serves one more client that sends ``first``, and not a 503."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(first)
    line = await reader.readline()
    writer.close()
    return not line.startswith(b"HTTP/1.1 503")


async def ask_who(port: int, number: int) -> dict[str, Any]:
    async with client("127.0.0.1", port, f"127.1.0.{number}") as one:
        return one.told


async def slots_of(port: int, count: int = 24) -> list[int]:
    return [(await ask_who(port, number))["slot"] for number in range(1, count + 1)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def test_the_workers_share_a_port_and_a_client_stays_on_one_of_them() -> None:
    async def main() -> None:
        port = free_port()
        async with Cluster.run(PROGRAM, f"127.0.0.1:{port}") as cluster:
            assert cluster.listeners == [f"127.0.0.1:{port}"]
            assert cluster.port == port
            slots = await slots_of(port)
            assert set(slots) == {0, 1}
            assert await slots_of(port) == slots
            async with client("127.0.0.1", port) as one:
                assert await one.ask("hello") == "hello"
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
            status = await cluster.status()
            assert status["primary"]["listeners"] == cluster.listeners
            assert status["totals"]["adopted"] == 2 * len(slots) + 1
        assert cluster.process.returncode == 0
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)

    run(main())


def test_a_port_of_the_kernels_choice_is_the_same_in_each_worker_and_in_the_one_that_takes_its_place() -> None:
    async def main() -> None:
        async with Cluster.run(PROGRAM, "127.0.0.1:0", "127.0.0.1:0") as cluster:
            first, second = cluster.ports
            assert first != second
            for port in (first, second):
                told = [await ask_who(port, number) for number in range(1, 17)]
                assert {one["slot"] for one in told} == {0, 1}
                assert all(one["names"] == [["127.0.0.1", port]] for one in told)
            pid = cluster.worker_pids()[0]
            os.kill(pid, signal.SIGKILL)
            await cluster.wait_event("worker_ready", slot=0, count=2)
            for port in (first, second):
                told = [await ask_who(port, number) for number in range(1, 17)]
                assert {one["slot"] for one in told} == {0, 1}
                assert all(one["names"] == [["127.0.0.1", port]] and one["pid"] != pid for one in told)
            assert sum(event["event"] == "bound" for event in cluster.events) == 2

    run(main())


def test_several_addresses_of_every_kind(tmp_path: Path) -> None:
    async def main() -> None:
        path, port = tmp_path / "app.sock", free_port()
        async with Cluster.run(PROGRAM, f":{port}", "[::1]:0", f"unix:{path}") as cluster:
            names = cluster.listeners
            assert names[:2] == [f"0.0.0.0:{port}", f"[::]:{port}"]
            assert names[2].startswith("[::1]:")
            assert names[3:] == [f"unix:{path}"]
            assert [event["listener"] for event in cluster.events if event["event"] == "bound"] == names
            assert (await cluster.status())["primary"]["listeners"] == names
            every = [["0.0.0.0", port], ["::", port, 0, 0]]
            six = int(names[2].rpartition(":")[2])
            for host, where, expected in (
                ("127.0.0.1", port, every), ("::1", port, every), ("::1", six, [["::1", six, 0, 0]]),
                (str(path), 0, [str(path)]),
            ):  # fmt: skip
                async with client(host, where) as one:
                    assert one.told["names"] == expected
                    assert await one.ask("hello") == "hello"
            assert stat.S_ISSOCK(path.stat().st_mode)
        assert not path.exists()

    run(main())


def test_a_port_that_is_taken_is_the_programs_own_error_and_ends_the_start() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(ClusterFailed) as failed:
                async with Cluster.run(PROGRAM, f"127.0.0.1:{port}", workers=1):
                    raise AssertionError("it has started")
            assert failed.value.exit_code == 3
            lines = failed.value.output.splitlines()
            assert any(line.endswith(f"| cannot: errno {errno.EADDRINUSE}") for line in lines)
            assert lines[-1] == (
                f"wscluster: cannot listen on 127.0.0.1:{port}: Address already in use; is another server running? "
                "choose another port"
            )
            async with Cluster.run(PROGRAM, f"127.0.0.1:{port}", "or:127.0.0.1:0") as cluster:
                assert cluster.port != port
                assert set(await slots_of(cluster.port)) == {0, 1}

    run(main())


def test_what_one_worker_listens_on_later_is_served_by_that_one_wherever_the_client_belongs() -> None:
    async def main() -> None:
        later = free_port()
        async with Cluster.run(PROGRAM, "127.0.0.1:0") as cluster:
            async with client("127.0.0.1", cluster.port) as one:
                assert await one.ask(f"listen 127.0.0.1:{later}")
                await cluster.wait_output(f"listening on 127.0.0.1:{later} too")
                assert set(await slots_of(later)) == {one.told["slot"]}
            status = await cluster.status()
            assert status["primary"]["listeners"] == [f"127.0.0.1:{cluster.port}", f"127.0.0.1:{later}"]

    run(main())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_of_the_primary_ends_it_in_order(number: signal.Signals) -> None:
    """As Ctrl-C in a terminal does: the workers are in groups of their own, and are told by the primary."""

    async def main() -> None:
        async with Cluster.run(PROGRAM, "127.0.0.1:0", command=SETSID) as cluster:
            pids = set(cluster.worker_pids().values())
            assert {os.getpgid(pid) for pid in pids} == pids
            async with client("127.0.0.1", cluster.port) as one:
                os.killpg(cluster.pid, number)
                await cluster.wait_output("stopping: ")
                assert await one.ask("still here") == "still here"
            assert await cluster.wait_exit() == 0
            assert sorted(line for line in printed(cluster) if "cancelled" in line) == [
                "cancelled in slot 0",
                "cancelled in slot 1",
            ]
            assert not any("Traceback" in line or "ERROR" in line for line in cluster.output)
            await wait_gone(pids)

    run(main())


def test_no_worker_outlives_a_primary_that_was_killed() -> None:
    async def main() -> None:
        cluster = Cluster.run(PROGRAM, "127.0.0.1:0")
        async with cluster:
            pids = set(cluster.worker_pids().values())
            assert all(map(is_alive, pids))
            cluster.signal(signal.SIGKILL)
            await wait_gone(pids)
        assert cluster.process.returncode == -signal.SIGKILL

    run(main())


def test_a_program_that_is_killed_takes_its_processes_along() -> None:
    async def main() -> None:
        async with Cluster.run(PROGRAM, "127.0.0.1:0", workers=1, graceful_timeout=60) as cluster:
            async with client("127.0.0.1", cluster.port) as one:
                child = int(await one.ask("spawn"))
                assert is_alive(child)
                await cluster.stop(force=True)
            await wait_gone([child])

    run(main())


def test_a_program_that_ends_by_itself_is_started_again() -> None:
    async def main() -> None:
        async with Cluster.run(PROGRAM, "127.0.0.1:0") as cluster:
            async with client("127.0.0.1", cluster.port) as one:
                slot = one.told["slot"]
                assert await one.ask("exit 7") == "exit 7"
            line = await cluster.wait_output("the program ended by itself")
            assert f"of slot {slot}, pid {one.told['pid']}" in line
            assert line.endswith("status 7; it is started again")
            await cluster.wait_event("worker_ready", slot=slot, count=2)
            assert set(await slots_of(cluster.port)) == {0, 1}

    run(main())


def test_limits_and_the_proxy_protocol_hold_for_programs() -> None:
    async def main() -> None:
        options: dict[str, Any] = {"proxy_protocol": "v1", "limit_connections_per_ip": 1}
        async with Cluster.run(PROGRAM, "127.0.0.1:0", **options) as cluster:
            header = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\r\n"
            async with client("127.0.0.1", cluster.port, first=header) as one:
                assert one.told["client"] == ["192.0.2.7", 4711]
                reader, writer = await asyncio.open_connection("127.0.0.1", cluster.port)
                writer.write(header)
                async with asyncio.timeout(WAIT_SECONDS):
                    assert (await reader.readline()).startswith(b"HTTP/1.1 503")
                writer.close()
            async with asyncio.timeout(WAIT_SECONDS):
                while not await served(cluster.port, header):
                    pass

    run(main())
