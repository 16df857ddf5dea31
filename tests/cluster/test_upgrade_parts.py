"""USR2: every part of a cluster goes on, whatever kind it is."""

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect, unix_connect

from tests.certificate_support import write_server
from tests.cluster.process_support import connect_to_slot, environment
from tests.cluster.test_limits import as_process_1, primary_of
from tests.cluster.test_on_event import noted
from tests.cluster.test_on_event import served as served_with_events
from tests.cluster.test_tls import AUTHORITY, client_context
from tests.cluster.test_upgrade import SERVED, told, upgrade
from tests.support import ROOT, run
from wscluster.testing import Cluster


def test_listeners_of_every_kind_and_a_half_proxy_header_go_on(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"

    async def main() -> None:
        inherited = socket.create_server(("127.0.0.4", 0))
        with inherited:
            bind = [f"unix:{path}", "127.0.0.2:0", f"fd:{inherited.fileno()}"]
            cluster = Cluster(
                SERVED, workers=1, bind=bind, pass_fds=(inherited.fileno(),), proxy_protocol="auto", limit_connections=9
            )
            async with cluster:
                _, host, other = (await cluster.wait_event("ready"))["listeners"]
                client, port = "127.0.0.2", int(host.rpartition(":")[2])
                reader, writer = await asyncio.open_connection(client, port)
                writer.write(b"PROXY TCP4 198.51.1")
                await writer.drain()
                await upgrade(cluster)
                writer.write(
                    b"00.7 198.51.100.1 1234 80\r\nGET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
                    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
                )
                assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
                writer.close()
                for opening in (unix_connect(str(path)), connect(f"ws://{host}", proxy=None),
                                connect(f"ws://{other}", proxy=None)):  # fmt: skip
                    async with opening as ws:
                        assert await ws.recv() == "0"
        assert not path.exists()

    run(main())


def test_a_program_keeps_its_listeners_and_new_workers_get_the_same(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "server.py").write_text(
            "import asyncio\n"
            "async def serve(reader, writer):\n"
            "    while line := await reader.readline():\n"
            "        writer.write(line)\n"
            "    writer.close()\n"
            "async def main():\n"
            "    async with await asyncio.start_server(serve, '127.0.0.1', 0) as server:\n"
            "        await server.serve_forever()\n"
            "asyncio.run(main())\n"
        )
        async with Cluster.run(str(tmp_path / "server.py"), workers=2) as cluster:
            reader, writer = await asyncio.open_connection("127.0.0.1", cluster.port)
            writer.write(b"one\n")
            assert await reader.readline() == b"one\n"
            port = cluster.port
            await upgrade(cluster)
            writer.write(b"two\n")
            assert await reader.readline() == b"two\n"
            writer.close()
            cluster.signal(signal.SIGHUP)
            await cluster.wait_event("reloaded")
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"three\n")
            assert await reader.readline() == b"three\n"
            writer.close()
            assert cluster.listeners == [f"127.0.0.1:{port}"]

    run(main())


def test_the_function_of_on_event_hears_of_it_in_the_same_process(tmp_path: Path) -> None:
    async def main() -> None:
        async with served_with_events(tmp_path, "note") as cluster:
            await upgrade(cluster)
        heard = noted(tmp_path)
        assert [one["event"] for one in heard] == [one["event"] for one in cluster.events]
        assert "upgraded" in {one["event"] for one in heard}
        assert len({one["pid"] for one in heard if one["event"] in ("bound", "stopping")}) == 1

    run(main())


def test_who_follows_the_log_goes_on_and_the_file_stays_the_same(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "log"
        async with Cluster(SERVED, workers=1, log_file=str(path)) as cluster:
            follower = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "wscluster", "logs", "--follow", "--json",
                "--control-socket", str(cluster.control_socket),
                cwd=tmp_path, env=environment(tmp_path) | {"PYTHONPATH": str(ROOT)}, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert follower.stdout is not None
            lines = [json.loads(await follower.stdout.readline())["line"]]
            await upgrade(cluster)
            ws = await connect_to_slot(cluster, 0)
            assert await told(ws, "say the end") == "done"
            while not lines[-1].endswith("the end"):
                lines.append(json.loads(await follower.stdout.readline())["line"])
            await ws.close()
            assert await cluster.stop() == 0
            assert await follower.wait() == 0
        assert lines == path.read_text().splitlines()[: len(lines)], "each line once, in both"
        assert any("upgraded to version" in line for line in lines)

    run(main())


def test_as_process_1_it_keeps_its_workers_and_still_reaps_orphans(tmp_path: Path) -> None:
    async def main() -> None:
        async with as_process_1(tmp_path) as cluster:
            primary = primary_of(cluster)
            before = {child.pid for child in primary.children()}
            async with cluster.connect() as ws:
                primary.send_signal(signal.SIGUSR2)
                event = await cluster.wait_event("upgraded")
                assert event["pid"] == 1
                for _ in range(3):
                    await ws.send("leave one behind")
                    await ws.recv()
            async with asyncio.timeout(5):
                while {child.pid for child in primary.children()} != before:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            primary.terminate()
            assert await cluster.wait_exit() == 0

    run(main())


SERVES = """
import sys
import wscluster

if __name__ == "__main__":
    print("begun", flush=True)
    code = wscluster.serve("tests.cluster.obeying:obey", workers=1, port=0, ready_fd=int(sys.argv[1]))
    print("ended with", code, flush=True)
"""


def test_a_program_that_serves_from_python_goes_on_to_its_last_line(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "program.py").write_text(SERVES)
        reading, writing = os.pipe()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "program.py", str(writing), pass_fds=(writing,), cwd=tmp_path,
            env=environment(tmp_path) | {"PYTHONPATH": str(ROOT)}, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        os.close(writing)

        async def event(name: str) -> dict[str, Any]:
            while (found := json.loads(await asyncio.to_thread(events.readline)))["event"] != name:
                pass
            return dict(found)

        with os.fdopen(reading) as events:
            port = (await event("ready"))["port"]
            async with connect(f"ws://127.0.0.1:{port}", proxy=None) as ws:
                assert await ws.recv() == "0"
                process.send_signal(signal.SIGUSR2)
                assert (await event("upgraded"))["pid"] == process.pid
                assert await told(ws, "phase") == "1"
            process.terminate()
            out, _ = await process.communicate()
        assert process.returncode == 0
        assert out.decode().splitlines() == ["begun", "begun", "ended with 0"], "the trial's is not shown"

    run(main())


def test_files_are_watched_on(tmp_path: Path) -> None:
    async def main() -> None:
        source = "async def handler(ws):\n    await ws.send('one')\n    await ws.recv()\n"
        (tmp_path / "app.py").write_text(source)
        async with Cluster("app:handler", app_dir=tmp_path, cwd=tmp_path, workers=1, reload=True,
                           env={"PYTHONPATH": str(ROOT)}) as cluster:  # fmt: skip
            await upgrade(cluster)
            await cluster.wait_output("upgraded to version")
            (tmp_path / "app.py").write_text(source.replace("one", "two"))
            await cluster.wait_event("reloaded")
            async with cluster.connect() as ws:
                assert await ws.recv() == "two"

    run(main())


def test_tls_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        certificate, key = write_server(tmp_path, AUTHORITY)
        async with Cluster(SERVED, workers=1, ssl_certfile=str(certificate), ssl_keyfile=str(key)) as cluster:
            async with cluster.connect(ssl=client_context()) as ws:
                assert await ws.recv() == "0"
                await upgrade(cluster)
                assert await told(ws, "phase") == "1"
            async with cluster.connect(ssl=client_context()) as ws:
                assert await ws.recv() == "0"

    run(main())


def test_callers_of_the_control_socket_go_on_in_the_middle_of_a_request() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1) as cluster:
            calls = [await asyncio.open_unix_connection(str(cluster.control_socket)) for _ in range(3)]
            for (_, writer), half in zip(calls, (b"", b'{"verb": "sta', b'{"verb": "status"}'), strict=True):
                writer.write(half)
            await cluster.status()  # what was said before this was heard
            await upgrade(cluster)
            for (reader, writer), half in zip(calls, (b'{"verb": "status"}\n', b'tus"}\n', b"\n"), strict=True):
                writer.write(half)
                assert json.loads(await reader.readline())["result"]["primary"]["pid"] == cluster.pid
                writer.write(b"garbage\n")
                assert not json.loads(await reader.readline())["ok"]
                writer.close()

    run(main())
