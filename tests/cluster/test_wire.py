"""Bad input on the wire, against a real cluster: each gets its answer, and no worker is worse off."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.raw import CLOSE, Raw, ask, frame, handshake
from tests.support import open_fds, run
from wscluster.testing import Cluster

WHO = "tests.cluster.handlers:who"


@contextlib.asynccontextmanager
async def unharmed(**options: Any) -> AsyncIterator[Cluster]:
    """A cluster whose workers have, after the test, the pids and the number of descriptors that they had before."""
    async with Cluster(WHO, workers=2, **options) as cluster:
        pids = cluster.worker_pids()
        for source in ("127.1.0.1", "127.1.0.2", "127.1.0.3", "127.1.0.4"):
            await served(cluster, source)
        await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
        before = {pid: len(open_fds(pid)) for pid in pids.values()}
        yield cluster
        status = await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
        assert cluster.worker_pids() == pids
        assert status["totals"]["workers_restarted"] == 0
        assert status["totals"]["accepted"] == status["totals"]["adopted"]
        async with asyncio.timeout(10):
            while (now := {pid: len(open_fds(pid)) for pid in before}) != before:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert now == before
        await served(cluster, "127.0.0.1")
        if options.get("log_level") != "debug":  # the library explains each bad handshake with one there
            assert not [line for line in cluster.output if "Traceback" in line]


async def served(cluster: Cluster, source: str) -> None:
    async with cluster.connect(source=source) as ws:
        await ws.recv()
        await ws.send("hello")
        assert await ws.recv() == "hello"


ANSWERED = {
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", "400"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "400"),
    "zeros": (bytes(100) + b"\r\n\r\n", "400"),
    "bare line feeds": (handshake().replace(b"\r\n", b"\n") + b"\r\n\r\n", "400"),
    "a plain GET": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "426"),
    "a POST": (b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n", "40"),
    "an old version": (handshake(version="8"), "426"),
    "no number as version": (handshake(version="thirteen"), "426"),
    "no key": (handshake().replace(b"Sec-WebSocket-Key", b"Sec-WebSocket-Kee"), "400"),
    "a short key": (handshake().replace(b"AAAA==", b"=="), "400"),
    "HTTP/1.0": (handshake().replace(b"HTTP/1.1", b"HTTP/1.0"), "505"),
    "a line of 10 KiB": (handshake("/" + "x" * 10_000), "414"),
    "a header of 10 KiB": (handshake("/", "X: " + "x" * 10_000), "431"),
    "200 headers": (handshake("/", *("X: x" for _ in range(200))), "431"),
}


def test_bad_requests_get_their_answer() -> None:
    async def main() -> None:
        async with unharmed(ws_close_timeout=1) as cluster:
            answers = await asyncio.gather(*(ask(cluster.port, data) for data, _ in ANSWERED.values()))
            got = {name: head.split("\r\n")[0] for name, (head, _) in zip(ANSWERED, answers, strict=True)}
            wrong = {name: got[name] for name, (_, code) in ANSWERED.items() if f"HTTP/1.1 {code}" not in got[name]}
            assert wrong == {}
            heads = dict(zip(ANSWERED, (head for head, _ in answers), strict=True))
            assert "\r\nUpgrade: websocket\r\n" in heads["a plain GET"]

    run(main())


def test_an_endless_head_is_cut_off() -> None:
    async def main() -> None:
        async with unharmed(ws_close_timeout=1) as cluster:
            endless = {"414": b"GET /" + b"x" * 200_000, "431": handshake()[:-2] + b"X: x\r\n" * 30_000}
            for code, data in endless.items():
                head, _ = await ask(cluster.port, data)
                assert head.startswith(f"HTTP/1.1 {code} ")

    run(main())


def test_half_a_head_and_then_silence_is_answered_with_408_and_silence_is_closed() -> None:
    async def main() -> None:
        async with unharmed(ws_open_timeout=1, ws_close_timeout=1) as cluster:
            loop = asyncio.get_running_loop()
            halves = [handshake()[:-1], b"G", handshake()[:40], b""]
            raws = [await Raw.connect(cluster.port, data=half) for half in halves]
            began = loop.time()
            heads = await asyncio.gather(*(raw.head() for raw in raws))
            assert [head[:12] for head in heads] == ["HTTP/1.1 408"] * 3 + [""]
            await asyncio.gather(*(raw.rest() for raw in raws))
            assert 0.9 < loop.time() - began < 5
            await asyncio.gather(*(raw.close() for raw in raws))
            # A byte now and then is no progress.
            raw = await Raw.connect(cluster.port)
            head = asyncio.create_task(raw.head())
            for byte in handshake()[:100]:
                if head.done():
                    break
                raw.writer.write(bytes((byte,)))
                await asyncio.sleep(0.05)
            assert "408" in await head
            await raw.close()

    run(main())


@pytest.mark.parametrize("data", [b"", b"GET / HT", handshake(), handshake() + frame("x") * 50])
def test_200_clients_that_reset_at_once_leave_nothing_behind(data: bytes) -> None:
    async def main() -> None:
        async with unharmed() as cluster:
            for begin in range(0, 200, 20):
                sources = [f"127.1.0.{begin + number + 1}" for number in range(20)]
                raws = await asyncio.gather(*(Raw.connect(cluster.port, source, data) for source in sources))
                for raw in raws:
                    raw.reset()
            # Some are gone before they are accepted: Linux hands those out all the same.
            await cluster.wait_status(lambda status: status["totals"]["accepted"] == 204)

    run(main())


def test_first_frames_that_come_together_with_the_handshake_are_read() -> None:
    async def main() -> None:
        async with unharmed() as cluster:
            for count in (1, 2, 16, 17, 300):
                frames = b"".join(frame(f"message {number}") for number in range(count))
                raw = await Raw.connect(cluster.port, data=handshake() + frames)
                assert "101" in await raw.head()
                assert json.loads(await raw.message())["path"] == "/"
                assert [await raw.message() for _ in range(count)] == [f"message {number}" for number in range(count)]
                raw.writer.write(CLOSE)
                assert await raw.rest() == b"\x88\x02\x03\xe8"
                await raw.close()

    run(main())


def test_a_handshake_that_comes_byte_by_byte_is_answered() -> None:
    async def main() -> None:
        async with unharmed() as cluster:
            raw = await Raw.connect(cluster.port)
            for byte in handshake() + frame("slowly"):
                raw.writer.write(bytes((byte,)))
                await asyncio.sleep(0.001)
            assert "101" in await raw.head()
            assert json.loads(await raw.message())["path"] == "/"
            assert await raw.message() == "slowly"
            await raw.close()

    run(main())


@pytest.mark.parametrize("data", [b"", handshake()[:50], handshake(), handshake() + frame("last words")])
def test_a_half_closed_connection_is_ended(data: bytes) -> None:
    async def main() -> None:
        async with unharmed(ws_close_timeout=1) as cluster:
            raw = await Raw.connect(cluster.port, data=data)
            raw.writer.write_eof()
            received = await raw.rest()
            assert (b"HTTP/1.1 101" in received) == data.startswith(handshake())
            await raw.close()

    run(main())


@pytest.mark.parametrize("level", ["info", "debug"])
def test_control_characters_of_a_client_are_never_raw_in_the_log(level: str) -> None:
    evil = "\x1b[31mred\x07\x08\x9b\x00"

    async def main() -> None:
        async with unharmed(log_level=level, ws_close_timeout=1) as cluster:
            requests = [
                handshake(f"/{evil}"),
                handshake("/", f"X-Evil: {evil}"),
                handshake("/", f"X-{evil}: evil"),
                handshake("/", f"Origin: {evil}", f"Sec-WebSocket-Protocol: {evil}"),
                handshake("/", f"Sec-WebSocket-Extensions: {evil}"),
                handshake(version=evil),
                handshake().replace(b"websocket", evil.encode("latin-1")),
                handshake().replace(b"127.0.0.1", evil.encode("latin-1")),
                handshake().replace(b"AAAA==", evil.encode("latin-1")),
                handshake() + frame(evil) + b"\x88\x86" + bytes(4) + b"\x03\xe8" + b"\x1b[1m"[:4],
                evil.encode("latin-1") + b"\r\n\r\n",
            ]
            raws = [await Raw.connect(cluster.port, data=request) for request in requests]
            for raw in raws:
                await raw.head()
                await raw.close()
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
            output = "\n".join(cluster.output)
            # The harness decodes with replacement, so a raw 0x9b would show as that.
            raw_controls = {char for char in output if not char.isprintable() and char != "\n"}
            shown = [line for line in cluster.output if not line.isprintable()]
            assert raw_controls == set(), shown
            assert "\ufffd" not in output
            if level == "debug":
                assert "red" in output, "nothing of it was logged, so nothing was shown"

    run(main())


def test_control_characters_in_an_exception_of_a_handler_are_never_raw_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("async def fails(ws):\n    raise ValueError(await ws.recv())\n")

    async def main() -> None:
        async with Cluster("fails:fails", workers=1, app_dir=tmp_path) as cluster:
            async with cluster.connect() as ws:
                await ws.send("\x1b[31mred\x07")
                await ws.wait_closed()
                assert ws.close_code == 1011
            line = await cluster.wait_output("ValueError: ")
            assert line.isprintable(), repr(line)

    run(main())


def test_500_bad_clients_of_every_kind_at_once_disturb_no_good_one() -> None:
    async def main() -> None:
        async with unharmed(ws_close_timeout=1) as cluster:
            answered = [data for data, _ in ANSWERED.values()]
            bad = [*answered, b"", handshake()[:60], bytes(range(256)) * 4]

            async def be_bad(number: int) -> None:
                raw = await Raw.connect(cluster.port, f"127.1.1.{number % 250 + 1}", bad[number % len(bad)])
                if number % 3 and number % len(bad) < len(answered):
                    await raw.rest()
                elif number % 2:
                    raw.reset()
                await raw.close()

            async def be_good() -> None:
                for number in range(40):
                    await served(cluster, f"127.1.0.{number + 1}")

            await asyncio.gather(be_good(), *(be_bad(number) for number in range(500)))

    run(main())
