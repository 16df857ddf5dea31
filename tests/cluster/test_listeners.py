"""Where a cluster listens: several addresses, Unix sockets, sockets that it was started with."""

import signal
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect, unix_connect

from tests.cluster.process_support import cli
from tests.support import run
from wscluster.testing import Cluster, ClusterFailed

SOURCE = """
import json
async def handler(ws):
    await ws.send(json.dumps([ws.client, ws.remote_address]))
    await ws.recv()
"""


@pytest.fixture
def served(tmp_path: Path) -> dict[str, Any]:
    """What a cluster of this folder's handler is made with."""
    (tmp_path / "app.py").write_text(SOURCE)
    return {"target": "app:handler", "app_dir": tmp_path, "workers": 1}


def refusal(tmp_path: Path, *arguments: str, pass_fds: tuple[int, ...] = ()) -> tuple[int, str]:
    """Return exit code and the only line of a `serve` that does not start."""
    (tmp_path / "app.py").write_text(SOURCE)
    done = cli("serve", "app:handler", "--workers", "1", *arguments, folder=tmp_path, pass_fds=pass_fds)
    (line,) = done.stderr.splitlines()
    return done.returncode, line.removeprefix("wscluster: ")


def test_several_addresses_at_once(tmp_path: Path, served: dict[str, Any]) -> None:
    path = tmp_path / "a.sock"

    async def main() -> None:
        inherited = socket.create_server(("127.0.0.4", 0))
        bind = [f"unix:{path}", "127.0.0.2:0", "[::1]:0,127.0.0.3:0", f"fd:{inherited.fileno()}"]
        with inherited:
            cluster = Cluster(**served, bind=bind, pass_fds=(inherited.fileno(),))
            async with cluster:
                ready = await cluster.wait_event("ready")
                first, *others = ready["listeners"]
                assert first == f"unix:{path}"
                hosts = [name.rpartition(":")[0] for name in others]
                assert hosts == ["127.0.0.2", "[::1]", "127.0.0.3", "127.0.0.4"]
                assert ready["port"] == int(others[0].rpartition(":")[2])
                assert [event["listener"] for event in cluster.events if event["event"] == "bound"] == ready[
                    "listeners"
                ]
                async with unix_connect(str(path)) as ws:
                    assert await ws.recv() == "[null, null]"
                for name in others:
                    async with connect(f"ws://{name}", proxy=None) as ws:
                        assert await ws.recv() != "[null, null]"
                status = await cluster.status()
                assert status["primary"]["listeners"] == ready["listeners"]
        assert not path.exists()

    run(main())


def test_a_unix_socket_is_open_to_all_and_removed_at_the_end(tmp_path: Path, served: dict[str, Any]) -> None:
    path = tmp_path / "a.sock"

    async def main() -> None:
        async with Cluster(**served, uds=path) as cluster:
            ready = await cluster.wait_event("ready")
            assert (ready["port"], ready["listeners"]) == (None, [f"unix:{path}"])
            assert stat.S_IMODE(path.stat().st_mode) == 0o666
            async with cluster.connect("/a?b") as ws:
                assert await ws.recv() == "[null, null]"
            assert f"listening on unix:{path} with" in await cluster.wait_output("listening on")
        assert cluster.process.returncode == 0
        assert not path.exists()

    run(main())


def test_a_stale_socket_is_replaced(tmp_path: Path, served: dict[str, Any]) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))

    async def main() -> None:
        async with Cluster(**served, uds=path) as cluster, cluster.connect() as ws:
            assert await ws.recv() == "[null, null]"

    run(main())


def test_a_socket_that_somebody_else_has_put_there_is_left_alone(tmp_path: Path, served: dict[str, Any]) -> None:
    path = tmp_path / "a.sock"

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as other:
            async with Cluster(**served, uds=path) as cluster:
                await cluster.wait_event("ready")
                path.unlink()
                other.bind(str(path))
            assert path.is_socket()

    run(main())


def test_a_live_server_and_what_is_no_socket_are_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        assert refusal(tmp_path, "--uds", str(path)) == (
            3,
            f"cannot listen on unix:{path}: another server listens there",
        )
    path.unlink()
    path.write_text("precious")
    code, line = refusal(tmp_path, "--bind", f"127.0.0.1:0,unix:{path}")
    assert code == 3
    assert line.startswith(f"cannot listen on unix:{path}: this is a file, a folder or a link, not a socket")
    assert path.read_text() == "precious"
    (tmp_path / "link").symlink_to(path)
    assert refusal(tmp_path, "--uds", str(tmp_path / "link"))[1].endswith("it is left alone")


@pytest.mark.parametrize(
    ("path", "reason"),
    [("no/folder/a.sock", "No such file or directory"), ("x" * 120, "AF_UNIX path too long")],
)
def test_a_unix_socket_that_cannot_be_made(tmp_path: Path, path: str, reason: str) -> None:
    assert refusal(tmp_path, "--uds", path) == (3, f"cannot listen on unix:{path}: {reason}")


def test_one_address_of_several_that_is_taken_leaves_nothing_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        name = f"127.0.0.1:{taken.getsockname()[1]}"
        code, line = refusal(tmp_path, "--bind", f"unix:{tmp_path}/a.sock", "--bind", name)
    assert code == 3
    assert line.startswith(f"cannot listen on {name}: Address already in use")
    assert not (tmp_path / "a.sock").exists()


@pytest.mark.parametrize("kind", ["listening", "bound", "unix", "v6"])
def test_a_socket_that_the_primary_was_started_with(tmp_path: Path, served: dict[str, Any], kind: str) -> None:
    async def main() -> None:
        family = {"unix": socket.AF_UNIX, "v6": socket.AF_INET6}.get(kind, socket.AF_INET)
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            address: Any = {"unix": str(tmp_path / "a.sock"), "v6": ("::1", 0)}.get(kind, ("127.0.0.1", 0))
            sock.bind(address)
            if kind == "listening":
                sock.listen(1)
            async with Cluster(**served, fd=sock.fileno(), pass_fds=(sock.fileno(),)) as cluster:
                async with cluster.connect() as ws:
                    assert (await ws.recv() == "[null, null]") is (kind == "unix")
                if kind != "unix":
                    assert cluster.port == sock.getsockname()[1]
            assert sock.fileno() >= 0
        if kind == "unix":
            assert (tmp_path / "a.sock").exists(), "whoever made it removes it"

    run(main())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("closed", "this file descriptor is not open"),
        ("file", "this file descriptor is not a socket"),
        ("datagrams", "a stream socket of IPv4, IPv6 or Unix is wanted"),
        ("packets", "a stream socket of IPv4, IPv6 or Unix is wanted"),
        ("connection", "this socket is a connection, not one to accept from"),
        ("unbound", "this socket is not bound to an address"),
        ("unbound unix", "this socket is not bound to an address"),
    ],
)
def test_a_descriptor_that_is_no_socket_to_accept_from(tmp_path: Path, kind: str, reason: str) -> None:
    match kind:
        case "closed":
            assert refusal(tmp_path, "--fd", "7") == (2, f"cannot listen on fd:7: {reason}")
            return
        case "file":
            kept: Any = (tmp_path / "f").open("w")
        case "datagrams":
            kept = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        case "packets":
            kept = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        case "connection":
            kept, other = socket.socketpair()
            other.close()
        case "unbound":
            kept = socket.socket()
        case _:
            kept = socket.socket(socket.AF_UNIX)
    fd = kept.fileno()
    with kept:
        assert refusal(tmp_path, "--fd", str(fd), pass_fds=(fd,)) == (2, f"cannot listen on fd:{fd}: {reason}")


def test_the_backlog_bounds_what_waits_for_a_unix_socket(tmp_path: Path, served: dict[str, Any]) -> None:
    path = tmp_path / "a.sock"

    async def main() -> None:
        async with Cluster(**served, uds=path, backlog=3) as cluster:
            cluster.signal(signal.SIGSTOP)  # it accepts nothing
            try:
                waiting = []
                for _ in range(10):
                    sock = socket.socket(socket.AF_UNIX)
                    sock.setblocking(False)
                    waiting.append(sock)
                    try:
                        sock.connect(str(path))
                    except BlockingIOError:
                        break
                for sock in waiting:
                    sock.close()
                assert len(waiting) == 5  # the kernel takes one more than the backlog says
            finally:
                cluster.signal(signal.SIGCONT)

    run(main())


def test_a_lost_race_for_a_path_is_an_error_not_a_deaf_server(tmp_path: Path, served: dict[str, Any]) -> None:
    """Somebody replaces the socket between its making and the first worker's being ready."""
    path = tmp_path / "a.sock"
    (tmp_path / "app.py").write_text(
        "import os, socket, wscluster\n"
        "@wscluster.lifespan\nasync def life():\n"
        f"    os.unlink({str(path)!r})\n"
        f"    with socket.socket(socket.AF_UNIX) as other:\n        other.bind({str(path)!r})\n"
        "    yield\n"
        "async def handler(ws): pass\n"
    )

    async def main() -> None:
        with pytest.raises(ClusterFailed, match="another server has taken its place") as caught:
            async with Cluster(**served, uds=path):
                pass
        assert caught.value.exit_code == 3
        assert path.is_socket()

    run(main())
