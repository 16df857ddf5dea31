"""The end of a cluster: by signals, by the verb, in time, and with nothing left behind."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.asyncio.client import ClientConnection

from tests.cluster.process_support import cli, close_code, connect_to_slot, printed, wait_gone
from tests.support import run
from wscluster.testing import Cluster

SERVED = "tests.cluster.obeying:obey"


def exists(path: str | Path) -> bool:
    return os.path.lexists(path)


@contextlib.asynccontextmanager
async def ending(**options: Any) -> AsyncIterator[tuple[Cluster, list[ClientConnection]]]:
    """A cluster of two workers with a client each and a room in use; afterwards nothing of it is left."""
    async with Cluster(SERVED, **options) as cluster:
        clients = [await connect_to_slot(cluster, slot) for slot in (0, 1)]
        await clients[0].send("join lobby")
        assert await clients[0].recv() == "done"
        family = psutil.Process(cluster.pid).children(recursive=True)
        assert len(family) == 3
        bus = (await cluster.status())["bus"]["url"].removeprefix("unix://")
        yield cluster, clients
        assert not cluster.running, "the test is to end it"
        await wait_gone((child.pid for child in family), 1)
        assert not exists(cluster.control_socket)
        assert not exists(os.path.dirname(bus))
        assert cluster.events[-1] == {"event": "stopped"}
        assert not [line for line in cluster.output if "Traceback" in line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_closes_every_connection_with_1001_and_lets_handlers_finish(number: signal.Signals) -> None:
    async def main() -> None:
        async with ending() as (cluster, clients):
            await clients[1].send("linger 0.5")
            assert await clients[1].recv() == "will"
            cluster.signal(number)
            assert [await close_code(ws) for ws in clients] == [1001, 1001]
            assert await cluster.wait_exit() == 0
            assert "lingered 0.5" in printed(cluster)
            exited = [event for event in cluster.events if event["event"] == "worker_exited"]
            assert sorted((event["slot"], event["status"]) for event in exited) == [(0, 0), (1, 0)]

    run(main())


def test_nobody_new_is_taken_while_handlers_finish() -> None:
    async def main() -> None:
        async with ending() as (cluster, clients):
            await clients[1].send("linger 1")
            assert await clients[1].recv() == "will"
            cluster.signal(signal.SIGTERM)
            # By the first close frame the listener is closed: it was closed first.
            assert await close_code(clients[0]) == 1001
            with pytest.raises(ConnectionRefusedError):
                await cluster.connect()
            status = await cluster.status()
            assert [worker["state"] for worker in status["workers"]][1] == "draining"
            assert await cluster.wait_exit() == 0
            assert "lingered 1" in printed(cluster)

    run(main())


def test_who_waits_for_the_handshake_is_let_go_at_a_stop() -> None:
    async def main() -> None:
        async with ending() as (cluster, _clients):
            reader, writer = await asyncio.open_connection("127.0.0.1", cluster.port)
            writer.write(b"GET / HTTP/1.1\r\n")
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 3)
            cluster.signal(signal.SIGTERM)
            assert await reader.read() == b""
            writer.close()
            assert await cluster.wait_exit() == 0

    run(main())


@pytest.mark.parametrize("what", ["swallow", "linger 60"])
def test_a_handler_that_does_not_end_is_cut_at_the_graceful_timeout(what: str) -> None:
    async def main() -> None:
        async with ending(graceful_timeout=0.4) as (cluster, clients):
            await clients[0].send(what)
            assert await clients[0].recv() == "will"
            cluster.signal(signal.SIGTERM)
            started = time.monotonic()
            assert await cluster.wait_exit() == 0
            assert time.monotonic() - started >= 0.4
            await cluster.wait_output("1 handlers did not end within 0.4 s: cancelled")

    run(main())


def test_a_worker_whose_loop_is_stuck_is_killed_after_the_graceful_timeout() -> None:
    async def main() -> None:
        async with ending(graceful_timeout=0.3) as (cluster, clients):
            await clients[0].send("block 60")
            assert await clients[0].recv() == "will"
            cluster.signal(signal.SIGTERM)
            assert await close_code(clients[1]) == 1001
            assert await cluster.wait_exit() == 0
            assert {event["status"] for event in cluster.events if event["event"] == "worker_exited"} == {0, -9}

    run(main())


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(second: signal.Signals) -> None:
    async def main() -> None:
        async with ending(graceful_timeout=60) as (cluster, clients):
            await clients[0].send("swallow")
            assert await clients[0].recv() == "will"
            cluster.signal(signal.SIGTERM)
            assert await close_code(clients[1]) == 1001
            started = time.monotonic()
            cluster.signal(second)
            assert await cluster.wait_exit() == 0
            assert time.monotonic() - started < 5

    run(main())


def test_quit_ends_it_at_once() -> None:
    async def main() -> None:
        async with ending(graceful_timeout=60) as (cluster, clients):
            await clients[0].send("linger 60")
            assert await clients[0].recv() == "will"
            cluster.signal(signal.SIGQUIT)
            assert await cluster.wait_exit() == 0
            assert [await close_code(ws) for ws in clients] == [1006, 1006]

    run(main())


# The verb


@pytest.mark.parametrize("force", [False, True])
def test_the_verb_stop_waits_for_the_end_and_takes_over_its_exit_code(tmp_path: Path, force: bool) -> None:
    async def main() -> None:
        async with ending(graceful_timeout=60 if force else 5) as (cluster, clients):
            await clients[0].send("linger 60" if force else "linger 0.3")
            assert await clients[0].recv() == "will"
            arguments = ["stop", "--control-socket", str(cluster.control_socket), *(["--force"] if force else [])]
            done = await asyncio.to_thread(cli, *arguments, folder=tmp_path)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            assert not psutil.pid_exists(cluster.pid) or psutil.Process(cluster.pid).status() == psutil.STATUS_ZOMBIE
            assert [await close_code(ws) for ws in clients] == [1006 if force else 1001] * 2
            assert await cluster.wait_exit() == 0
            assert ("lingered 0.3" in printed(cluster)) is not force

    run(main())


def test_several_who_ask_for_the_stop_all_hear_of_the_end(tmp_path: Path) -> None:
    """Also the one who asks later and does not want to wait."""

    async def main() -> None:
        async with ending(graceful_timeout=60) as (cluster, clients):
            await clients[0].send("swallow")
            assert await clients[0].recv() == "will"
            arguments = ("stop", "--control-socket", str(cluster.control_socket))
            waiting = [asyncio.create_task(asyncio.to_thread(cli, *arguments, folder=tmp_path)) for _ in range(2)]
            await cluster.wait_status(lambda status: status["workers"][0]["state"] == "draining")
            last = await asyncio.to_thread(cli, *arguments, "--force", folder=tmp_path)
            done = [*await asyncio.gather(*waiting), last]
            # The first two may still have been starting when everything had ended.
            assert last.returncode == 0
            assert [one.returncode for one in done if not one.stderr] == [0] * len([o for o in done if not o.stderr])
            assert await cluster.wait_exit() == 0

    run(main())


# While it boots

SLOW = "import time\nprint('importing', flush=True)\ntime.sleep(60)\nasync def handler(ws): pass\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_stop_while_the_workers_boot(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "slow.py").write_text(SLOW)

    async def main() -> None:
        cluster = Cluster("slow:handler", app_dir=tmp_path)
        await cluster.start()
        try:
            await cluster.wait_output("importing")
            cluster.signal(number)
            assert await cluster.wait_exit() == 0
            assert [event["event"] for event in cluster.events] == ["bound", *["worker_exited"] * 2, "stopped"]
            assert not exists(cluster.control_socket)
        finally:
            await cluster.__aexit__(None, None, None)

    run(main())


def test_a_stop_while_the_bus_does_not_answer(tmp_path: Path) -> None:
    async def main() -> None:
        called = asyncio.Event()

        async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            called.set()
            await reader.read(-1)
            writer.close()

        server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        cluster = Cluster(SERVED, redis_url=url, bus_timeout=60)
        await cluster.start()
        try:
            await asyncio.wait_for(called.wait(), 20)
            cluster.signal(signal.SIGTERM)
            assert await cluster.wait_exit() == 0
            assert (cluster.events, cluster.output) == ([], [])
        finally:
            await cluster.__aexit__(None, None, None)
            server.close()

    run(main())


@pytest.mark.parametrize("moment", ["bound", "importing"])
def test_a_ctrl_c_while_the_workers_boot_is_no_traceback(tmp_path: Path, moment: str) -> None:
    """The terminal sends it to every process of the group, to those too that cannot handle signals yet."""
    (tmp_path / "slow.py").write_text(SLOW)

    async def main() -> None:
        cluster = Cluster("slow:handler", workers=3, app_dir=tmp_path, command=_own_group())
        await cluster.start()
        try:
            await (cluster.wait_event("bound") if moment == "bound" else cluster.wait_output("importing"))
            os.killpg(cluster.pid, signal.SIGINT)
            assert await cluster.wait_exit() == 0
            text = "\n".join(cluster.output)
            assert "Traceback" not in text
            assert "KeyboardInterrupt" not in text
            assert "SIGINT" not in text
            assert cluster.events[-1] == {"event": "stopped"}
        finally:
            await cluster.__aexit__(None, None, None)

    run(main())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_is_a_clean_stop(number: signal.Signals) -> None:
    async def main() -> None:
        async with ending(command=_own_group()) as (cluster, clients):
            await clients[0].send("linger 0.3")
            assert await clients[0].recv() == "will"
            os.killpg(cluster.pid, number)
            assert [await close_code(ws) for ws in clients] == [1001, 1001]
            assert await cluster.wait_exit() == 0
            assert "lingered 0.3" in printed(cluster)
            assert {event["status"] for event in cluster.events if event["event"] == "worker_exited"} == {0}

    run(main())


def _own_group() -> tuple[str, ...]:
    """The command of a cluster that leads a process group of its own, like a job of a shell."""
    return ("setsid", sys.executable, "-m", "wscluster")


def test_closed_standard_streams_do_no_harm() -> None:
    """Some supervisors start programs so: a socket under the number 0, 1 or 2 would make libuv abort at the end."""

    async def main() -> None:
        shell = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "wscluster")
        async with Cluster(SERVED, workers=1, command=shell) as cluster:
            ws = await connect_to_slot(cluster, 0)
            await ws.send("print 1000")
            assert await ws.recv() == "done"
            cluster.signal(signal.SIGTERM)
            assert await close_code(ws) == 1001
            assert await cluster.wait_exit() == 0
            assert {event["status"] for event in cluster.events if event["event"] == "worker_exited"} == {0}

    run(main())


def test_a_stopped_cluster_leaves_its_port_to_the_next_one() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1) as first:
            ws = await connect_to_slot(first, 0)
            port = first.port
            assert await first.stop() == 0
            assert await close_code(ws) == 1001
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)) != 0
        async with Cluster(SERVED, workers=1, port=port) as second:
            assert second.port == port

    run(main())
