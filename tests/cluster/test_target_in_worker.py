"""What a target does in its worker: its lifespan, its exceptions, what it prints."""

from pathlib import Path

import pytest

from tests.cluster.process_support import close_code, connect_to_slot, in_folder, is_alive, write_target
from tests.support import run
from wscluster.testing import Cluster

SERVED = "tests.cluster.obeying:obey"


def test_an_exception_of_a_handler_closes_its_connection_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1) as cluster:
            fails, other = await connect_to_slot(cluster, 0), await connect_to_slot(cluster, 0)
            await fails.send("id")
            name = await fails.recv()
            await fails.send("raise")
            assert await close_code(fails) == 1011
            line = await cluster.wait_output("handler failed")
            assert str(name) in line
            await cluster.wait_output("RuntimeError: as it was told")
            await other.send("pid")
            assert await other.recv() == str(cluster.worker_pids()[0])
            await other.close()

    run(main())


def test_the_lifespan_surrounds_the_life_of_each_worker(tmp_path: Path) -> None:
    target = write_target(
        tmp_path,
        """
import os
import wscluster

def note(what):
    with open("notes", "a") as notes:
        notes.write(f"{what} {wscluster.this_worker.slot}\\n")

@wscluster.lifespan
async def life():
    note("enter")
    yield {"pool": f"pool of {wscluster.this_worker.id}"}
    note("leave")

async def handler(ws):
    this = wscluster.this_worker
    await ws.send(str(this.slot))
    await ws.send(f"{this.state['pool']}, {this.pid == os.getpid()}, {this.phase}, {this.id}")
    await ws.wait_closed()
    note("closed")
""",
    )

    async def main() -> None:
        async with Cluster(target, app_dir=tmp_path, command=in_folder(tmp_path)) as cluster:
            clients = [await connect_to_slot(cluster, slot) for slot in (0, 1)]
            for number, ws in enumerate(clients, 1):
                assert await ws.recv() == f"pool of {number}, True, 1, {number}"
            notes = (tmp_path / "notes").read_text().splitlines()
            assert sorted(note for note in notes if "enter" in note) == ["enter 0", "enter 1"]
            assert not [note for note in notes if "leave" in note]
        # The last word of each worker, after its last connection.
        notes = (tmp_path / "notes").read_text().splitlines()
        for slot in (0, 1):
            assert [note.split()[0] for note in notes if note.endswith(str(slot))][-2:] == ["closed", "leave"]

    run(main())


@pytest.mark.parametrize(
    ("after", "line"),
    [
        ("raise OSError('the pool is gone')", "the lifespan raised while it was left"),
        ("yield", "the lifespan yielded more than once"),
        ("await asyncio.sleep(60)", "the lifespan was not left within the graceful timeout"),
    ],
)
def test_a_lifespan_that_ends_badly_is_logged_and_stops_nothing(tmp_path: Path, after: str, line: str) -> None:
    target = write_target(
        tmp_path,
        "import asyncio, wscluster\n"
        f"@wscluster.lifespan\nasync def life():\n    yield\n    {after}\n"
        "async def handler(ws): pass\n",
    )

    async def main() -> None:
        async with Cluster(target, workers=1, app_dir=tmp_path, graceful_timeout=0.5) as cluster:
            pass
        assert cluster.process.returncode == 0
        assert any(line in said for said in cluster.output)

    run(main())


def test_a_worker_that_prints_much_is_not_blocked_by_it() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1) as cluster:
            ws = await connect_to_slot(cluster, 0)
            await ws.send("print 300000")
            assert await ws.recv() == "done"
            await ws.close()
            assert is_alive(cluster.worker_pids()[0])

    run(main())
