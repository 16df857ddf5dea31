"""What the WebSocket of an ASGI app still hears, and says, while its worker drains."""

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load import CLOSE, masked_frame
from tests.cluster.process_support import cli, close_code, in_folder, printed
from tests.cluster.raw import Raw
from tests.cluster.test_reload import save
from tests.cluster.test_reload_verb import outcome
from tests.support import run
from wscluster.testing import Cluster

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
CLOSE_1012 = b"\x88\x02\x03\xf4"

LISTENS = """
async def app(scope, receive, send):
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        print("heard", event["text"], flush=True)
    print("ended with", event["code"], flush=True)
"""
ECHOES = LISTENS.replace(
    "        print", "        await send({'type': 'websocket.send', 'text': event['text']})\n        print"
)
STREAMS = """
import asyncio, wscluster

async def app(scope, receive, send):
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})

    async def stream():
        async with wscluster.subscribe("news") as messages:
            async for message in messages:
                await send({"type": "websocket.send", "text": message.data})
        await send({"type": "websocket.close", "code": 1000})

    async def listen():
        while (event := await receive())["type"] == "websocket.receive":
            print("heard", event["text"], flush=True)
        print("ended with", event["code"], flush=True)

    tasks = [asyncio.create_task(stream()), asyncio.create_task(listen())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
"""


def released(folder: Path, source: str, **options: Any) -> Cluster:
    save(folder / "app.py", source)
    return Cluster("app:app", command=in_folder(folder), workers=1, **{"graceful_timeout": 8.0, **options})


async def opened(cluster: Cluster) -> Raw:
    raw = await Raw.connect(cluster.port, data=UPGRADE)
    assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    return raw


@pytest.mark.parametrize("bursts", [1, 10])
@pytest.mark.parametrize("source", [LISTENS, ECHOES, STREAMS], ids=["listens", "echoes", "streams"])
def test_what_a_client_sends_before_it_answers_the_close_reaches_the_app(
    tmp_path: Path, source: str, bursts: int
) -> None:
    said = [f"after the close {number:02}" for number in range(100)]

    async def main() -> None:
        async with released(tmp_path, source) as cluster:
            raw = await opened(cluster)
            reloading = asyncio.create_task(outcome(cluster, tmp_path))
            assert await raw.reader.readexactly(4) == CLOSE_1012
            for burst in range(bursts):
                part = said[burst * len(said) // bursts : (burst + 1) * len(said) // bursts]
                raw.writer.write(b"".join(masked_frame(text.encode()) for text in part))
                await cluster.status()  # the worker has read it before it answers this
            raw.writer.write(CLOSE)
            assert await raw.reader.read() == b"", "there is nothing behind a Close"
            await raw.close()
            assert (await reloading)["reason"] == ""
            await cluster.wait_output("ended with")
            assert printed(cluster) == [*(f"heard {text}" for text in said), "ended with 1012"]
            assert not [line for line in cluster.output if "did not take" in line or "Traceback" in line]

    run(main())


def test_all_of_it_in_one_piece_reaches_an_app_that_echoes(tmp_path: Path) -> None:
    """The client is gone before the app has taken the first message."""

    async def main() -> None:
        async with released(tmp_path, ECHOES) as cluster:
            raw = await opened(cluster)
            stopping = asyncio.create_task(cluster.stop())
            assert await raw.reader.readexactly(4) == CLOSE_1012
            raw.writer.write(masked_frame(b"a") + masked_frame(b"b") + masked_frame(b"c") + CLOSE)
            assert await raw.reader.read() == b""
            await raw.close()
            assert await stopping == 0
        assert printed(cluster) == ["heard a", "heard b", "heard c", "ended with 1012"]

    run(main())


def test_an_app_that_has_not_accepted_yet_may_do_so_and_is_closed_then(tmp_path: Path) -> None:
    source = LISTENS.replace(
        '    await send({"type": "websocket.accept"})',
        '    print("asked", flush=True)\n    await asyncio.sleep(1.5)\n    await send({"type": "websocket.accept"})',
    )

    async def main() -> None:
        async with released(tmp_path, f"import asyncio\n{source}") as cluster:
            raw = await Raw.connect(cluster.port, data=UPGRADE)
            await cluster.wait_output("asked")
            assert (await outcome(cluster, tmp_path))["reason"] == ""
            assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
            assert await raw.reader.readexactly(4) == CLOSE_1012
            raw.writer.write(masked_frame(b"thanks") + CLOSE)
            assert await raw.reader.read() == b""
            await raw.close()
            await cluster.wait_output("ended with 1012")
            assert printed(cluster) == ["asked", "heard thanks", "ended with 1012"]

    run(main())


def test_an_app_that_refuses_within_the_drain_is_heard(tmp_path: Path) -> None:
    source = (
        'import asyncio\n\nasync def app(scope, receive, send):\n    assert scope["type"] == "websocket"\n'
        '    await receive()\n    print("asked", flush=True)\n'
        '    await asyncio.sleep(1)\n    await send({"type": "websocket.close"})\n'
    )

    async def main() -> None:
        async with released(tmp_path, source) as cluster:
            raw = await Raw.connect(cluster.port, data=UPGRADE)
            await cluster.wait_output("asked")
            assert (await outcome(cluster, tmp_path))["reason"] == ""
            assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 403")
            await raw.close()

    run(main())


@pytest.mark.parametrize("wait", ["", "        await asyncio.sleep(0.01)\n"], ids=["in a loop", "now and then"])
def test_an_app_that_does_nothing_but_send_ends_with_its_client(tmp_path: Path, wait: str) -> None:
    source = (
        'import asyncio\n\nasync def app(scope, receive, send):\n    assert scope["type"] == "websocket"\n'
        '    await receive()\n    await send({"type": "websocket.accept"})\n    while True:\n'
        f'        await send({{"type": "websocket.send", "bytes": bytes(10000)}})\n{wait}'
    )

    async def main() -> None:
        async with released(tmp_path, source) as cluster:
            ws = await cluster.connect(compression=None)
            assert await ws.recv() == bytes(10000)
            begin = time.monotonic()
            reading = asyncio.create_task(close_code(ws))
            assert (await outcome(cluster, tmp_path))["reason"] == ""
            assert await reading == 1012
            await cluster.wait_event("worker_exited")
            assert time.monotonic() - begin < 4, "it was not cancelled at the graceful timeout"
            assert not [line for line in cluster.output if "Cancel" in line or "Traceback" in line]

    run(main())


def test_a_client_that_never_answers_is_gone_within_the_close_timeout(tmp_path: Path) -> None:
    async def main() -> None:
        async with released(tmp_path, LISTENS, ws_close_timeout=1) as cluster:
            raw = await opened(cluster)
            assert (await outcome(cluster, tmp_path))["reason"] == ""
            assert await raw.reader.readexactly(4) == CLOSE_1012
            begin = time.monotonic()
            raw.writer.write(masked_frame(b"no matter"))
            assert await raw.reader.read() == b""
            assert 0.3 < time.monotonic() - begin < 3
            await raw.close()
            await cluster.wait_event("worker_exited")
            assert printed(cluster) == ["heard no matter", "ended with 1012"]

    run(main())


def test_what_has_come_reaches_an_app_that_is_slow_after_its_client_was_given_up(tmp_path: Path) -> None:
    source = f"import asyncio\n{LISTENS}".replace("        print", "        await asyncio.sleep(0.4)\n        print")

    async def main() -> None:
        async with released(tmp_path, source, ws_close_timeout=1) as cluster:
            raw = await opened(cluster)
            reloading = asyncio.create_task(outcome(cluster, tmp_path))
            assert await raw.reader.readexactly(4) == CLOSE_1012
            raw.writer.write(b"".join(masked_frame(b"%d" % number) for number in range(5)))
            assert await raw.reader.read() == b""
            await raw.close()
            assert (await reloading)["reason"] == ""
            await cluster.wait_output("ended with 1012")
            await cluster.wait_event("worker_exited")
            assert printed(cluster) == [*(f"heard {number}" for number in range(5)), "ended with 1012"]
            assert not [line for line in cluster.output if "did not take" in line]

    run(main())


def test_a_client_that_is_kicked_while_it_is_closed_is_gone_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with released(tmp_path, LISTENS) as cluster:
            raw = await opened(cluster)
            where = ("--control-socket", str(cluster.control_socket))
            shown = await asyncio.to_thread(cli, "connections", *where, "--json", folder=tmp_path)
            (connection,) = json.loads(shown.stdout)
            stopping = asyncio.create_task(cluster.stop())
            assert await raw.reader.readexactly(4) == CLOSE_1012
            done = await asyncio.to_thread(cli, "kick", *where, connection["id"], folder=tmp_path)
            assert (done.returncode, done.stderr) == (0, "")
            begin = time.monotonic()
            with contextlib.suppress(ConnectionResetError):
                await raw.reader.read()
            assert await stopping == 0
            assert time.monotonic() - begin < 3
            await raw.close()
            assert not [line for line in cluster.output if "Traceback" in line]

    run(main())


def test_what_an_app_did_not_take_that_had_ended_is_counted(tmp_path: Path) -> None:
    source = LISTENS.replace("while (event", "if (event")

    async def main() -> None:
        async with released(tmp_path, source) as cluster:
            raw = await opened(cluster)
            reloading = asyncio.create_task(outcome(cluster, tmp_path))
            assert await raw.reader.readexactly(4) == CLOSE_1012
            raw.writer.write(masked_frame(b"one") + masked_frame(b"two"))
            await cluster.wait_output("heard one")
            raw.writer.write(masked_frame(b"three") + CLOSE)
            assert await raw.reader.read() == b""
            await raw.close()
            assert (await reloading)["reason"] == ""
            line = await cluster.wait_output("that the app did not take")
            assert line.endswith("did not take: 2"), line

    run(main())
