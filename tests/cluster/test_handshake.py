"""The opening handshake on real clusters: functions from elsewhere, origins, the true client, and what the log says."""

import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect, unix_connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from tests.cluster.process_support import cli, in_folder
from tests.cluster.raw import CLOSE, Raw, ask, handshake
from tests.support import run
from wscluster.testing import Cluster

APP = """
import wscluster

@wscluster.process_request
def marked(ws, request):
    return ws.respond(418, "the marked one\\n")

async def handler(ws):
    await ws.send(f"{ws.username} {ws.subprotocol} {ws.client}")
    await ws.wait_closed()
"""

DOOR = """
from websockets.asyncio.server import basic_auth
from websockets.exceptions import NegotiationError

def page(ws, request):
    if request.path == "/health":
        return ws.respond(200, f"ok {ws.username}\\n")

async def stamp(ws, request, response):
    response.headers["X-Slot"] = str(ws.slot)

def choose(ws, offered):
    if "old" in offered:
        raise NegotiationError("old is no more")
    return offered[0] if offered else None

async def check(username, password):
    return (username, password) == ("ann", "x")

librarys = basic_auth(realm="door", credentials=("ann", "x"))
plain = 5
"""

ANN = {"Authorization": "Basic YW5uOng="}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a target and, in a package, functions for flags."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "door").mkdir()
    (tmp_path / "door" / "__init__.py").touch()
    (tmp_path / "door" / "keeper.py").write_text(DOOR)
    return tmp_path


async def first_message(ws: connect) -> str:
    async with ws as client:
        return str(await client.recv())


async def refusal(ws: connect) -> int:
    with pytest.raises(InvalidStatus) as caught:
        await ws
    return caught.value.response.status_code


def test_functions_from_elsewhere_take_the_place_of_marked_ones(folder: Path) -> None:
    async def main() -> None:
        async with Cluster(
            "app:handler", workers=1, app_dir=folder,
            process_request="door.keeper:page", process_response="door.keeper:stamp",
            select_subprotocol="door.keeper:choose", basic_auth="door.keeper:check",
        ) as cluster:  # fmt: skip
            chat, old = Subprotocol("chat"), Subprotocol("old")
            async with cluster.connect(additional_headers=ANN, subprotocols=[chat]) as client:
                assert str(await client.recv()).startswith("ann chat ")
                assert client.response is not None
                assert client.response.headers["X-Slot"] == "0"
            assert await refusal(cluster.connect(additional_headers=ANN, subprotocols=[old])) == 400
            assert await refusal(cluster.connect()) == 401
            head, body = await ask(cluster.port, handshake("/health", *(": ".join(item) for item in ANN.items())))
            assert head.startswith("HTTP/1.1 200 OK\r\n")
            assert "\r\nX-Slot: 0\r\n" in head
            assert body == b"ok ann\n"

    run(main())


def test_the_librarys_basic_auth_is_named_by_a_flag(folder: Path) -> None:
    async def main() -> None:
        async with Cluster("app:handler", workers=1, app_dir=folder, process_request="door.keeper:librarys") as cluster:
            assert (await first_message(cluster.connect(additional_headers=ANN))).startswith("ann None ")
            assert await refusal(cluster.connect()) == 401

    run(main())


def test_without_a_flag_the_marked_function_is_asked(folder: Path) -> None:
    async def main() -> None:
        async with Cluster("app:handler", workers=1, app_dir=folder) as cluster:
            assert await refusal(cluster.connect()) == 418

    run(main())


@pytest.mark.parametrize(
    ("flag", "name", "exit_code", "line"),
    [
        (
            "--process-request",
            "door.window:page",
            4,
            "door.window:page: no module named 'door.window'",
        ),
        ("--process-response", "door.keeper:missing", 4, "module 'door.keeper' has no attribute 'missing'"),
        ("--select-subprotocol", "door.keeper:check", 4, "is a coroutine function, but it cannot wait"),
        ("--basic-auth", "door.keeper:plain", 4, "is no function, but of the type 'int'"),
        ("--basic-auth", "door.keeper", 2, "--basic-auth 'door.keeper': module:function is wanted"),
        ("--allowed-origins", "https://example.com/", 2, "--allowed-origins 'https://example.com/': scheme://host"),
        ("--forwarded-allow-ips", "10.0.0.1/8", 2, "--forwarded-allow-ips '10.0.0.1/8': "),
        ("--subprotocols", "a b", 2, "--subprotocols 'a b': "),
    ],
)
def test_a_flag_that_cannot_be_meant_is_one_line(folder: Path, flag: str, name: str, exit_code: int, line: str) -> None:
    done = cli("serve", "app:handler", flag, name, "--port", "0", "--workers", "2", folder=folder)
    assert done.returncode == exit_code
    (said,) = done.stderr.splitlines()
    assert said.startswith("wscluster: ")
    assert line in said


def test_origins_and_subprotocols_of_the_command_line(folder: Path) -> None:
    async def main() -> None:
        async with Cluster(
            "tests.cluster.handlers:who", workers=1, allowed_origins=["https://example.com", "none"],
            subprotocols="v2,v1",
        ) as cluster:  # fmt: skip
            v1 = [Subprotocol("v1")]
            async with cluster.connect(subprotocols=v1, origin="https://example.com") as client:
                assert client.subprotocol == "v1"
            async with cluster.connect(subprotocols=v1):
                pass
            assert await refusal(cluster.connect(subprotocols=v1, origin="https://evil-example.com")) == 403
            assert await refusal(cluster.connect()) == 400

    run(main())


# The true client


async def client_of(cluster: Cluster, header: str, source: str = "127.0.0.1") -> Any:
    raw = await Raw.connect(cluster.port, source, handshake("/", header))
    try:
        assert " 101 " in await raw.head()
        found = re.search(r'"client": (\[.*?\]|null)', await raw.message())
        assert found is not None
        return found[1]
    finally:
        raw.writer.write(CLOSE)
        await raw.close()


def test_the_client_is_whom_a_proxy_of_the_variable_names() -> None:
    async def main() -> None:
        env = {"FORWARDED_ALLOW_IPS": "127.1.0.0/16"}
        async with Cluster("tests.cluster.handlers:who", workers=1, env=env) as cluster:
            header = "X-Forwarded-For: 6.6.6.6, 203.0.113.7, 127.1.0.9"
            assert await client_of(cluster, header, "127.1.0.5") == '["203.0.113.7", 0]'
            assert (await client_of(cluster, header)).startswith('["127.0.0.1", ')

    run(main())


@pytest.mark.parametrize(("allow", "client"), [("127.0.0.1", "null"), ("*", '["203.0.113.7", 0]')])
def test_a_proxy_on_a_unix_socket_is_believed_where_everybody_is(tmp_path: Path, allow: str, client: str) -> None:
    async def main() -> None:
        path = str(tmp_path / "listen.sock")
        async with Cluster(
            "tests.cluster.handlers:who", workers=1, host=None, port=None, uds=path, forwarded_allow_ips=allow
        ) as cluster:
            assert cluster.running
            headers = {"X-Forwarded-For": "203.0.113.7"}
            async with unix_connect(path, "ws://localhost/", additional_headers=headers) as ws:
                assert f'"client": {client}' in str(await ws.recv())

    run(main())


# What the log says

TALKER = """
import logging

logging.basicConfig(format="app: %(message)s", level="INFO")
own = logging.getLogger("app")

async def handler(ws):
    own.info("own %s", ws.request.headers["X-Name"])
    ws.logger.info("its %s", ws.request.headers["X-Name"])
    async for message in ws:
        ws.logger.info(f"its {message}")
        own.warning("own %s", message)
        raise ValueError(message)
"""

EVIL = "\x1b]0;owned\x07\r\n2026-01-31 12:00:00.123 INFO    primary | forged\x00\u2028\x9b31m"


def assert_clean(output: list[str]) -> None:
    """Assert that no control character is in a line, and that none was made from outside."""
    assert [line for line in output if not line.isprintable() or "\ufffd" in line] == []
    assert [line for line in output if re.search(r"^.{0,40}\| forged", line)] == []


@contextlib.asynccontextmanager
async def talking(folder: Path, **options: Any) -> AsyncIterator[Cluster]:
    (folder / "talker.py").write_text(TALKER)
    async with Cluster("talker:handler", workers=1, command=in_folder(folder), **options) as cluster:
        yield cluster
    assert_clean(cluster.output)


def test_no_control_character_reaches_the_log_raw(tmp_path: Path) -> None:
    async def main() -> None:
        async with talking(tmp_path, access_log=True, log_level="debug") as cluster:
            hostile = [
                handshake("/\x1b[2J\r\x00", "X-Name: a"),
                handshake("/\x9b31m", "X-Name: a"),
                handshake().replace(b"GET", b"G\x1b[2J\x00ET"),
                handshake("/", "Origin: \x9b31m\x85", "X-Name: a").replace(b"13", b"\x9b"),
                handshake("/", "X-\x1b[2J: a"),
                b"\x1b[2J\x00\r\x9b \x1b \r\r\n\r\n",
                handshake("/", "X-Forwarded-For: \x9b31m", "Authorization: Basic \x9b").replace(
                    b"\r\nUpgrade", b"\r\n\x1b"
                ),
            ]
            for data in hostile:
                head, body = await ask(cluster.port, data)
                assert re.match(r"HTTP/1\.1 4\d\d ", head)
                text = head + body.decode()
                assert text.replace("\r\n", "").replace("\n", "").isprintable()
            async with cluster.connect(additional_headers={"X-Name": "J\x9b31m\x85"}) as ws:
                await ws.send(EVIL)
                await ws.wait_closed()
                assert ws.close_code == 1011
            await cluster.wait_output("closed with 1011")
            await cluster.wait_output("ValueError: ")
        text = "\n".join(cluster.output)
        assert r'"GET /\x1b[2J\r\x00" 400' in text
        assert r"own J\x9b31m\x85" in text
        assert r"its J\x9b31m\x85" in text
        assert r"its \x1b]0;owned\x07\r\n2026" in text
        assert r"app: own \x1b]0;owned\x07\r" in text
        assert "  Traceback (most recent call last):" in text

    run(main())


def test_the_access_log_is_off_by_default_and_has_two_lines_for_a_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster("tests.cluster.handlers:echo", workers=1) as cluster, cluster.connect("/quiet") as ws:
            await ws.send("a")
            await ws.recv()
        assert not [line for line in cluster.output if "/quiet" in line]
        async with Cluster("tests.cluster.handlers:echo", workers=1, access_log=True) as cluster:
            async with cluster.connect("/loud?a=b") as ws:
                for _ in range(3):
                    await ws.send("a")
                    await ws.recv()
                host, port = ws.local_address[:2]
            await cluster.wait_output("closed with 1000")
        first, last = (line.partition(" | ")[2] for line in cluster.output if "/loud" in line)
        who = re.escape(f"{host}:{port}")
        found = re.fullmatch(rf'{who} "GET /loud\?a=b" 101 \(connection ([-0-9a-f]{{36}})\)', first)
        assert found is not None
        figures = r"after \d+\.\d{3} s, 3 messages in, 3 out"
        assert re.fullmatch(rf'{who} "/loud\?a=b" closed with 1000 {figures} \(connection {found[1]}\)', last)

    run(main())


# A lifespan that is no good


@pytest.mark.parametrize(
    ("source", "exit_code", "line"),
    [
        ("async def life(app): yield", 4, "takes (app), but it is called with no arguments"),
        ("async def life(): return {}", 4, "is no async generator function (`yield` once)"),
        ("async def life():\n    yield 5", 3, "the lifespan yielded 'int': a mapping or nothing is wanted"),
    ],
)
def test_a_lifespan_that_cannot_be_one(tmp_path: Path, source: str, exit_code: int, line: str) -> None:
    (tmp_path / "app.py").write_text(f"import wscluster\n@wscluster.lifespan\n{source}\nasync def handler(ws): pass\n")
    done = cli("serve", "app:handler", "--port", "0", "--workers", "1", folder=tmp_path)
    assert done.returncode == exit_code
    assert line in done.stderr
    assert "Traceback" not in done.stderr


def test_a_lifespan_that_exits_is_a_failed_boot_and_shows_its_traceback(tmp_path: Path) -> None:
    source = "@wscluster.lifespan\nasync def life():\n    raise SystemExit(5)\n    yield\n"
    (tmp_path / "app.py").write_text(f"import wscluster\n{source}async def handler(ws): pass\n")
    done = cli("serve", "app:handler", "--port", "0", "--workers", "1", folder=tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("wscluster: the lifespan raised SystemExit: 5\n")


def test_a_basic_auth_that_raises_names_the_connection_and_not_the_password(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import wscluster\n@wscluster.basic_auth\ndef check(username, password): raise OSError('no database')\n"
        "async def handler(ws): pass\n"
    )

    async def main() -> None:
        async with Cluster("app:handler", workers=1, app_dir=tmp_path) as cluster:
            assert await refusal(cluster.connect(additional_headers={"Authorization": "Basic YW5uOnNlY3JldA=="})) == 500
            line = await cluster.wait_output("basic_auth failed")
            assert re.search(r"\(connection [-0-9a-f]{36}\)", line)
            await cluster.wait_output("OSError: no database")
        assert "secret" not in "".join(cluster.output)

    run(main())
