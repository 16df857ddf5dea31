"""The verbs that look: connections, kick, route, top."""

import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.process_support import cli, close_code, connect_to_slot, environment
from tests.cluster.raw import Raw, slots_of
from tests.cluster.test_drain import SOURCES, UPGRADE
from tests.cluster.test_reload import save
from tests.support import run
from wscluster.testing import Cluster

SERVED = "tests.cluster.obeying:obey"


async def verb(cluster: Cluster, folder: Path, head: str, *words: str) -> subprocess.CompletedProcess[str]:
    where = ("--control-socket", str(cluster.control_socket))
    return await asyncio.to_thread(cli, head, *where, *words, folder=folder)


async def listed(cluster: Cluster, folder: Path, *words: str) -> list[dict[str, Any]]:
    done = await verb(cluster, folder, "connections", *words, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_connections_are_listed_with_client_path_and_rooms_and_chosen_by_slot_ip_and_room(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=2) as cluster, contextlib.AsyncExitStack() as stack:
            for number in range(1, 7):
                ws = await stack.enter_async_context(cluster.connect(f"/p{number}", source=f"127.1.0.{number}"))
                await ws.recv()
                if number % 2:
                    await ws.send("join lobby")
                    assert await ws.recv() == "done"
            found = await listed(cluster, tmp_path)
            assert {one["client"][0] for one in found} == {f"127.1.0.{number}" for number in range(1, 7)}
            assert {one["path"] for one in found} == {f"/p{number}" for number in range(1, 7)}
            for one in found:
                assert one["slot"] == slots_of(one["client"][0], 2)[0]
                assert one["worker"] in (1, 2)
                assert one["rooms"] == (["lobby"] if int(one["path"][2:]) % 2 else [])
            assert {one["path"] for one in await listed(cluster, tmp_path, "--room", "lobby")} == {"/p1", "/p3", "/p5"}
            assert [one["path"] for one in await listed(cluster, tmp_path, "--ip", "127.1.0.4")] == ["/p4"]
            of_one = await listed(cluster, tmp_path, "--slot", "1")
            assert {one["slot"] for one in of_one} <= {1}
            text = (await verb(cluster, tmp_path, "connections", "--ip", "127.1.0.1")).stdout
            (line,) = text.splitlines()
            assert line.split()[1:4] == ["slot", str(slots_of("127.1.0.1", 2)[0]), "127.1.0.1"]
            assert line.split()[-2:] == ["/p1", "lobby"]

    run(main())


def test_more_connections_than_one_page_are_all_listed_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=2) as cluster, contextlib.AsyncExitStack() as stack:
            for number in range(1100):
                raw = await Raw.connect(cluster.port, f"127.1.{number // 250}.{number % 250 + 1}", UPGRADE)
                stack.push_async_callback(raw.close)
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 1100)
            found = await listed(cluster, tmp_path)
            assert len({one["id"] for one in found}) == len(found) == 1100

    run(main(), timeout=60)


@pytest.mark.parametrize("kind", SOURCES)
def test_a_kicked_connection_ends_and_no_other(tmp_path: Path, kind: str) -> None:
    save(tmp_path / "app.py", SOURCES[kind].format(word="first"))
    made = (
        Cluster.run("app.py", cwd=tmp_path, workers=2)
        if kind == "program"
        else Cluster("app:handler", app_dir=tmp_path, workers=2)
    )

    async def main() -> None:
        async with made as cluster, contextlib.AsyncExitStack() as stack:
            clients = {}
            for number in range(1, 5):
                ws = await stack.enter_async_context(cluster.connect(source=f"127.1.0.{number}"))
                await ws.recv()
                clients[f"127.1.0.{number}"] = ws
            found = await listed(cluster, tmp_path)
            assert {one["client"][0] for one in found} == set(clients)
            victim = next(one for one in found if one["client"][0] == "127.1.0.3")
            done = await verb(cluster, tmp_path, "kick", victim["id"])
            assert (done.returncode, done.stderr) == (0, "")
            code = await close_code(clients["127.1.0.3"])
            assert code == {"handler": 1008, "app": 1012, "program": 1006}[kind]
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 3)
            again = await verb(cluster, tmp_path, "kick", victim["id"])
            assert again.returncode == 1
            assert "no worker has a connection" in again.stderr

    run(main())


def test_route_says_which_slot_and_why(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=3, app_dir=None) as cluster:
            first, second, third = slots_of("192.0.2.7", 3)
            done = await verb(cluster, tmp_path, "route", "192.0.2.7")
            assert done.stdout == (
                f"slot {first}: slot {first} is the first of this key, and has a worker that is ready\n"
            )
            ws = await connect_to_slot(cluster, first)
            await ws.send("exit 3")
            await ws.wait_closed()
            found = json.loads((await verb(cluster, tmp_path, "route", "192.0.2.7", "--json")).stdout)
            assert found["order"] == [first, second, third]
            for garbage in ("nonsense", "192.0.2.999", "", "::zz", "x" * 5000):
                done = await verb(cluster, tmp_path, "route", "--", garbage)
                assert (done.returncode, done.stderr.count("\n")) == (1, 1)
                assert "is no address" in done.stderr
            done = await verb(cluster, tmp_path, "route", "2001:db8::1")
            assert done.returncode == 0
            done = await verb(cluster, tmp_path, "kick", "nothing")
            assert (done.returncode, done.stderr.count("\n")) == (1, 1)

    run(main())


def test_a_worker_that_is_stuck_is_named_and_delays_the_list_by_little(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=2) as cluster:
            ws, other = await connect_to_slot(cluster, 0), await connect_to_slot(cluster, 1)
            await ws.send("block 6")
            assert await ws.recv() == "will"
            done = await verb(cluster, tmp_path, "connections", "--json")
            assert done.returncode == 1
            assert "does not answer" in done.stderr
            assert len(json.loads(done.stdout)) == 1
            await other.close()
            await ws.close()

    run(main())


def test_top_without_a_terminal_is_one_look_and_json_is_a_line_for_each(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=2) as cluster:
            done = await verb(cluster, tmp_path, "top", "--interval", "0.2")
            lines = done.stdout.splitlines()
            assert len(lines) == 4
            assert max(map(len, lines)) <= 80
            assert lines[1].split() == ["slot", "pid", "state", "conns", "in/s", "out/s", "rooms", "lag", "cpu", "rss"]
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "wscluster", "top", "--json", "--interval", "0.2",
                "--control-socket", str(cluster.control_socket), stdout=subprocess.PIPE,
            )  # fmt: skip
            assert process.stdout is not None
            looks = [json.loads(await process.stdout.readline()) for _ in range(2)]
            assert [look["workers"][0]["messages_in_per_second"] for look in looks] == [0.0, 0.0]
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130

    run(main())


def test_top_on_a_terminal_of_80_columns_is_drawn_again_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=2) as cluster:
            ours, theirs = pty.openpty()
            process = subprocess.Popen(  # noqa: ASYNC220 - its terminal is what is wanted
                [sys.executable, "-m", "wscluster", "top", "--interval", "0.2", "--control-socket",
                 str(cluster.control_socket)],
                stdin=theirs, stdout=theirs, stderr=theirs,
                env=environment(tmp_path) | {"COLUMNS": "80", "LINES": "24", "TERM": "xterm"},
            )  # fmt: skip
            os.close(theirs)
            seen = b""
            while seen.count(b"slot") < 3:
                seen += await asyncio.to_thread(os.read, ours, 65536)
            process.send_signal(signal.SIGINT)
            while True:
                try:
                    chunk = await asyncio.to_thread(os.read, ours, 65536)
                except OSError:
                    break
                seen += chunk
            assert await asyncio.to_thread(process.wait, 10) == 0
            os.close(ours)
            assert b"Traceback" not in seen
            assert b"\x1b[?1049l" in seen, "the terminal is as it was before"

    run(main())
