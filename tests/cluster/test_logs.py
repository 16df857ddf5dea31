"""Lines of the log, as a collector reads them."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from tests.cluster.process_support import cli, close_code, connect_to_slot, environment
from tests.support import ROOT, run
from wscluster.testing import Cluster


def test_every_line_of_primary_and_workers_is_json() -> None:
    async def main() -> None:
        cluster = Cluster("tests.cluster.obeying:obey", workers=2, log_format="json", access_log=True)
        async with cluster:
            ws = await connect_to_slot(cluster, 1)
            await ws.send("raise")
            assert await close_code(ws) == 1011
        lines = [json.loads(line) for line in cluster.output]
        assert {line["role"] for line in lines} == {"primary", "worker"}
        failed = next(line for line in lines if "exception" in line)
        assert (failed["slot"], failed["level"]) == (1, "error")
        assert "as it was told" in failed["exception"]

    run(main())


SERVED = "tests.cluster.obeying:obey"


async def told(ws: Any, message: str) -> str:
    await ws.send(message)
    return str(await ws.recv())


def test_what_workers_print_says_whose_it_is_and_the_verb_shows_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=2) as cluster:
            where = ("logs", "--control-socket", str(cluster.control_socket))
            for slot in (0, 1):
                ws = await connect_to_slot(cluster, slot)
                for message in (f"say printed {slot}", f"complain moaned {slot}", f"log logged {slot}"):
                    assert await told(ws, message) == "done"
                await ws.close()
            for slot in (0, 1):
                for what in ("stdout ", "stderr ", "WARNING"):
                    word = {"stdout ": "printed", "stderr ": "moaned", "WARNING": "logged"}[what]
                    line = await cluster.wait_output(f"{word} {slot}")
                    assert re.search(rf" {what} worker [12] slot {slot} phase 1 \| {word} {slot}", line)
            shown = await asyncio.to_thread(cli, *where, folder=tmp_path)
            assert (shown.returncode, shown.stderr) == (0, "")
            assert sorted(shown.stdout.splitlines()) == sorted(cluster.output)
            shown = await asyncio.to_thread(cli, *where, "--slot", "1", "--json", folder=tmp_path)
            lines = [json.loads(line) for line in shown.stdout.splitlines()]
            assert {(line["slot"], line["role"], line["phase"]) for line in lines} == {(1, "worker", 1)}
            assert sorted(line["stream"] for line in lines) == ["log", "stderr", "stdout"]
            shown = await asyncio.to_thread(cli, *where, "-n", "1", folder=tmp_path)
            assert shown.stdout.splitlines() == cluster.output[-1:]
            for wrong, said in (("7", "there is no slot 7: there are slots 0 to 1"), ("-3", "slot -3 is no number")):
                shown = await asyncio.to_thread(cli, *where, "--slot", wrong, folder=tmp_path)
                assert (shown.returncode, shown.stdout) == (1, "")
                assert said in shown.stderr

    run(main())


def test_who_follows_the_log_gets_each_line_and_ends_with_the_primary(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1) as cluster:
            follower = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "wscluster", "logs", "--follow", "--slot", "0", "-n", "0",
                "--control-socket", str(cluster.control_socket),
                cwd=tmp_path, env=environment(tmp_path) | {"PYTHONPATH": str(ROOT)},
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert follower.stdout is not None
            ws = await connect_to_slot(cluster, 0)
            seen = 0
            heard: list[str] = []
            # It begins with what comes after it has asked: it is told until it has heard.
            reading = asyncio.ensure_future(follower.stdout.readline())
            while not reading.done():
                seen += 1
                assert await told(ws, f"say line {seen}") == "done"
                await asyncio.wait([reading], timeout=0.05)
            heard.append(reading.result().decode())
            first = int(heard[0].rpartition(" ")[2])
            assert await told(ws, "say the last") == "done"
            while "the last" not in heard[-1]:
                heard.append((await follower.stdout.readline()).decode())
            texts = [line.partition(" | ")[2].strip() for line in heard]
            assert texts == [f"line {number}" for number in range(first, seen + 1)] + ["the last"]
            await ws.close()
            assert await cluster.stop() == 0
            assert await follower.wait() == 0

    run(main())


def test_a_primary_whose_output_nobody_reads_serves_on_and_its_workers_print_on(tmp_path: Path) -> None:
    async def main() -> None:
        reading, writing = os.pipe()
        ready, ready_end = os.pipe()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "wscluster", "serve", SERVED, "--workers", "1", "--port", "0", "--log-level", "debug",
            "--ready-fd", str(ready_end),
            env=environment(tmp_path) | {"PYTHONPATH": str(ROOT)}, pass_fds=(ready_end,),
            stdin=subprocess.DEVNULL, stdout=writing, stderr=writing,
        )  # fmt: skip
        os.close(writing)
        os.close(ready_end)
        with os.fdopen(ready) as events:
            while (event := json.loads(await asyncio.to_thread(events.readline)))["event"] != "ready":
                pass
            async with connect(f"ws://127.0.0.1:{event['port']}") as ws:
                await ws.recv()
                for _ in range(30):  # a pipe has room for 65,536 bytes
                    assert await told(ws, "print 100000") == "done"
            process.terminate()
            os.set_blocking(reading, False)
            assert await process.wait() == 0, "it gives up what nobody takes"
        os.close(reading)

    run(main())


def test_the_log_goes_to_a_file_which_usr1_opens_again(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "server.log"
        async with Cluster(SERVED, workers=1, log_file=str(path)) as cluster:
            ws = await connect_to_slot(cluster, 0)
            assert await told(ws, "say before") == "done"
            assert await told(ws, "log before too") == "done"
            while path.read_text().count("before") < 2:
                await cluster.status()
            path.rename(tmp_path / "server.log.1")
            cluster.signal(signal.SIGUSR1)
            await cluster.wait_status(lambda _: path.exists())
            assert await told(ws, "say after") == "done"
            await cluster.wait_status(lambda _: "after" in path.read_text())
            await ws.close()
        assert "listening on" in (tmp_path / "server.log.1").read_text()
        assert [line.partition(" | ")[2] for line in path.read_text().splitlines()][-1] == "stopped"
        assert "before" not in path.read_text()
        assert cluster.output == []

    run(main())


def test_without_a_file_usr1_stops_nothing() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1) as cluster:
            cluster.signal(signal.SIGUSR1)
            await cluster.wait_output("no file to open again")
            ws = await connect_to_slot(cluster, 0)
            assert await told(ws, "pid") == str(cluster.worker_pids()[0])

    run(main())


@pytest.mark.parametrize("path", [".", "no/such/folder/log"])
def test_a_log_file_that_cannot_be_opened_ends_the_start(tmp_path: Path, path: str) -> None:
    done = cli("serve", SERVED, "--port", "0", "--log-file", path, folder=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 3
    assert done.stderr.startswith(f"wscluster: --log-file {path}: ")
    assert done.stderr.count("\n") == 1


def test_a_program_is_heard_too_to_its_last_word(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "server.py").write_text(
            "import asyncio, sys\n"
            "print('begun')\n"
            "async def main():\n"
            "    server = await asyncio.start_server(lambda r, w: w.close(), '127.0.0.1', 0)\n"
            "    async with server:\n"
            "        await server.serve_forever()\n"
            "try:\n"
            "    asyncio.run(main())\n"
            "finally:\n"
            "    sys.stdout.write('x' * 40_000 + ' no end')\n"
        )
        async with Cluster.run(str(tmp_path / "server.py"), workers=1) as cluster:
            assert "stdout  worker 1 slot 0 phase 1 | begun" in await cluster.wait_output("begun")
        last = [line for line in cluster.output if "stdout" in line and "xxx" in line]
        assert sum(line.count("x") for line in last) == 40_000
        assert last[-1].endswith(" no end")

    run(main())
