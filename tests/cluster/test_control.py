"""The control socket, and the verbs that talk to it."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.process_support import cli, close_code, connect_to_slot, environment
from tests.cluster.test_limits import as_nobody, folder_for_nobody
from tests.support import cannot_run, open_fds, run
from wscluster.control_client import ControlError, ask
from wscluster.gateway.control import MAX_CONNECTIONS, MAX_LINE_BYTES
from wscluster.testing import Cluster

SERVED = "tests.cluster.obeying:obey"
KEYS: dict[str, set[str]] = {
    "others": set(),
    "primary": {"pid", "version", "uptime_seconds", "listeners", "sticky", "phase"},
    "workers": {
        "slot", "id", "pid", "state", "phase", "uptime_seconds", "connections", "adopted", "messages_in",
        "messages_out", "rooms", "loop_lag_seconds", "cpu_cores", "rss_bytes",
    },
    "bus": {"url", "private", "connected", "published", "delivered", "gaps", "ignored"},
    "totals": {
        "connections", "accepted", "rejected", "adopted", "placed_again", "moved", "slow_closed", "workers_restarted",
    },
}  # fmt: skip


@contextlib.contextmanager
def caller(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        yield sock


def say(path: Path, data: bytes) -> list[Any]:
    """Send ``data`` and the end of it; returns the answers."""
    hung_up = contextlib.suppress(BrokenPipeError, ConnectionResetError)
    with hung_up, caller(path) as sock, sock.makefile("rb") as answers:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return [json.loads(line) for line in answers]
    return []


def test_the_status_is_what_the_contract_says(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(SERVED) as cluster:
            ws = await connect_to_slot(cluster, 1)
            for _ in range(3):
                await ws.send("phase")
                assert await ws.recv() == "1"
            where = ("status", "--control-socket", str(cluster.control_socket))
            done = await asyncio.to_thread(cli, *where, "--json", folder=tmp_path)
            assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
            status = json.loads(done.stdout)
            assert status.keys() == KEYS.keys()
            for part in ("primary", "bus", "totals"):
                assert status[part].keys() == KEYS[part], part
            for slot, worker in enumerate(status["workers"]):
                assert worker.keys() == KEYS["workers"]
                assert (worker["slot"], worker["state"], worker["phase"]) == (slot, "ready", 1)
                assert worker["pid"] == cluster.worker_pids()[slot]
                assert worker["rss_bytes"] > 10_000_000
            primary = status["primary"]
            assert primary["pid"] == cluster.pid
            assert primary["listeners"] == [f"127.0.0.1:{cluster.port}"]
            assert primary["sticky"] == ["ip"]
            assert primary["uptime_seconds"] > 0
            served = status["workers"][1]
            assert (served["connections"], served["messages_in"], served["messages_out"]) == (1, 3, 4)
            assert status["totals"]["connections"] == 1
            assert status["totals"]["moved"] is None
            assert status["bus"] == {
                "url": None, "private": True, "connected": False, "published": 0, "delivered": 0, "gaps": 0,
                "ignored": 0,
            }  # fmt: skip
            for answer in (done.stdout, (await asyncio.to_thread(cli, *where, folder=tmp_path)).stdout):
                for text in (str(cluster.pid), str(cluster.worker_pids()[0]), f"127.0.0.1:{cluster.port}", "ready"):
                    assert text in answer
            await ws.close()

    run(main())


def test_the_table_shows_a_slot_without_a_worker(tmp_path: Path) -> None:
    (tmp_path / "slot.py").write_text(
        "import os, wscluster\n"
        "@wscluster.lifespan\nasync def life():\n"
        "    if wscluster.this_worker.slot == 1:\n        os._exit(1)\n"
        "    yield\n"
        "async def handler(ws): pass\n"
    )

    async def main() -> None:
        async with Cluster("slot:handler", app_dir=tmp_path) as cluster:
            where = ("status", "--control-socket", str(cluster.control_socket))
            done = await asyncio.to_thread(cli, *where, folder=tmp_path)
            assert done.returncode == 0
            (line,) = [line for line in done.stdout.splitlines() if "failed" in line]
            assert line.split()[:4] == ["1", "-", "-", "failed"]

    run(main())


@pytest.mark.parametrize("before", [None, 0o755, 0o777])
def test_the_socket_is_for_its_user_alone(tmp_path: Path, before: int | None) -> None:
    """The folder is made with mode 0700; one that is this user's own and open to others is closed to them."""
    env = environment(tmp_path)
    folder = tmp_path / "run" / "wscluster"
    if before is not None:
        folder.mkdir()
        folder.chmod(before)

    async def main() -> None:
        async with _default(tmp_path, env) as cluster:
            assert _mode(folder) == 0o700
            (path,) = _entries(folder)
            assert path.name == f"{cluster.pid}.sock"
            assert _mode(path) == 0o600
        assert _entries(folder) == []

    run(main())


def test_without_a_runtime_folder_the_socket_is_in_a_folder_of_the_users_own_in_the_temporary_one(
    tmp_path: Path,
) -> None:
    env = environment(tmp_path) | {"XDG_RUNTIME_DIR": "", "TMPDIR": str(tmp_path)}
    folder = tmp_path / f"wscluster-{os.getuid()}"

    async def main() -> None:
        async with _default(tmp_path, env) as cluster:
            assert _mode(folder) == 0o700
            path = folder / f"{cluster.pid}.sock"
            assert _mode(path) == 0o600
            found = await asyncio.to_thread(cli, "status", "--json", folder=tmp_path, env=env)
            assert json.loads(found.stdout)["primary"]["pid"] == cluster.pid
        assert not path.exists()

    run(main())


class _default(Cluster):  # noqa: N801
    """A cluster whose control socket is where it is by default, below ``folder``."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        super().__init__(SERVED, workers=1, env=env, control_socket="")
        self.folder = folder
        self._in_runtime = Path(env["XDG_RUNTIME_DIR"]) / "wscluster"
        del self._options["control_socket"]
        self._command = ("sh", "-c", _WITHOUT_CONTROL_SOCKET, "sh", *self._command)


# The harness names a control socket of its own; the two words are taken out again.
_WITHOUT_CONTROL_SOCKET = """
n=$#
while [ $n -gt 0 ]; do
    if [ "$1" = --control-socket ]; then shift 2; n=$((n - 2)); else set -- "$@" "$1"; shift; n=$((n - 1)); fi
done
exec "$@"
"""


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def test_verbs_find_the_primary_and_ask_which_where_there_are_several(tmp_path: Path) -> None:
    env = environment(tmp_path)

    async def main() -> None:
        async with _default(tmp_path, env) as one:
            alone = await asyncio.to_thread(cli, "status", "--json", folder=tmp_path)
            assert json.loads(alone.stdout)["primary"]["pid"] == one.pid
            async with _default(tmp_path, env) as two:
                several = await asyncio.to_thread(cli, "stop", folder=tmp_path)
                assert several.returncode == 2
                assert several.stderr.count("\n") == 1
                assert several.stderr.startswith("wscluster: 2 primaries run, choose one: ")
                for cluster in (one, two):
                    assert f"--pid {cluster.pid} (127.0.0.1:{cluster.port})" in several.stderr
                    for flag, value in (("--pid", cluster.pid), ("--port", cluster.port)):
                        done = await asyncio.to_thread(cli, "status", "--json", flag, str(value), folder=tmp_path)
                        assert json.loads(done.stdout)["primary"]["pid"] == cluster.pid
                stopped = await asyncio.to_thread(cli, "stop", "--port", str(two.port), folder=tmp_path)
                assert stopped.returncode == 0
                assert await two.wait_exit() == 0
            assert one.running
            # One that was killed leaves its socket behind, and is no primary that runs.
            one.signal(signal.SIGKILL)
            await one.wait_exit()
            gone = await asyncio.to_thread(cli, "status", folder=tmp_path)
            assert (gone.returncode, gone.stderr.count("\n")) == (1, 1)
            assert "no running primary was found" in gone.stderr
            assert len(_entries(tmp_path / "run" / "wscluster")) == 1

    run(main())


def test_a_socket_that_a_killed_primary_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        async with Cluster(SERVED, workers=1, control_socket=path) as first:
            first.signal(signal.SIGKILL)
            await first.wait_exit()
        assert _mode(path) == 0o600
        async with Cluster(SERVED, workers=1, control_socket=path) as second:
            assert (await second.status())["primary"]["pid"] == second.pid
            third = Cluster(SERVED, workers=1, control_socket=path)
            await third.start()
            assert await third.wait_exit() == 3
            await third.__aexit__(None, None, None)
            assert "another primary serves there" in third.output[-1]
            assert (await second.status())["primary"]["pid"] == second.pid
        assert not os.path.lexists(path)

    run(main())


CALL_AS_NOBODY = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    try:
        sock.connect(sys.argv[1])
        sock.sendall(b'{"verb": "stop"}\\n')
        print("answered", sock.recv(100))
    except OSError as exc:
        print(type(exc).__name__)
"""


def test_another_user_cannot_call_even_where_the_socket_is_open_to_all() -> None:
    """The mode keeps others out; where somebody has changed it, the kernel says who calls (SO_PEERCRED)."""
    if os.getuid() != 0:
        cannot_run("only root can be somebody else for a moment")
    folder = folder_for_nobody()
    path = folder / "control.sock"

    async def call() -> str:
        command = (*nobody, "-c", CALL_AS_NOBODY, str(path))
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    async def main() -> None:
        async with Cluster(SERVED, workers=1, control_socket=str(path)) as cluster:
            assert await call() == "PermissionError"
            path.chmod(0o666)
            assert await call() in ("answered b''", "ConnectionResetError", "BrokenPipeError")
            await cluster.wait_output("a call to the control socket was refused: user 65534")
            assert (await cluster.status())["primary"]["pid"] == cluster.pid
            assert cluster.running

    try:
        nobody = as_nobody(folder / "stage")
        run(main())
    finally:
        shutil.rmtree(folder)


def test_garbage_is_answered_by_an_error_and_hurts_nobody() -> None:
    garbage = [
        b"hello", b"{", b"[]", b"3", b"null", b'"status"', b"{}", b'{"verb": 3}', b'{"verb": ["status"]}', b"\xff\xfe",
        b'{"verb": "reboot"}', b"[" * 30_000, b'{"verb": {"verb": "stop"}}', b"GET / HTTP/1.1\r",
    ]  # fmt: skip

    async def main() -> None:
        async with Cluster(SERVED, workers=1) as cluster:
            path = cluster.control_socket
            before = len(open_fds(cluster.pid))
            for line in garbage:
                (answer,) = await asyncio.to_thread(say, path, line + b"\n")
                assert answer["ok"] is False, line
                assert isinstance(answer["error"], str)
            many = await asyncio.to_thread(say, path, b"{}\n" * 5 + b'{"verb": "status"}\n')
            assert [answer["ok"] for answer in many] == [False] * 5 + [True]
            # Too long: no line of it is kept.
            assert await asyncio.to_thread(say, path, b"x" * (MAX_LINE_BYTES * 3)) == []
            assert await asyncio.to_thread(say, path, b"x" * (1 << 20)) == []
            assert await asyncio.to_thread(say, path, b"") == []
            await cluster.wait_status(lambda status: len(open_fds(cluster.pid)) <= before + 1)
            with pytest.raises(ControlError, match=r"refused: this primary .* knows no such request"):
                await asyncio.to_thread(ask, path, "reboot")
            assert not [line for line in cluster.output if "Traceback" in line], "\n".join(cluster.output)

    run(main())


def test_callers_are_bounded_and_make_room_when_they_leave() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1) as cluster:
            path = cluster.control_socket
            idle = len(open_fds(cluster.pid))
            with contextlib.ExitStack() as stack:
                callers = [stack.enter_context(caller(path)) for _ in range(MAX_CONNECTIONS)]
                # The first and the last of them are served; who comes then is not.
                for sock in (callers[0], callers[-1]):
                    sock.sendall(b'{"verb": "status"}\n')
                    assert await asyncio.to_thread(_answered, sock)
                assert await asyncio.to_thread(say, path, b'{"verb": "status"}\n') == []
                await cluster.wait_output("a call to the control socket was refused")
                assert len(open_fds(cluster.pid)) <= idle + MAX_CONNECTIONS + 2
                # Nobody who serves clients feels it.
                ws = await connect_to_slot(cluster, 0)
                await ws.close()
            await _wait_served(path)
            assert len(open_fds(cluster.pid)) <= idle + 1

    def _answered(sock: socket.socket) -> bool:
        with sock.makefile("rb") as answers:
            return json.loads(answers.readline())["ok"] is True

    run(main())


async def _wait_served(path: Path) -> None:
    async with asyncio.timeout(10):
        while not await asyncio.to_thread(say, path, b'{"verb": "status"}\n'):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_callers_that_leave_at_once_or_never_read_keep_nothing_from_ending() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1) as cluster:
            ws = await connect_to_slot(cluster, 0)
            path = cluster.control_socket
            for _ in range(20):
                with caller(path) as sock:
                    sock.sendall(b'{"verb": "status"}\n')
            with caller(path) as deaf:
                deaf.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        deaf.send(b'{"verb": "status"}\n' * 100)
                await cluster.status()
                assert psutil.Process(cluster.pid).memory_info().rss < 200_000_000
                assert await cluster.stop() == 0
            assert await close_code(ws) == 1001
            assert not [line for line in cluster.output if "Traceback" in line], "\n".join(cluster.output)

    run(main())


def test_the_status_of_a_stuck_worker_is_what_it_said_last() -> None:
    async def main() -> None:
        async with Cluster(SERVED) as cluster:
            stuck, other = await connect_to_slot(cluster, 0), await connect_to_slot(cluster, 1)
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 2)
            await stuck.send("block 60")
            assert await stuck.recv() == "will"
            status = await cluster.status()
            assert [worker["connections"] for worker in status["workers"]] == [1, 1]
            await other.close()
            os.kill(cluster.worker_pids()[0], signal.SIGKILL)
            assert await close_code(stuck) == 1006

    run(main())
