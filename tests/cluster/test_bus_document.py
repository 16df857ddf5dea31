"""docs/bus.md is enough for a stranger: its examples run as they are written, and members get what they publish."""

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support import ROOT, require_program, run
from wscluster.envelope import Envelope, decode_message, encode_message
from wscluster.testing import Cluster

DOCUMENT = (ROOT / "docs/bus.md").read_text()
ROOMS = "tests.cluster.handlers:rooms"


def code(language: str) -> str:
    """Return the one block of code in ``language``."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    return str(block)


async def run_example(folder: Path, url: str, *command: str) -> str:
    """Run a program in a folder that has the document's script; returns what it prints."""
    (folder / "publish.lua").write_text(code("lua"))
    env = {"PATH": os.environ["PATH"], "SOCKET": url.removeprefix("unix://")}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=env, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode().strip()


@pytest.mark.parametrize("language", ["python", "sh"])
def test_a_member_hears_what_the_example_publishes(language: str, tmp_path: Path) -> None:
    if language == "sh":
        require_program("redis-cli")

    async def main() -> None:
        async with Cluster(ROOMS) as cluster, cluster.connect() as ws:
            await ws.send(json.dumps({"do": "join", "room": "lobby"}))
            assert str(await ws.recv()).startswith('!{"is"')
            url = (await cluster.status())["bus"]["url"]
            if language == "python":
                position = await run_example(tmp_path, url, sys.executable, "-c", code("python"), url)
            else:
                position = await run_example(tmp_path, url, "sh", "-c", code("sh"))
            assert await ws.recv() == f"hello from {'Python' if language == 'python' else 'a shell'}"
            await ws.send(json.dumps({"do": "state", "room": "lobby"}))
            state = json.loads(str(await ws.recv()).removeprefix("!"))["is"]
            assert state["positions"] == {"lobby": position}

    run(main())


def test_a_listener_sees_position_and_envelope_and_finds_them_in_the_log() -> None:
    async def main() -> None:
        async with Cluster(ROOMS, room_log=5, room_log_ttl=30) as cluster, cluster.connect() as ws:
            await ws.send(json.dumps({"do": "join", "room": "lobby"}))
            await ws.recv()
            url = (await cluster.status())["bus"]["url"]
            async with Redis.from_url(url) as server, server.pubsub() as channel:
                await channel.subscribe("wscluster:{lobby}")
                await channel.get_message(timeout=10)
                for text in ("one", "two words"):
                    await ws.send(json.dumps({"do": "publish", "room": "lobby", "text": text}))
                heard = [await channel.get_message(timeout=10) for _ in range(2)]
                entries: Any = await server.xrange("wscluster:{lobby}")
                left = await server.pttl("wscluster:{lobby}")
            split = [message["data"].split(b" ", 1) for message in heard]
            assert [envelope for _, envelope in split] == [b"\x01\x01one", b"\x01\x01two words"]
            assert [(position, fields) for position, fields in entries[1:]] == [(p, {b"e": e}) for p, e in split]
            # A room that is joined before its first message has a log that says where it begins.
            assert entries[0][1] == {b"e": b""}
            epochs, numbers = zip(*(position.split(b"-") for position, _ in entries), strict=True)
            assert len(set(epochs)) == 1
            assert numbers == (b"0", b"1", b"2")
            assert 0 < left <= 30_000

    run(main())


def test_what_is_no_envelope_is_ignored_and_the_worker_lives() -> None:
    async def main() -> None:
        async with Cluster(ROOMS) as cluster, cluster.connect() as ws:
            await ws.send(json.dumps({"do": "join", "room": "lobby"}))
            await ws.recv()
            url = (await cluster.status())["bus"]["url"]
            async with Redis.from_url(url) as server:
                for strange in (
                    b"",
                    b"hello",
                    b"1-1 ",
                    b"1-1 \x02\x01later version",
                    b"1-1 \x01\x04flag",
                    b"\x80\x04K\x01.",
                ):
                    assert await server.publish("wscluster:{lobby}", strange) == 1
            await ws.send(json.dumps({"do": "publish", "room": "lobby", "text": "still here"}))
            assert "still here" in {await ws.recv(), await ws.recv()}
            await cluster.wait_output("what came on its channel is no message")
            status = await cluster.wait_status(lambda status: status["bus"]["ignored"] == 6)
            assert status["totals"]["workers_restarted"] == 0
            assert status["bus"]["gaps"] == 0

    run(main())


def test_the_envelopes_of_the_document_are_right() -> None:
    first, second = re.findall(r"^ {4}(01 0[01](?: [0-9a-f]{2})*)$", DOCUMENT, flags=re.MULTILINE)
    assert bytes.fromhex(first) == encode_message("hello")
    assert bytes.fromhex(second) == encode_message(b"\x00\xff")
    assert decode_message(bytes.fromhex(second)) == Envelope(False, b"\x00\xff")
