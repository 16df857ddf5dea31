"""The metrics port: what Prometheus reads, what a balancer asks, who may watch."""

import asyncio
import contextlib
import json
import re
import socket
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.cluster.process_support import cli, connect_to_slot
from tests.cluster.raw import Raw
from tests.cluster.room_support import Valkey
from tests.cluster.test_drain import UPGRADE
from tests.support import require_program, run
from wscluster.gateway.metrics_server import MAX_WATCHERS
from wscluster.testing import Cluster

SERVED = "tests.cluster.obeying:obey"
COUNTING = """
import wscluster

MOVES = wscluster.metrics.counter("moves_total", "Moves.", ["game"])
PLAYERS = wscluster.metrics.gauge("players", "Who plays.")
THINKING = wscluster.metrics.histogram("thinking_seconds", "How long.", buckets=[1, 10])

async def handler(ws):
    PLAYERS.inc()
    try:
        await ws.send(str(ws.slot))
        async for message in ws:
            MOVES.labels(message).inc()
            THINKING.observe(3)
            await ws.send("done")
    finally:
        PLAYERS.dec()
"""
CHECKED = re.compile(r"(# (HELP|TYPE) [a-zA-Z_:][\w:]* .*|[a-zA-Z_:][\w:]*(\{.*\})? -?[\d.e+-]+|.*NaN|.*Inf)")


async def address(cluster: Cluster) -> str:
    return str((await cluster.wait_event("metrics"))["address"])


async def get(cluster: Cluster, path: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(f"http://{await address(cluster)}{path}", headers=headers)


async def values(cluster: Cluster) -> dict[str, float]:
    """Every sample by its name and labels, from a text that keeps the format's rules."""
    answer = await get(cluster, "/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    text = answer.text
    assert text.endswith("\n")
    assert [line for line in text.splitlines() if not CHECKED.fullmatch(line)] == []
    names = re.findall(r"^# TYPE (\S+)", text, re.M)
    assert len(names) == len(set(names)), "a metric is one group"
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            key = sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def test_sums_stand_beside_each_workers_own_and_never_fall(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=2, metrics=True, metrics_port=0) as cluster:
            ws = [await connect_to_slot(cluster, slot) for slot in (0, 1)]
            for one in ws:
                for _ in range(5):
                    await one.send("phase")
                    await one.recv()
            before = await values(cluster)
            assert before["wscluster_connections"] == 2
            assert before["wscluster_worker_connections slot=0"] == before["wscluster_worker_connections slot=1"] == 1
            assert before["wscluster_messages_in_total"] == 10
            assert before["wscluster_message_in_bytes_count"] == 10
            assert before["wscluster_message_in_bytes_sum"] == 50
            assert before["wscluster_message_in_bytes_bucket le=63.0"] == 10
            assert before["wscluster_slots state=ready"] == 2
            assert before["wscluster_handoff_seconds_count"] == before["wscluster_adopted_total"]
            pid = cluster.worker_pids()[0]
            await ws[0].send("exit 3")
            await cluster.wait_event("worker_exited", pid=pid)
            await cluster.wait_status(lambda status: status["workers"][0]["state"] == "ready")
            after = await values(cluster)
            assert after["wscluster_workers_restarted_total"] == 1
            fell = {
                name: (value, after.get(name))
                for name, value in before.items()
                if name.endswith("_total") and "worker" not in name and after.get(name, 0) < value
            }
            assert fell == {}
            await ws[1].close()

    run(main())


def test_the_numbers_of_the_application_are_summed_and_outlive_their_worker(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(COUNTING)

    async def main() -> None:
        async with Cluster("app:handler", app_dir=tmp_path, workers=2, metrics=True, metrics_port=0) as cluster:
            ws = [await connect_to_slot(cluster, slot) for slot in (0, 1)]
            for number, one in enumerate(ws):
                for _ in range(2 + number):
                    await one.send("chess")
                    await one.recv()
            found = await values(cluster)
            assert found["moves_total game=chess"] == 5
            assert found["players"] == 2
            assert found["thinking_seconds_sum"] == 15
            assert found["thinking_seconds_bucket le=10.0"] == 5
            where = ("--control-socket", str(cluster.control_socket))
            done = await asyncio.to_thread(cli, "reload", *where, folder=tmp_path)
            assert done.returncode == 0
            await cluster.wait_status(lambda status: not status["others"])
            found = await values(cluster)
            assert found["moves_total game=chess"] == 5
            assert found.get("players", 0) == 0

    run(main())


def test_ready_is_a_node_with_one_worker_and_the_strict_form_wants_all_and_the_bus(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import wscluster\n\nasync def handler(ws):\n    await ws.send(str(ws.slot))\n    await ws.join('lobby')\n"
        "    async for _ in ws:\n        pass\n"
    )

    async def main(valkey: Valkey) -> None:
        async with Cluster(
            "app:handler", app_dir=tmp_path, workers=2, metrics=True, metrics_port=0, redis_url=valkey.url,
            graceful_timeout=3, bus_timeout=1.0,
        ) as cluster:  # fmt: skip
            assert (await get(cluster, "/healthz")).text == "ok\n"
            answer = await get(cluster, "/readyz")
            assert (answer.status_code, answer.json()) == (
                200, {"ready": True, "slots_ready": 2, "slots": 2, "bus": "unused"},
            )  # fmt: skip
            ws = await connect_to_slot(cluster, 0)
            await cluster.wait_status(lambda status: bool(status["bus"]["connected"]))
            assert (await get(cluster, "/readyz?slots=all&bus=1")).json()["bus"] == "connected"
            async with connect(f"ws://{await address(cluster)}/live") as feed:
                while "wscluster_worker_bus_probe_seconds slot=0" not in (found := await values(cluster)):
                    await feed.recv()  # it comes once the bus has been silent for a while
            assert 0 < found["wscluster_worker_bus_probe_seconds slot=0"] < 4
            valkey.kill()
            await cluster.wait_status(lambda status: not status["bus"]["connected"])
            assert (await get(cluster, "/readyz")).status_code == 200, "a blip of the bus takes no node away"
            strict = await get(cluster, "/readyz?slots=all&bus=1")
            assert (strict.status_code, strict.json()["bus"]) == (503, "disconnected")
            await ws.close()
            silent = await Raw.connect(cluster.port, "127.0.0.1", UPGRADE)  # it will not answer the Close
            await silent.reader.readuntil(b"\r\n\r\n")
            stopping = asyncio.create_task(cluster.wait_exit(10))
            cluster.process.terminate()
            await cluster.wait_output("stopping")
            answer = await get(cluster, "/readyz")
            assert (answer.status_code, answer.json()["ready"]) == (503, False)
            assert (await get(cluster, "/healthz")).status_code == 200
            await stopping
            await silent.close()

    with Valkey(tmp_path) as valkey:
        run(main(valkey))


def test_the_live_feed_is_the_status_and_no_foreign_page_may_watch() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1, metrics=True, metrics_port=0) as cluster:
            where = await address(cluster)
            async with connect(f"ws://{where}/live") as ws:
                looks = [json.loads(await ws.recv()) for _ in range(2)]
            assert [look["workers"][0]["state"] for look in looks] == ["ready", "ready"]
            async with connect(f"ws://{where}/live", origin=f"http://{where}") as ws:  # type: ignore[arg-type]
                await ws.recv()
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"ws://{where}/live", origin="http://evil.example")  # type: ignore[arg-type]
            assert refused.value.response.status_code == 403
            assert (await get(cluster, "/live")).status_code == 426
            assert (await get(cluster, "/nothing")).status_code == 404
            page = await get(cluster, "/")
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            assert "default-src 'none'" in page.headers["content-security-policy"]

    run(main())


def test_a_probe_is_answered_however_many_watch() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1, metrics=True, metrics_port=0) as cluster:
            where = await address(cluster)
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(MAX_WATCHERS):
                    ws = await stack.enter_async_context(connect(f"ws://{where}/live"))
                    await ws.recv()
                with pytest.raises(InvalidStatus) as refused:
                    await connect(f"ws://{where}/live")
                assert refused.value.response.status_code == 503
                for path in ("/healthz", "/readyz", "/metrics"):
                    assert (await get(cluster, path)).status_code == 200, path

    run(main())


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET //[ HTTP/1.1\r\nHost: a", 404),
        ("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0", 405),
        ("HEAD /healthz HTTP/1.1\r\nHost: a", 200),
        ("GET /live HTTP/1.1\r\nHost: a\r\nHost: b\r\nOrigin: http://a\r\nUpgrade: websocket", 400),
        ("GET /live HTTP/1.1\r\nHost: a\r\nOrigin: http://[\r\nUpgrade: websocket", 400),
        ("GET /live HTTP/1.1\r\nHost: a\r\nOrigin: null\r\nUpgrade: websocket", 403),
        ("GET /live HTTP/1.1\r\nHost: a\r\nOrigin: http://a.evil.example\r\nUpgrade: websocket", 403),
    ],
)
def test_garbage_on_the_metrics_port_is_told_so(head: str, status: int) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1, metrics=True, metrics_port=0) as cluster:
            host, port = (await address(cluster)).rsplit(":", 1)
            raw = await Raw.connect(int(port), host, f"{head}\r\n\r\n".encode())
            answer = await raw.reader.read()
            assert answer.startswith(f"HTTP/1.1 {status} ".encode())
            if head.startswith("HEAD"):
                assert answer.endswith(b"\r\n\r\n")
            await raw.close()

    run(main())


def test_the_checker_of_prometheus_finds_nothing_to_say(tmp_path: Path) -> None:
    promtool = require_program("promtool")
    (tmp_path / "app.py").write_text(COUNTING)

    async def main() -> None:
        async with Cluster("app:handler", app_dir=tmp_path, workers=2, metrics=True, metrics_port=0) as cluster:
            for slot in (0, 1):
                ws = await connect_to_slot(cluster, slot)
                await ws.send('a "game" \\ \n of two')
                assert await ws.recv() == "done"
            answer = await get(cluster, "/metrics")
            assert 'a \\"game\\" \\\\ \\n of two' in answer.text
            checker = await asyncio.create_subprocess_exec(
                promtool, "check", "metrics", stdin=PIPE, stdout=PIPE, stderr=STDOUT
            )
            said, _ = await checker.communicate(answer.content)
            assert (checker.returncode, said.decode()) == (0, "")

    run(main())


def test_a_program_that_counts_without_end_is_told_once_and_serves_on(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import wscluster\nSEEN = wscluster.metrics.counter('seen', 'Requests.', ['path', 'agent'])\n\n"
        "async def handler(ws):\n    await ws.send(str(ws.slot))\n    async for message in ws:\n"
        "        for number in range(2000):\n            SEEN.labels(f'{number}{message}', '\\udc80' * 200).inc()\n"
        "        await ws.send('done')\n"
    )

    async def main() -> None:
        options: dict[str, Any] = {"metrics": True, "metrics_port": 0, "timeout_worker_healthcheck": 3}
        async with Cluster("app:handler", app_dir=tmp_path, workers=1, **options) as cluster:
            ws = await connect_to_slot(cluster, 0)
            await ws.send("x" * 180)
            assert await ws.recv() == "done"
            await cluster.wait_output("the metric seen has too many series")
            series = [name for name in await values(cluster) if name.startswith("seen_total")]
            assert 200 < len(series) <= 1000
            await ws.send("y" * 180)
            assert await ws.recv() == "done"
            await values(cluster)
            await ws.close()
            assert sum("too many series" in line for line in cluster.output) == 1

    run(main())


def test_a_metrics_port_that_is_taken_ends_the_start_before_anything_serves(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = cli("serve", SERVED, "--port", "0", "--metrics", "--metrics-port", port, folder=tmp_path)
    assert done.returncode == 3
    assert done.stderr == (
        f"wscluster: cannot listen on 127.0.0.1:{port}: Address already in use; is another server running? "
        "choose another port\n"
    )


def test_an_app_and_a_program_have_the_port_too_and_know_no_messages(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import wscluster\nSEEN = wscluster.metrics.counter('seen', 'Requests.')\n\n"
        "async def app(scope, receive, send):\n    if scope['type'] != 'http':\n        return\n    SEEN.inc()\n"
        "    await send({'type': 'http.response.start', 'status': 204})\n"
        "    await send({'type': 'http.response.body'})\n"
    )

    async def main() -> None:
        options: dict[str, Any] = {"workers": 1, "metrics": True, "metrics_port": 0}
        async with Cluster("app:app", app_dir=tmp_path, **options) as cluster:
            async with httpx.AsyncClient() as client:
                for _ in range(3):
                    assert (await client.get(cluster.http_url)).status_code == 204
            found = await values(cluster)
            assert found["seen_total"] == 3
            assert "wscluster_worker_messages_in_total slot=0" not in found
        program = Path(__file__).parent / "programs" / "streams.py"
        async with Cluster.run(str(program), **options) as cluster:
            assert (await values(cluster))["wscluster_slots state=ready"] == 1

    run(main())


def test_every_query_of_the_grafana_dashboard_names_a_metric_that_is_there() -> None:
    dashboard = json.loads((Path(__file__).parents[2] / "deploy/grafana/wscluster.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    wanted = {name for query in queries for name in re.findall(r"wscluster_\w+", query)}
    assert len(wanted) > 15

    async def main() -> None:
        async with Cluster(SERVED, workers=1, metrics=True, metrics_port=0) as cluster, cluster.connect() as ws:
            await ws.recv()
            await ws.send("join lobby")  # no room, no bus, and no probe of it
            assert await ws.recv() == "done"
            # A worker's CPU is known at its second beat, the probe of the bus with the beat after its answer.
            async with asyncio.timeout(20):
                while missing := wanted - {name.split()[0] for name in await values(cluster)}:
                    assert missing <= {"wscluster_worker_cpu_cores", "wscluster_worker_bus_probe_seconds"}
                    await asyncio.sleep(0.1)

    run(main())
