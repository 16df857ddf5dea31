"""Reloads: new code takes over slot by slot, and a broken release never takes the service down."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.exceptions import ConnectionClosedError

from tests.cluster.process_support import cli, close_code, connect_to_slot, in_folder, wait_gone
from tests.support import run
from wscluster.testing import Cluster

HANDLER = """
async def handler(ws):
    await ws.send(str(ws.slot))
    await ws.send("{word}")
    async for message in ws:
        await ws.send(message)
"""
BROKEN = "async def handler(ws:\n"


def write(folder: Path, word: str, *, before: str = "") -> None:
    """Write a release whose handler says its slot and ``word``; ``before`` stands at the top of the module."""
    save(folder / "app.py", before + HANDLER.format(word=word))


def save(path: Path, text: str) -> None:
    """Write a file as an editor does: whoever reads it sees the whole of the one before or of this one."""
    whole = path.with_name(f"{path.name}.new")
    whole.write_text(text)
    whole.replace(path)


@contextlib.asynccontextmanager
async def served(folder: Path, **options: Any) -> AsyncIterator[Cluster]:
    """A cluster that reloads what stands in ``folder``; its first release says "first"."""
    write(folder, "first")
    settings = {"workers": 2, "reload": True, "reload_delay": 0.05, "graceful_timeout": 2.0, **options}
    async with Cluster("app:handler", command=in_folder(folder), **settings) as cluster:
        yield cluster


async def words(cluster: Cluster, *, slots: tuple[int, ...] = (0, 1)) -> list[str]:
    """What the worker of each slot says to a new client."""
    said = []
    for slot in slots:
        ws = await connect_to_slot(cluster, slot)
        said.append(str(await ws.recv()))
        await ws.close()
    return said


def happened(cluster: Cluster, event: str) -> list[dict[str, Any]]:
    return [one for one in cluster.events if one["event"] == event]


# The new code


def test_new_connections_see_the_changed_handler_and_old_ones_are_closed_with_1012(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as cluster:
            before = cluster.worker_pids()
            old = [await connect_to_slot(cluster, slot) for slot in (0, 1)]
            assert [await ws.recv() for ws in old] == ["first", "first"]
            write(tmp_path, "after")  # as long as the one before, and perhaps in the same second
            assert await cluster.wait_event("reloaded") == {"event": "reloaded", "phase": 2}
            assert [await close_code(ws) for ws in old] == [1012, 1012]
            assert await words(cluster) == ["after", "after"]
            ready = [event for event in happened(cluster, "worker_ready") if event["phase"] == 2]
            assert [event["slot"] for event in ready] == [0, 1], "one after the other"
            await wait_gone(before.values())
            status = await cluster.status()
            assert status["primary"]["phase"] == 2
            assert [(one["state"], one["phase"]) for one in status["workers"]] == [("ready", 2)] * 2
            assert status["totals"]["workers_restarted"] == 0
            assert await cluster.wait_output("app.py changed")
            assert not [line for line in cluster.output if "ERROR" in line]
            assert len(psutil.Process(cluster.pid).children()) == 2

    run(main())


APP = """
async def handler(scope, receive, send):
    if scope["type"] == "websocket":
        await send({{"type": "websocket.accept"}})
        await send({{"type": "websocket.send", "text": "{word}"}})
        while (await receive())["type"] != "websocket.disconnect":
            pass
"""
PROGRAM = """
import asyncio, websockets

async def handler(ws):
    await ws.send("{word}")
    await ws.wait_closed()

async def main():
    async with websockets.serve(handler, "127.0.0.1", 0) as server:
        await server.wait_closed()

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["app", "program"])
def test_an_asgi_app_and_a_program_are_reloaded_as_a_handler_is(tmp_path: Path, kind: str) -> None:
    source = APP if kind == "app" else PROGRAM
    save(tmp_path / "app.py", source.format(word="first"))
    options: dict[str, Any] = {"cwd": tmp_path, "reload": True, "reload_delay": 0.05, "graceful_timeout": 2.0}

    async def main() -> None:
        cluster = Cluster("app:handler", **options) if kind == "app" else Cluster.run("app.py", **options)
        async with cluster, cluster.connect() as old:
            port = cluster.port
            assert await old.recv() == "first"
            save(tmp_path / "app.py", "what is this?\n")
            assert "SyntaxError" in (await cluster.wait_event("reload_failed"))["reason"]
            save(tmp_path / "app.py", source.format(word="after"))
            await cluster.wait_event("reloaded", phase=3)
            async with cluster.connect() as new:
                assert await new.recv() == "after"
            assert await close_code(old) in ((1012,) if kind == "app" else (1001, 1006))
            assert cluster.port == port

    run(main())


def test_a_client_that_connects_again_and_again_always_gets_in(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as cluster:
            ended = asyncio.Event()

            async def connect(source: str) -> set[str]:
                said = set()
                while not ended.is_set():
                    async with cluster.connect(source=source) as ws:
                        # Whoever comes in at the very moment of the switch is sent on at once.
                        try:
                            await ws.recv()
                            said.add(str(await ws.recv()))
                        except ConnectionClosedError:
                            assert ws.close_code == 1012
                return said

            clients = [asyncio.create_task(connect(f"127.1.0.{number}")) for number in range(1, 9)]
            for count, word in enumerate(("second", "third", "fourth"), 1):
                write(tmp_path, word)
                await cluster.wait_event("reloaded", count=count)
            ended.set()
            said = await asyncio.gather(*clients)
            assert set().union(*said) == {"first", "second", "third", "fourth"}
            status = await cluster.status()
            assert status["totals"]["rejected"] == 0

    run(main(), timeout=120)


def test_open_connections_that_end_late_keep_no_reload_waiting(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, workers=1, graceful_timeout=30.0) as cluster:
            linger = "import asyncio\nasync def linger(): await asyncio.sleep(60)\n"
            slow = HANDLER + "    await asyncio.shield(linger())\n"
            save(tmp_path / "app.py", linger + slow.format(word="slow"))
            await cluster.wait_event("reloaded")
            ws = await connect_to_slot(cluster, 0)
            write(tmp_path, "third")
            await cluster.wait_event("reloaded", phase=3)
            assert await close_code(ws) == 1012
            write(tmp_path, "fourth")
            await cluster.wait_event("reloaded", phase=4)
            assert await words(cluster, slots=(0,)) == ["fourth"]
            cluster.signal(signal.SIGTERM)
            cluster.signal(signal.SIGTERM)
            await cluster.wait_exit()

    run(main())


# A broken release


def test_a_syntax_error_keeps_the_old_workers_and_is_shown_at_each_attempt_until_it_is_mended(tmp_path: Path) -> None:
    def shown(cluster: Cluster) -> int:
        return sum("SyntaxError: '(' was never closed" in line for line in cluster.output if "|" not in line)

    async def main() -> None:
        async with served(tmp_path) as cluster:
            before = cluster.worker_pids()
            old = await connect_to_slot(cluster, 1)
            assert await old.recv() == "first"
            for attempt in (1, 2):
                save(tmp_path / "app.py", BROKEN)
                failed = await cluster.wait_event("reload_failed", count=attempt)
                assert (failed["phase"], failed["switched"]) == (attempt + 1, [])
                assert "SyntaxError" in failed["reason"]
                assert shown(cluster) == attempt
                assert await words(cluster) == ["first", "first"]
            await old.send("still here")
            assert await old.recv() == "still here"
            assert cluster.worker_pids() == before
            write(tmp_path, "mended")
            assert (await cluster.wait_event("reloaded"))["phase"] == 4
            assert await words(cluster) == ["mended", "mended"]
            assert await close_code(old) == 1012

    run(main())


def test_a_release_that_hangs_at_its_start_is_given_up_and_the_next_save_reloads(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, worker_startup_timeout=3.0) as cluster:
            write(tmp_path, "never", before="import time\ntime.sleep(60)\n")
            failed = await cluster.wait_event("reload_failed")
            assert failed["reason"] == "worker 3 of slot 0: not ready within 3 s"
            assert await words(cluster) == ["first", "first"]
            write(tmp_path, "mended")
            await cluster.wait_event("reloaded", phase=3)
            assert await words(cluster) == ["mended", "mended"]

    run(main())


def test_a_release_that_works_in_one_slot_alone_stays_there(tmp_path: Path) -> None:
    fails = "import wscluster\nif wscluster.this_worker.slot == 1: raise OSError('not here')\n"

    async def main() -> None:
        async with served(tmp_path) as cluster:
            write(tmp_path, "second", before=fails)
            failed = await cluster.wait_event("reload_failed")
            assert failed["switched"] == [0]
            assert "OSError: not here" in failed["reason"]
            assert await words(cluster) == ["second", "first"]
            status = await cluster.status()
            assert status["primary"]["phase"] == 1
            assert [one["phase"] for one in status["workers"]] == [2, 1]
            write(tmp_path, "third")
            await cluster.wait_event("reloaded", phase=3)
            assert await words(cluster) == ["third", "third"]

    run(main())


def test_a_cluster_whose_first_boot_fails_waits_for_a_change(tmp_path: Path) -> None:
    save(tmp_path / "app.py", BROKEN)

    async def main() -> None:
        cluster = Cluster("app:handler", workers=2, command=in_folder(tmp_path), reload=True, reload_delay=0.05)
        await cluster.start()
        try:
            await cluster.wait_output("no worker is left: the next change of a file starts them again")
            assert sum("SyntaxError: '(' was never closed" in line for line in cluster.output if "|" not in line) == 1
            assert len(happened(cluster, "worker_exited")) == 2, "nobody tries again what cannot have become better"
            write(tmp_path, "mended")
            await cluster.wait_event("ready")
            await cluster.wait_event("reloaded")
            assert await words(cluster) == ["mended", "mended"]
        finally:
            await cluster.__aexit__(None, None, None)
        assert cluster.process.returncode == 0

    run(main())


# In the middle of a reload


def slow_start(path: Path) -> str:
    """A module that starts when the file ``path`` is there, and tells that it waits."""
    return (
        "import pathlib, time\n"
        "print('waiting for the gate', flush=True)\n"
        f"while not pathlib.Path({str(path)!r}).exists(): time.sleep(0.01)\n"
    )


def test_an_old_worker_that_is_killed_in_the_middle_is_replaced_and_the_reload_goes_on(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def main() -> None:
        async with served(tmp_path) as cluster:
            before = cluster.worker_pids()
            write(tmp_path, "second", before=slow_start(gate))
            await cluster.wait_output("waiting for the gate")
            for pid in before.values():
                os.kill(pid, signal.SIGKILL)
            await cluster.wait_event("worker_exited", count=2)
            gate.touch()
            await cluster.wait_event("reloaded")
            assert await words(cluster) == ["second", "second"]
            assert len(psutil.Process(cluster.pid).children()) == 2

    run(main())


def test_a_new_worker_that_is_killed_in_the_middle_ends_the_reload(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def main() -> None:
        async with served(tmp_path) as cluster:
            before = set(cluster.worker_pids().values())
            write(tmp_path, "second", before=slow_start(gate))
            await cluster.wait_output("waiting for the gate")
            (candidate,) = {child.pid for child in psutil.Process(cluster.pid).children()} - before
            os.kill(candidate, signal.SIGKILL)
            failed = await cluster.wait_event("reload_failed")
            assert failed["reason"] == "worker 3 of slot 0: its worker ended before it was ready"
            assert await words(cluster) == ["first", "first"]

    run(main())


def test_changes_during_a_reload_are_one_more_reload(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def main() -> None:
        async with served(tmp_path, workers=1) as cluster:
            write(tmp_path, "second", before=slow_start(gate))
            await cluster.wait_output("waiting for the gate")
            for word in ("third", "fourth", "fifth"):
                write(tmp_path, word)
            await cluster.wait_output("a reload is under way: another one follows it")
            gate.touch()
            assert [event["phase"] for event in happened(cluster, "reloaded")] == []
            await cluster.wait_event("reloaded", phase=3)
            assert await words(cluster, slots=(0,)) == ["fifth"]
            assert len(happened(cluster, "reloaded")) == 2

    run(main())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_stop_in_the_middle_ends_everything(tmp_path: Path, number: signal.Signals) -> None:
    async def main() -> None:
        async with served(tmp_path) as cluster:
            ws = await connect_to_slot(cluster, 1)
            write(tmp_path, "second", before=slow_start(tmp_path / "gate"))
            await cluster.wait_output("waiting for the gate")
            family = psutil.Process(cluster.pid).children()
            assert len(family) == 3
            cluster.signal(number)
            assert await close_code(ws) == (1001 if number == signal.SIGTERM else 1006)
            assert await cluster.wait_exit() == 0
            await wait_gone(child.pid for child in family)
            assert not happened(cluster, "reloaded") + happened(cluster, "reload_failed")
            assert cluster.events[-1] == {"event": "stopped"}

    run(main())


# What is watched


def test_files_that_change_within_the_delay_are_one_reload(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, workers=1, reload_delay=1.0) as cluster:
            for number in range(5):
                save(tmp_path / f"part{number}.py", "")
            write(tmp_path, "second")
            await cluster.wait_event("reloaded", phase=2)
            assert await words(cluster, slots=(0,)) == ["second"]
            assert len([line for line in cluster.output if "app.py and 5 more changed" in line]) == 1
            assert not [line for line in cluster.output if "a reload is under way" in line]

    run(main())


def test_what_is_excluded_or_no_code_does_not_reload_and_what_is_included_does(tmp_path: Path) -> None:
    (tmp_path / "generated").mkdir()
    (tmp_path / "more").mkdir()

    async def main() -> None:
        options = {
            "workers": 1,
            "reload_dir": [str(tmp_path / "more"), str(tmp_path)],
            "reload_exclude": ["generated", "test_*.py"],
            "reload_include": ["*.html"],
        }
        async with served(tmp_path, **options) as cluster:
            await cluster.wait_output(f"watching {tmp_path} for changes")
            for name in ("generated/schema.py", "test_app.py", ".hidden.py", "app.txt"):
                (tmp_path / name).write_text("changed")
            (tmp_path / "page.html").write_text("changed")
            await cluster.wait_event("reloaded")
            lines = [line for line in cluster.output if "changed" in line]
            assert len(lines) == 1
            assert lines[0].endswith("| page.html changed")

    run(main())


def test_what_to_watch_without_reload_is_told_to_mean_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, workers=1, reload=False, reload_dir=str(tmp_path)) as cluster:
            await cluster.wait_output("nothing is watched without --reload")

    run(main())


def test_a_folder_to_watch_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, "first")
    done = cli("serve", "app:handler", "--port", "0", "--reload", "--reload-dir", "nowhere", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "wscluster: --reload-dir nowhere: there is no such folder\n"


def test_without_watchfiles_it_is_said_what_to_install(tmp_path: Path) -> None:
    write(tmp_path, "first")
    (tmp_path / "hide" / "watchfiles").mkdir(parents=True)
    (tmp_path / "hide" / "watchfiles" / "__init__.py").write_text("raise ImportError('not installed')\n")
    env = {"PYTHONPATH": f"{tmp_path / 'hide'}:{os.environ.get('PYTHONPATH', '')}"}
    done = cli("serve", "app:handler", "--port", "0", "--reload", folder=tmp_path, env=env)
    assert done.returncode == 3
    assert done.stderr == "wscluster: --reload needs watchfiles: pip install 'wscluster[reload]'\n"
