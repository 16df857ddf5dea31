"""Under systemd: its sockets are accepted from, and it hears of readiness, reloads, the stop and the watchdog."""

import asyncio
import os
import re
import socket
import sys
from pathlib import Path

import pytest

from tests.cluster.process_support import cli, connect_to_slot
from tests.support import run
from wscluster.testing import Cluster

SERVED = "tests.cluster.obeying:obey"
# As systemd does it: the sockets stand from 3 on, and the variables name the very process.
HAND_ON = (
    "import os, sys; fds = [int(fd) for fd in sys.argv[1].split(',')]\n"
    "for place, fd in enumerate(fds, 3): os.dup2(fd, place, inheritable=True)\n"
    "os.environ |= {'LISTEN_FDS': str(len(fds)), 'LISTEN_FDNAMES': 'a:b'}\n"
    "os.environ['LISTEN_PID'] = sys.argv[2] or str(os.getpid())\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'wscluster', *sys.argv[3:]])\n"
)


class Heard:
    """The socket that NOTIFY_SOCKET names."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + address[1:] if address.startswith("@") else address)
        self.sock.setblocking(False)

    async def until(self, wanted: str) -> list[str]:
        """Read until a message has this line; returns its lines."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(20):
            while True:
                lines = (await loop.sock_recv(self.sock, 4096)).decode().split("\n")
                if wanted in lines:
                    return lines


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_it_hears_of_every_turn_of_the_life(tmp_path: Path, abstract: bool) -> None:
    address = f"@wscluster-test-{os.getpid()}" if abstract else str(tmp_path / "notify")

    async def main() -> None:
        heard = Heard(address)
        env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}
        async with Cluster(SERVED, workers=1, env=env) as cluster:
            assert f"STATUS=serving on 127.0.0.1:{cluster.port}" in await heard.until("READY=1")
            for _ in range(3):
                await heard.until("WATCHDOG=1")
            reloading = asyncio.create_task(
                asyncio.to_thread(cli, "reload", "--control-socket", str(cluster.control_socket), folder=tmp_path)
            )
            lines = await heard.until("RELOADING=1")
            assert [line for line in lines if re.fullmatch(r"MONOTONIC_USEC=\d+", line)]
            await heard.until("READY=1")
            assert (await reloading).returncode == 0
            cluster.process.terminate()
            await heard.until("STOPPING=1")
        heard.sock.close()

    run(main())


def test_a_watchdog_that_is_meant_for_another_process_is_not_fed_and_one_that_is_gone_is_said(tmp_path: Path) -> None:
    async def main() -> None:
        env = {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
        async with Cluster(SERVED, workers=1, env=env) as cluster:
            await cluster.wait_output("systemd does not hear us at NOTIFY_SOCKET")
            ws = await connect_to_slot(cluster, 0)
            await ws.close()
            assert sum("does not hear us" in line for line in cluster.output) == 1

    run(main())


def test_its_sockets_are_accepted_from_instead_of_host_and_port(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            fds = (one.fileno(), other.fileno())
            command = (sys.executable, "-c", HAND_ON, ",".join(map(str, fds)), "")
            async with Cluster(SERVED, workers=1, command=command, pass_fds=fds) as cluster:
                ports = [sock.getsockname()[1] for sock in (one, other)]
                assert cluster.ports == ports
                for port in ports:
                    async with cluster.connect() as ws:
                        assert port
                        assert await ws.recv() == "0"
                environ = Path(f"/proc/{cluster.worker_pids()[0]}/environ").read_bytes()
                assert b"LISTEN_" not in environ

    run(main())


def test_sockets_for_another_process_and_beside_bind_are_left_alone(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            command = (sys.executable, "-c", HAND_ON, str(sock.fileno()), "1")
            async with Cluster(SERVED, workers=1, command=command, pass_fds=(sock.fileno(),)) as cluster:
                assert cluster.port != sock.getsockname()[1]
            command = (sys.executable, "-c", HAND_ON, str(sock.fileno()), "")
            async with Cluster(
                SERVED, workers=1, command=command, pass_fds=(sock.fileno(),), bind=["127.0.0.1:0"]
            ) as cluster:
                assert cluster.port != sock.getsockname()[1]

    run(main())
