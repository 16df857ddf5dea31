"""The flags of `serve`, their variables, and the events on `--ready-fd`."""

import asyncio
import collections
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.cluster.process_support import close_code, connect_to_slot, environment
from tests.cluster.room_support import Valkey
from tests.support import run
from wscluster.config import Asgi, flag_of, option_fields
from wscluster.gateway.cpus import count_cpus
from wscluster.testing import Cluster

SERVED = "tests.cluster.obeying:obey"
GIVEN = (
    "workers", "host", "port", "graceful_timeout", "control_socket", "ready_fd", "log_file", "app_dir", "redis_url",
)  # fmt: skip
"""What the test gives itself, for the sake of the other processes."""
ELSEWHERE = {
    "bind", "uds", "fd", "proxy_protocol", "ssl_certfile", "ssl_keyfile", "ssl_keyfile_password", "ssl_ca_certs",
    "process_request", "process_response", "select_subprotocol", "basic_auth", "allowed_origins", "env_file",
    *(item.name for item in dataclasses.fields(Asgi)),
}  # fmt: skip
"""What changes how a client must connect, needs a file, or is not for handlers: tests of their own have it."""
VALUES = {
    "backlog": "100",
    "timeout_worker_healthcheck": "1m",
    "worker_startup_timeout": "59.5",
    "drain_rate": "100",
    "log_format": "json",
    "on_event": "json:dumps",
    "metrics": "true",
    "metrics_address": "127.0.0.2",
    "metrics_port": "0",
    "workers_lifetime": "1d",
    "workers_max_rss": "4000",
    "sticky": "none",
    "balance": "round-robin",
    "slot_wait": "3",
    "redis_prefix": "other",
    "bus_timeout": "4",
    "room_log": "50",
    "room_log_ttl": "1m30s",
    "ws_max_size": "65536",
    "ws_max_queue": "8",
    "ws_ping_interval": "15",
    "ws_ping_timeout": "0",
    "ws_open_timeout": "9",
    "ws_close_timeout": "8",
    "ws_message_timeout": "7",
    "limit_max_messages": "1000000",
    "ws_per_message_deflate": "false",
    "max_send_queue": "2097152",
    "limit_connections": "50",
    "limit_connections_per_ip": "40",
    "limit_connect_rate_per_ip": "1000",
    "log_level": "debug",
    "proxy_allow_from": "10.0.0.0/8,::1/128",
    "subprotocols": "chat,other",
    "proxy_headers": "false",
    "forwarded_allow_ips": "10.0.0.1",
    "access_log": "true",
    "interface": "handler",
    "reload": "true",
    "reload_dir": "code",
    "reload_include": "*.html",
    "reload_exclude": "*.tmp",
    "reload_delay": "0.5",
}


@contextlib.asynccontextmanager
async def serving(
    *arguments: str, folder: Path, env: dict[str, str]
) -> AsyncIterator[tuple[dict[str, Any], asyncio.subprocess.Process]]:
    """``wscluster serve`` without the harness, its events on standard output; yields the ready event.

    Afterwards the process has ended; what it said on standard error is in its folder, as ``stderr``.
    """
    with (folder / "stderr").open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "wscluster", "serve", *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=stderr,
            cwd=folder, env=environment(folder) | env,
        )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            while line := await process.stdout.readline():
                event = json.loads(line)
                if event["event"] == "ready":
                    yield event, process
                    break
            else:
                raise AssertionError((folder / "stderr").read_text())
            if process.returncode is None:
                process.terminate()
            *_, last = (await process.stdout.read()).splitlines()
            assert json.loads(last) == {"event": "stopped"}
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_every_flag_is_taken_from_the_command_line_and_from_the_environment(tmp_path: Path, how: str) -> None:
    assert {*VALUES, *GIVEN, *ELSEWHERE} == option_fields().keys(), "this test has a value for every option"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "app.py").write_text(
        "import json, wscluster\n"
        "async def handler(ws):\n"
        "    await ws.send(json.dumps([ws.slot, len(ws.protocol.extensions)]))\n"
        "    await ws.join('lobby')\n"
        "    await ws.send('joined')\n"
        "    await ws.recv()\n"
    )

    async def main(valkey: Valkey) -> None:
        control = tmp_path / "own.sock"
        values = VALUES | {
            "workers": "3", "host": "127.0.0.2", "port": "0", "graceful_timeout": "6", "control_socket": str(control),
            "ready_fd": "1", "app_dir": "code", "redis_url": valkey.unix_url,
        }  # fmt: skip
        arguments: list[str] = []
        env: dict[str, str] = {}
        for name, value in values.items():
            if how == "flag":
                arguments += _arguments(name, value)
                # A flag comes before its variable.
                env["WSCLUSTER_" + name.upper()] = "nonsense"
            else:
                env["WSCLUSTER_" + name.upper()] = value
        async with serving("app:handler", *arguments, folder=tmp_path, env=env) as (ready, _process):
            host, port = ready["listeners"][0].split(":")
            assert (host, ready["port"]) == ("127.0.0.2", int(port))
            slots = []
            for _ in range(6):
                async with _client(host, int(port), Subprotocol("chat")) as ws:
                    assert ws.subprotocol == "chat"
                    slot, extensions = json.loads(await ws.recv())
                    slots.append(slot)
                    assert extensions == 0
                    assert await ws.recv() == "joined"
            assert collections.Counter(slots) == {0: 2, 1: 2, 2: 2}
            with valkey.client() as redis:
                assert b"other:{lobby}" in redis.pubsub_channels()
            status = await asyncio.to_thread(_status, control)
            assert status["primary"]["sticky"] == ["none"]
            assert len(status["workers"]) == 3
        said = (tmp_path / "stderr").read_text()
        assert '"level": "debug"' in said
        assert "stopping: 6 s for open connections" in said

    with Valkey(tmp_path) as valkey:
        run(main(valkey))


def _arguments(name: str, value: str) -> list[str]:
    if option_fields()[name][1].metadata["switch"]:
        return [flag_of(name) if value == "true" else f"--no-{flag_of(name)[2:]}"]
    return [flag_of(name), value]


def _client(host: str, port: int, *subprotocols: Subprotocol) -> Any:
    return connect(f"ws://{host}:{port}", proxy=None, subprotocols=subprotocols or None)


def _status(control: Path) -> Any:
    from wscluster.control_client import ask

    return ask(control, "status")


def test_the_usual_variables_of_hosting_services_are_read(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("async def handler(ws): pass\n")

    async def main() -> None:
        env = {"PORT": "0", "WEB_CONCURRENCY": "1", "WSCLUSTER_READY_FD": "1", "REDIS_URL": ""}
        async with serving("app:handler", folder=tmp_path, env=env) as (ready, process):
            assert ready["port"] not in (0, 8000)
            socket = tmp_path / "run" / "wscluster" / f"{process.pid}.sock"
            assert len((await asyncio.to_thread(_status, socket))["workers"]) == 1

    run(main())


def test_auto_is_as_many_workers_as_there_are_cpus() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers="auto") as cluster:  # type: ignore[arg-type]
            assert len(cluster.worker_pids()) == count_cpus()

    run(main())


def test_auto_honours_the_affinity_mask() -> None:
    cpu = min(os.sched_getaffinity(0))

    async def main() -> None:
        command = ("taskset", "-c", str(cpu), sys.executable, "-m", "wscluster")
        async with Cluster(SERVED, workers="auto", command=command) as cluster:  # type: ignore[arg-type]
            assert len(cluster.worker_pids()) == 1

    run(main())


@pytest.mark.parametrize("balance", ["least-connections", "round-robin", "random", None])
def test_without_stickiness_connections_of_one_address_are_spread(balance: str | None) -> None:
    async def main() -> None:
        options: dict[str, Any] = {} if balance is None else {"balance": balance}
        async with Cluster(SERVED, workers=3, sticky="none", **options) as cluster:
            clients = []
            for _ in range(48):
                clients.append(await cluster.connect())
            slots = collections.Counter([int(await ws.recv()) for ws in clients])
            if balance == "random":
                assert slots.keys() == {0, 1, 2}  # 3 * (2/3)**48: one of 94 million runs would miss a slot
            else:
                assert slots == {0: 16, 1: 16, 2: 16}
            if balance in ("least-connections", None):
                # Those of one slot leave: the next ones go there, until it is as full as the others.
                leaving = [ws for number, ws in enumerate(clients) if number % 3 == 0]
                await asyncio.gather(*(ws.close() for ws in leaving))
                await cluster.wait_status(lambda status: status["totals"]["connections"] == 32)
                clients = [ws for ws in clients if ws not in leaving] + [await cluster.connect() for _ in leaving]
                status = await cluster.wait_status(lambda status: status["totals"]["connections"] == 48)
                assert [worker["connections"] for worker in status["workers"]] == [16, 16, 16]
            await asyncio.gather(*(ws.close() for ws in clients))

    run(main())


def test_with_stickiness_connections_of_one_address_stay_together() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=3) as cluster:
            for source in ("127.1.0.5", "127.1.0.6"):
                clients = [await cluster.connect(source=source) for _ in range(6)]
                assert len({await ws.recv() for ws in clients}) == 1
                await asyncio.gather(*(ws.close() for ws in clients))

    run(main())


@pytest.mark.parametrize(("level", "shown"), [("debug", {"DEBUG", "INFO"}), ("warning", set())])
def test_the_log_level_decides_what_is_said(level: str, shown: set[str]) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1, log_level=level) as cluster:
            ws = await connect_to_slot(cluster, 0)
            await ws.close()
        assert {line.split()[2] for line in cluster.output if len(line.split()) > 2} == shown, cluster.output

    run(main())


def test_the_listening_line_says_where_and_how() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1) as cluster:
            line = await cluster.wait_output("listening on")
            assert f"http://127.0.0.1:{cluster.port} with 1 workers, sticky by ip" in line
            assert f"control socket {cluster.control_socket}" in line

    run(main())


def test_localhost_and_ipv6() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1, host="::1") as cluster:
            ready = await cluster.wait_event("ready")
            assert ready["listeners"] == [f"[::1]:{ready['port']}"]
            async with _client("[::1]", ready["port"]) as ws:
                assert await ws.recv() == "0"
        async with Cluster(SERVED, workers=1, host="localhost") as cluster:
            ready = await cluster.wait_event("ready")
            assert f"127.0.0.1:{ready['port']}" in ready["listeners"]
            for host in ("127.0.0.1", "[::1]"):
                if f"{host}:{ready['port']}" in ready["listeners"]:
                    async with _client(host, ready["port"]) as ws:
                        assert await ws.recv() == "0"

    run(main())


# Events


def test_the_events_of_a_life() -> None:
    async def main() -> None:
        async with Cluster(SERVED) as cluster:
            listener = f"127.0.0.1:{cluster.port}"
            bound, *became_ready, ready = cluster.events
            assert bound == {"event": "bound", "listener": listener}
            assert ready == {"event": "ready", "pid": cluster.pid, "port": cluster.port, "listeners": [listener]}
            pids = cluster.worker_pids()
            wanted = [{"event": "worker_ready", "slot": slot, "pid": pids[slot], "phase": 1} for slot in (0, 1)]
            assert sorted(became_ready, key=lambda event: int(event["slot"])) == wanted
            status = await cluster.status()
            assert [worker["pid"] for worker in status["workers"]] == [pids[0], pids[1]]
            assert await cluster.stop() == 0
            stopping, *exited, stopped = cluster.events[4:]
            assert stopping == {"event": "stopping"}
            wanted = [{"event": "worker_exited", "slot": slot, "pid": pids[slot], "status": 0} for slot in (0, 1)]
            assert sorted(exited, key=lambda event: int(event["slot"])) == wanted
            assert stopped == {"event": "stopped"}

    run(main())


@pytest.mark.parametrize("reader", ["leaves", "never reads"])
def test_a_reader_of_the_events_who_is_gone_or_asleep_stops_nothing(tmp_path: Path, reader: str) -> None:
    (tmp_path / "app.py").write_text(
        "import asyncio, os, wscluster\n"
        "@wscluster.lifespan\nasync def life():\n"
        "    if wscluster.this_worker.id < 4:\n"
        "        asyncio.get_running_loop().call_later(0.01, os._exit, 1)\n"
        "    yield\n"
        "async def handler(ws):\n    await ws.send(str(ws.slot))\n    await ws.recv()\n"
    )

    async def main() -> None:
        read, write = os.pipe()
        if reader == "never reads":  # and the pipe is full
            os.set_blocking(write, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(write, b"x" * 4096)
            os.set_blocking(write, True)
        else:
            os.close(read)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "wscluster", "serve", "app:handler", "--port", "0", "--workers", "1",
            "--ready-fd", str(write), "--control-socket", "own.sock",
            stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, cwd=tmp_path, env=environment(tmp_path),
            pass_fds=[write],
        )  # fmt: skip
        os.close(write)
        assert process.stderr is not None
        said = b""
        try:
            async with asyncio.timeout(20):
                while b"worker 4 ready" not in said:
                    said += await process.stderr.readline()
                status = await asyncio.to_thread(_status, tmp_path / "own.sock")
                host, port = status["primary"]["listeners"][0].split(":")
                async with _client(host, int(port)) as ws:
                    assert await ws.recv() == "0"
                process.terminate()
                said += await process.stderr.read()
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            if reader == "never reads":
                os.close(read)
        assert b"Traceback" not in said
        assert (b"no more events are written" in said) is (reader == "leaves")

    run(main())


def test_a_client_that_is_served_sees_the_stop_of_the_harness() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1) as cluster:
            ws = await connect_to_slot(cluster, 0)
        assert await close_code(ws) == 1001
        assert cluster.process.returncode == 0

    run(main())
