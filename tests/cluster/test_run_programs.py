"""Unmodified programs on every worker: `wscluster run` with what people write."""

import asyncio
import json
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
import trustme

from tests.certificate_support import write_server
from tests.cluster.raw import Raw
from tests.support import run
from wscluster.testing import Cluster

PROGRAMS = Path(__file__).parent / "programs"
SOURCES = [f"127.1.0.{number}" for number in range(1, 17)]


def program(name: str, *arguments: str) -> tuple[str, ...]:
    return (str(PROGRAMS / f"{name}.py"), *arguments)


async def line_of(cluster: Cluster, source: str) -> str:
    raw = await Raw.connect(cluster.port, source, b"hello\n")
    line = await raw.reader.readline()
    raw.writer.close()
    return line.decode()


async def message_of(cluster: Cluster, source: str) -> str:
    async with cluster.connect(source=source) as ws:
        await ws.send("hello")
        message = await ws.recv()
    return message if isinstance(message, str) else message.decode()


async def page_of(cluster: Cluster, source: str) -> str:
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(local_address=source)) as client:
        page = await client.get(cluster.http_url, headers={"Connection": "close"})
    assert page.status_code == 200
    return page.text


Ask = Callable[[Cluster, str], Awaitable[str]]


@pytest.mark.parametrize(
    ("words", "ask", "answer"),
    [
        (("streams",), line_of, "hello\n"),
        (("streams", "uvloop.run"), line_of, "hello\n"),
        (("streams", "uvloop.install"), line_of, "hello\n"),
        (("streams", "Runner"), line_of, "hello\n"),
        (("websockets_echo",), message_of, "hello"),
        (("uvicorn_app",), page_of, "{source}"),
        (("aiohttp_app",), page_of, "{source}"),
        (("picows_echo",), message_of, "hello"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_program_serves_on_every_worker_and_each_client_stays_on_one(
    words: tuple[str, ...], ask: Ask, answer: str
) -> None:
    async def main() -> None:
        async with Cluster.run(*program(*words)) as cluster:
            pids = {str(pid) for pid in cluster.worker_pids().values()}
            found = {}
            for source in SOURCES:
                pid, text = (await ask(cluster, source)).split(" ", 1)
                assert text == answer.format(source=source)
                found[source] = pid
            assert set(found.values()) == pids
            for source in SOURCES[:4]:
                assert (await ask(cluster, source)).split(" ", 1)[0] == found[source]
            status = await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
            assert status["totals"]["adopted"] == len(SOURCES) + 4
            assert {worker["messages_in"] for worker in status["workers"]} == {None}
        exits = [event["status"] for event in cluster.events if event["event"] == "worker_exited"]
        # uvicorn puts the system's own handler back and sends itself the signal again.
        assert exits == ([-signal.SIGTERM] * 2 if words[0] == "uvicorn_app" else [0, 0])
        assert not [line for line in cluster.output if "Traceback" in line]

    run(main())


def test_a_room_reaches_the_programs_of_every_worker() -> None:
    async def main() -> None:
        async with Cluster.run(*program("rooms")) as cluster:
            talkers = [await Raw.connect(cluster.port, source) for source in SOURCES]
            slots = {await talker.reader.readline() for talker in talkers}
            assert slots == {b"welcome to slot 0\n", b"welcome to slot 1\n"}
            talkers[0].writer.write(b"good morning\n")
            for talker in talkers:
                assert await talker.reader.readline() == b"good morning\n"
                talker.writer.close()
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
        assert [event["status"] for event in cluster.events if event["event"] == "worker_exited"] == [0, 0]
        assert not [line for line in cluster.output if "Traceback" in line]

    run(main())


def test_every_way_to_listen(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate, key = write_server(tmp_path, authority)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = tmp_path / "app.sock"

    async def asks(opened: Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> int:
        reader, writer = await opened
        writer.write(b"hello\n")
        pid, rest = (await reader.readline()).decode().split(" ", 1)
        assert rest.endswith(" hello\n")
        writer.close()
        await writer.wait_closed()
        return int(pid)

    async def main() -> None:
        async with Cluster.run(*program("several", str(port), str(path), str(certificate), str(key))) as cluster:
            pids = set(cluster.worker_pids().values())
            lines = [await cluster.wait_output(f"{pid} [[") for pid in pids]
            printed = [json.loads(line.partition(" | ")[2].partition(" ")[2]) for line in lines]
            assert printed[0] == printed[1]
            first, both, every, unix, tls, late = printed[0]
            assert first == [["127.0.0.1", port]]
            assert sorted(len(name) for name in both) == [2, 4]
            assert len({name[1] for name in every}) == 1
            assert unix == [str(path)]
            context = ssl.create_default_context()
            authority.configure_trust(context)
            for host, number in [("127.0.0.1", port), *(name[:2] for name in both), ("127.0.0.1", every[0][1]),
                                 ("::1", every[0][1]), late[0]]:  # fmt: skip
                assert await asks(asyncio.open_connection(host, number)) in pids
            assert await asks(asyncio.open_unix_connection(path)) in pids
            assert await asks(asyncio.open_connection(*tls[0], ssl=context, server_hostname="localhost")) in pids
        assert not path.exists()

    run(main())


@pytest.mark.parametrize("how", ["handler", "cancelled"])
def test_a_program_ends_as_it_would_have_been_ended_alone(how: str) -> None:
    async def main() -> None:
        async with Cluster.run(*program("ending", how)) as cluster:
            client = await Raw.connect(cluster.port, data=b"before\n")
            assert await client.reader.readline() == b"before\n"
            cluster.signal(signal.SIGTERM)
            await cluster.wait_output("stopping")
            # What is open goes on.
            client.writer.write(b"after\n")
            assert await client.reader.readline() == b"after\n"
            client.writer.close()
            assert await cluster.wait_exit() == 0
        told = "asked by SIGTERM" if how == "handler" else "cancelled"
        assert sum(told in line for line in cluster.output) == 2, cluster.output
        assert not [line for line in cluster.output if "Traceback" in line]

    run(main())


def test_a_program_that_heeds_no_signal_is_killed_five_seconds_after_the_graceful_timeout() -> None:
    async def main() -> None:
        async with Cluster.run(*program("ending", "ignores"), workers=1, graceful_timeout=1) as cluster:
            client = await Raw.connect(cluster.port, data=b"before\n")
            assert await client.reader.readline() == b"before\n"
            started = time.monotonic()
            cluster.signal(signal.SIGTERM)
            await cluster.wait_output("SIGTERM is not heard")
            assert time.monotonic() - started > 0.9
            assert await cluster.wait_exit() == 0
            assert 5.5 < time.monotonic() - started < 12
            client.writer.close()

    run(main())
