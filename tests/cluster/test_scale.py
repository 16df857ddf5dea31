"""More slots, fewer slots, one slot's worker replaced, and workers that have served enough."""

import asyncio
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.process_support import cli, close_code, connect_to_slot, wait_gone
from tests.support import run
from wscluster.testing import Cluster

SERVED = "tests.cluster.obeying:obey"
SOURCES = [f"127.1.0.{number}" for number in range(1, 41)]


async def verb(cluster: Cluster, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    where = ("--control-socket", str(cluster.control_socket))
    return await asyncio.to_thread(cli, *words, *where, folder=folder)


async def slots_of(cluster: Cluster) -> dict[str, str]:
    found = {}
    for source in SOURCES:
        async with cluster.connect(source=source) as ws:
            found[source] = str(await ws.recv())
    return found


def test_growing_moves_only_the_keys_of_the_new_slots_and_no_open_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=2) as cluster:
            before = await slots_of(cluster)
            open_ones = [await cluster.connect(source=source) for source in SOURCES]
            done = await verb(cluster, tmp_path, "scale", "+2")
            assert (done.returncode, done.stdout, done.stderr) == (0, "4 slots, before 2\n", "")
            after = await slots_of(cluster)
            moved = {source for source in SOURCES if before[source] != after[source]}
            assert moved == {source for source in SOURCES if after[source] in ("2", "3")}
            assert 5 < len(moved) < 35
            for source, ws in zip(SOURCES, open_ones, strict=True):
                assert await ws.recv() == before[source]
                await ws.send("phase")
                assert await ws.recv() == "1"
                await ws.close()
            assert await cluster.wait_event("scaled") == {"event": "scaled", "slots": 4}
            assert [worker["state"] for worker in (await cluster.status())["workers"]] == ["ready"] * 4

    run(main())


def test_shrinking_drains_the_last_slots_and_their_keys_go_where_they_were_before(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=4, graceful_timeout=5) as cluster:
            before = await slots_of(cluster)
            pids = cluster.worker_pids()
            kept, closed = await connect_to_slot(cluster, 0), await connect_to_slot(cluster, 3)
            ending = asyncio.create_task(close_code(closed))
            done = await verb(cluster, tmp_path, "scale", "2", "--json")
            assert json.loads(done.stdout) == {"slots": 2, "before": 4, "reason": ""}
            assert await ending == 1012
            await wait_gone([pids[2], pids[3]])
            after = await slots_of(cluster)
            assert set(after.values()) == {"0", "1"}
            assert all(after[source] == slot for source, slot in before.items() if slot in ("0", "1"))
            await kept.send("phase")
            assert await kept.recv() == "1"
            await kept.close()
            done = await verb(cluster, tmp_path, "scale", "-1")
            assert (done.returncode, done.stdout) == (0, "1 slots, before 2\n")

    run(main())


def test_ttin_and_ttou_are_one_slot_more_and_less_and_one_is_the_least() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1) as cluster:
            cluster.signal(signal.SIGTTIN)
            await cluster.wait_event("worker_ready", slot=1)
            cluster.signal(signal.SIGTTOU)
            await cluster.wait_event("worker_exited", slot=1)
            cluster.signal(signal.SIGTTOU)
            await cluster.wait_output("not scaled: 0 slots are none to serve with")
            assert len((await cluster.status())["workers"]) == 1

    run(main())


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("scale", "0"), 1, "0 slots are none to serve with: 1 is the least, and `wscluster stop` ends the cluster"),
        (("scale", "-99"), 1, "-97 slots are none to serve with: 1 is the least, and `wscluster stop` ends"),
        (("scale", "9999"), 1, "9999 slots are too many: 1024 is the most"),
        (("scale", "many"), 2, "'many' is no number of slots: 4, +1 or -1 is wanted"),
        (("scale", "--", "-1.5"), 2, "'-1.5' is no number of slots"),
        (("drain", "77"), 1, "there is no slot 77: there are slots 0 to 1"),
        (("drain", "one"), 2, "'one' is not a valid integer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_makes_no_sense_is_one_line(tmp_path: Path, words: tuple[str, ...], code: int, said: str) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=2) as cluster:
            head, *rest = words
            done = await asyncio.to_thread(
                cli, head, "--control-socket", str(cluster.control_socket), *rest, folder=tmp_path
            )
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
            assert said in done.stderr
            assert len((await cluster.status())["workers"]) == 2

    run(main())


def test_a_drained_slot_has_another_worker_before_its_own_lets_go(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=2) as cluster:
            before = cluster.worker_pids()
            ws, other = await connect_to_slot(cluster, 1), await connect_to_slot(cluster, 0)
            ending = asyncio.create_task(close_code(ws))
            done = await verb(cluster, tmp_path, "drain", "1")
            assert (done.returncode, done.stdout) == (0, "slot 1 has another worker, worker 2 has ended\n"), done.stderr
            assert await ending == 1012
            after = cluster.worker_pids()
            assert after[0] == before[0]
            assert after[1] != before[1]
            names = [(one["event"], one.get("pid")) for one in cluster.events if one.get("slot") == 1]
            assert names.index(("worker_ready", after[1])) < names.index(("worker_exited", before[1]))
            await other.send("phase")
            assert await other.recv() == "1"
            await other.close()

    run(main())


def test_two_verbs_at_once_have_an_outcome_each(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=2) as cluster:
            words: list[tuple[str, ...]] = [("scale", "3"), ("reload",), ("drain", "0"), ("scale", "+1"), ("status",)]
            done = await asyncio.gather(*(verb(cluster, tmp_path, *one) for one in words))
            assert [one.returncode for one in done] == [0] * 5, [one.stderr for one in done]
            status = await cluster.wait_status(
                lambda status: {worker["state"] for worker in status["workers"]} == {"ready"}
            )
            assert len(status["workers"]) in (3, 4), "3 and one more, or one more and then 3"

    run(main())


# Workers that have served enough


async def replaced(cluster: Cluster, pid: int) -> None:
    """Wait until the worker ``pid`` has ended in order, after another one was ready."""
    exited = await cluster.wait_event("worker_exited", pid=pid)
    assert exited["status"] == 0
    events = [one["event"] for one in cluster.events if one.get("slot") == exited["slot"]]
    assert events[:3] == ["worker_ready", "worker_ready", "worker_exited"]


@pytest.mark.parametrize("options", [{"workers_lifetime": 1.5}, {"workers_max_rss": 1}], ids=str)
def test_a_worker_that_is_old_or_large_is_replaced(options: dict[str, Any]) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1, **options) as cluster, cluster.connect() as ws:
            pid = cluster.worker_pids()[0]
            assert await close_code(ws) == 1012
            await replaced(cluster, pid)
            why = "it has served for" if "workers_lifetime" in options else "MiB"
            assert await cluster.wait_output(why)

    run(main())


def test_a_worker_that_has_had_its_messages_is_replaced_and_its_client_finds_another() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1, limit_max_messages=20) as cluster, cluster.connect() as ws:
            pid = cluster.worker_pids()[0]
            await ws.recv()
            for _ in range(25):
                await ws.send("phase")
                assert await ws.recv() == "1"
            assert await close_code(ws) == 1012
            await replaced(cluster, pid)
            async with cluster.connect() as other:
                assert await other.recv() == "0"

    run(main())
