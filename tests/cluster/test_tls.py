"""TLS in the workers: who is served, who is not, and what a connection's end looks like."""

import asyncio
import contextlib
import json
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.exceptions import ConnectionClosed, InvalidMessage

from tests.certificate_support import DAY, NOW, encrypt, write_server
from tests.cluster.process_support import close_code
from tests.cluster.raw import Raw, handshake
from tests.cluster.test_limits import leave_fds
from tests.support import open_fds, run
from wscluster.testing import Cluster

ECHO = "tests.cluster.handlers:echo"
WHO = "tests.cluster.handlers:who"
ROOMS = "tests.cluster.handlers:rooms"
AUTHORITY = trustme.CA()


def client_context() -> ssl.SSLContext:
    """A context that trusts our authority and nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    return context


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """The flags of a server with a certificate."""
    certificate, key = write_server(tmp_path, AUTHORITY)
    return {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}


@contextlib.asynccontextmanager
async def raw_tls(
    cluster: Cluster, data: bytes = b"", context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TLS connection without a library above it, on which ``data`` was sent."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", cluster.port, ssl=context or client_context(), server_hostname="127.0.0.1"
    )
    try:
        writer.write(data)
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


def stop_reading(writer: asyncio.StreamWriter) -> None:
    transport = writer.transport
    assert isinstance(transport, asyncio.Transport)
    transport.pause_reading()


async def rest(reader: asyncio.StreamReader) -> bytes:
    """Return what comes until the end; a reset is an end too."""
    data = b""
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while chunk := await reader.read(65536):
                data += chunk
    return data


def complaints(cluster: Cluster) -> list[str]:
    return [line for line in cluster.output if " WARNING " in line or " ERROR " in line or "Traceback" in line]


# Who is served


def test_a_client_of_the_library_is_served_over_wss(files: dict[str, Any]) -> None:
    async def main() -> None:
        async with Cluster(WHO, workers=2, **files) as cluster:
            assert cluster.url == f"wss://127.0.0.1:{cluster.port}"
            line = await cluster.wait_output("listening on")
            assert f"listening on https://127.0.0.1:{cluster.port}" in line
            async with cluster.connect("/path", ssl=client_context()) as ws:
                told = json.loads(await ws.recv())
                assert told["path"] == "/path"
                assert told["client"] == list(ws.local_address)
                assert told["pid"] == cluster.worker_pids()[told["slot"]]
                for size in (0, 1, 16 * 1024, 1024 * 1024):
                    await ws.send("x" * size)
                    assert await ws.recv() == "x" * size
                spoken = ws.transport.get_extra_info("ssl_object")
                assert spoken.version() == "TLSv1.3"
            assert ws.close_code == 1000
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
            assert complaints(cluster) == []

    run(main())


def test_tls_1_2_and_1_3_and_http_1_1_are_spoken(files: dict[str, Any]) -> None:
    async def main() -> None:
        async with Cluster(ECHO, workers=1, **files) as cluster:
            for version, offered, spoken in (
                (ssl.TLSVersion.TLSv1_2, ["http/1.1"], "http/1.1"),
                (ssl.TLSVersion.TLSv1_3, ["h2", "http/1.1"], "http/1.1"),
                (ssl.TLSVersion.TLSv1_3, ["h2"], None),
            ):
                context = client_context()
                context.minimum_version = context.maximum_version = version
                context.set_alpn_protocols(offered)
                async with cluster.connect(ssl=context) as ws:
                    await ws.send("hello")
                    assert await ws.recv() == "hello"
                    assert ws.transport.get_extra_info("ssl_object").selected_alpn_protocol() == spoken

    run(main())


def test_tls_1_1_is_refused(files: dict[str, Any]) -> None:
    async def main() -> None:
        async with Cluster(ECHO, workers=1, **files) as cluster:
            context = client_context()
            context.set_ciphers("ALL:@SECLEVEL=0")
            with pytest.deprecated_call():
                context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises((ssl.SSLError, ConnectionError)):  # the event loop sends no alert
                async with raw_tls(cluster, context=context):
                    pass
            assert complaints(cluster) == []

    run(main())


def test_with_authorities_a_client_needs_a_certificate_that_they_signed(files: dict[str, Any], tmp_path: Path) -> None:
    clients, strangers = trustme.CA(), trustme.CA()
    authorities = tmp_path / "clients.pem"
    clients.cert_pem.write_to_path(str(authorities))
    (tmp_path / "certified.py").write_text(
        "async def handler(ws):\n    await ws.send(repr(ws.transport.get_extra_info('peercert')['subjectAltName']))\n"
    )

    async def main() -> None:
        async with Cluster(
            "certified:handler", workers=1, app_dir=tmp_path, ssl_ca_certs=authorities, **files
        ) as cluster:
            context = client_context()
            clients.issue_cert("ada@example.com").configure_cert(context)
            async with cluster.connect(ssl=context) as ws:
                assert await ws.recv() == "(('email', 'ada@example.com'),)"
            without = client_context()
            strange = client_context()
            strangers.issue_cert("eve@example.com").configure_cert(strange)
            for context in (without, strange):
                # With TLS 1.3 a client is done before the server has seen its certificate: it hears of it by the end.
                with pytest.raises((ssl.SSLError, InvalidMessage, ConnectionError)):
                    async with cluster.connect(ssl=context):
                        pass
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
            assert complaints(cluster) == []

    run(main())


def test_rooms_over_tls(files: dict[str, Any]) -> None:
    async def main() -> None:
        async with Cluster(ROOMS, workers=2, sticky="none", balance="round-robin", **files) as cluster:
            context = client_context()
            async with cluster.connect(ssl=context) as ada, cluster.connect(ssl=context) as bob:
                for ws in (ada, bob):
                    await ws.send(json.dumps({"do": "join", "room": "lobby"}))
                    assert "is" in json.loads((await ws.recv())[1:])
                await ada.send(json.dumps({"do": "publish", "room": "lobby", "text": "hello"}))
                assert await bob.recv() == "hello"

    run(main())


# What is wrong is said before anything is bound


@pytest.mark.parametrize("fault", ["missing", "expired", "tomorrow", "other key", "password"])
def test_a_fault_is_one_line_and_exit_code_3_before_anything_is_bound(tmp_path: Path, fault: str) -> None:
    certificate, key = write_server(tmp_path, AUTHORITY)
    flags: dict[str, Any] = {"ssl_certfile": certificate, "ssl_keyfile": key}
    wanted = f"--ssl-certfile {certificate}: the certificate "
    match fault:
        case "missing":
            certificate.unlink()
            wanted = f"--ssl-certfile {certificate}: it cannot be read"
        case "expired":
            write_server(tmp_path, AUTHORITY, not_before=NOW - 2 * DAY, not_after=NOW - DAY)
            wanted += "expired on"
        case "tomorrow":
            write_server(tmp_path, AUTHORITY, not_before=NOW + DAY, not_after=NOW + 2 * DAY)
            wanted += "is not valid before"
        case "other key":
            _, flags["ssl_keyfile"] = write_server(tmp_path, AUTHORITY, "other")
            wanted = "the private key does not belong to"
        case "password":
            flags |= {"ssl_keyfile": encrypt(key, "secret"), "ssl_keyfile_password": "a wrong one"}
            wanted = "the private key cannot be decrypted"

    async def main() -> None:
        cluster = Cluster(ECHO, workers=1, **flags)
        await cluster.start()
        try:
            assert await cluster.wait_exit() == 3
        finally:
            await cluster._end()
        (line,) = cluster.output
        assert line.startswith("wscluster: ")
        assert wanted in line
        assert "a wrong one" not in line
        assert cluster.events == []

    run(main())


def test_a_password_is_neither_in_the_log_nor_in_the_command_line_of_a_process(tmp_path: Path) -> None:
    certificate, key = write_server(tmp_path, AUTHORITY)
    encrypted = encrypt(key, "correct horse")

    async def main() -> None:
        environment = {"WSCLUSTER_SSL_KEYFILE_PASSWORD": "correct horse"}
        async with Cluster(
            ECHO, workers=2, env=environment, ssl_certfile=certificate, ssl_keyfile=encrypted, log_level="debug"
        ) as cluster:
            async with cluster.connect(ssl=client_context()) as ws:
                await ws.send("hello")
                assert await ws.recv() == "hello"
            for pid in (cluster.pid, *cluster.worker_pids().values()):
                assert b"correct" not in Path(f"/proc/{pid}/cmdline").read_bytes()
            assert not [line for line in cluster.output if "correct horse" in line]

    run(main())


def test_a_worker_that_finds_other_files_than_the_primary_did_says_what_is_wrong(
    files: dict[str, Any],
) -> None:
    async def main() -> None:
        async with Cluster(ECHO, workers=1, **files) as cluster:
            certificate = Path(files["ssl_certfile"])
            content = certificate.read_bytes()
            certificate.write_text("nothing")
            os.kill(cluster.worker_pids()[0], signal.SIGKILL)
            line = await cluster.wait_output("cannot become ready")
            assert f"--ssl-certfile {certificate}: there is no certificate in PEM form in it" in line
            certificate.write_bytes(content)
            await cluster.wait_event("worker_ready", count=2)
            async with cluster.connect(ssl=client_context()) as ws:
                await ws.send("hello")
                assert await ws.recv() == "hello"

    run(main())


# Clients that do not speak TLS, or not to the end


def client_hello() -> bytes:
    """Return the first record of a client."""
    outgoing = ssl.MemoryBIO()
    spoken = client_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        spoken.do_handshake()
    return outgoing.read()


def test_who_does_not_finish_the_tls_handshake_is_gone_within_its_deadline(files: dict[str, Any]) -> None:
    beginnings = (
        b"",
        handshake(),
        bytes(range(256)) * 300,
        client_hello()[:50],
        client_hello(),
        client_hello() * 3,
        # A hello of 16 KiB that does not come.
        b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc" + bytes(100),
    )

    async def main() -> None:
        async with Cluster(ECHO, workers=1, ws_open_timeout=1.5, **files) as cluster:
            pids = cluster.worker_pids()
            async with cluster.connect(ssl=client_context()) as ws:  # what a first connection opens stays open
                await ws.send("hello")
                assert await ws.recv() == "hello"
                before = set(open_fds(pids[0]))
                raws = [await Raw.connect(cluster.port, data=sent) for sent in beginnings * 8]
                began = time.monotonic()
                for raw in raws[::4]:
                    with contextlib.suppress(OSError):  # it has ended already
                        raw.reset()
                for answer in await asyncio.gather(*(raw.rest() for raw in raws)):
                    assert b"HTTP" not in answer
                assert time.monotonic() - began < 5
                await asyncio.gather(*(raw.close() for raw in raws))
                await cluster.wait_status(lambda status: status["workers"][0]["adopted"] == len(raws) + 1)
                async with asyncio.timeout(10):
                    while set(open_fds(pids[0])) != before:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                await ws.send("hello")
                assert await ws.recv() == "hello"
            assert cluster.worker_pids() == pids
            assert complaints(cluster) == []
            assert not [line for line in cluster.output if "client's connection" in line]

    run(main())


def test_who_ends_the_connection_in_the_middle_of_the_handshake_leaves_nothing(files: dict[str, Any]) -> None:
    async def main() -> None:
        async with Cluster(ECHO, workers=1, log_level="debug", **files) as cluster:
            pids = cluster.worker_pids()
            async with cluster.connect(ssl=client_context()):
                before = set(open_fds(pids[0]))
                for number in range(40):
                    raw = await Raw.connect(cluster.port, data=client_hello()[: number * 13])
                    if number % 2:
                        with contextlib.suppress(OSError):
                            raw.reset()
                    await raw.close()
                await cluster.wait_status(lambda status: status["workers"][0]["adopted"] == 41)
                async with asyncio.timeout(5):  # long before the handshake's deadline
                    while set(open_fds(pids[0])) != before:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
            assert cluster.worker_pids() == pids
            assert complaints(cluster) == []
            assert "\n".join(cluster.output).count("client's connection ended before it began") >= 40

    run(main())


@pytest.mark.parametrize("sent", [b"", handshake()[:-10]], ids=["nothing", "half a request"])
def test_who_is_silent_after_the_tls_handshake_is_gone_within_its_deadline(files: dict[str, Any], sent: bytes) -> None:
    async def main() -> None:
        async with Cluster(ECHO, workers=1, ws_open_timeout=0.5, **files) as cluster:
            async with raw_tls(cluster, sent) as (reader, _):
                answer = await rest(reader)
                assert answer.startswith(b"HTTP/1.1 408 ") if sent else not answer
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
            assert complaints(cluster) == []

    run(main())


def test_garbage_in_the_middle_of_a_session_ends_that_connection_only(files: dict[str, Any]) -> None:
    async def main() -> None:
        async with Cluster(WHO, workers=1, **files) as cluster:
            pids = cluster.worker_pids()
            context = client_context()
            async with cluster.connect(ssl=context) as healthy:
                ws = await cluster.connect(ssl=context)
                await ws.recv()
                os.write(ws.transport.get_extra_info("socket").fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))
                assert await close_code(ws) == 1006
                await healthy.recv()
                await healthy.send("hello")
                assert await healthy.recv() == "hello"
            assert cluster.worker_pids() == pids
            assert complaints(cluster) == []

    run(main())


def test_where_no_worker_is_left_a_client_is_reset_and_gets_no_plain_answer(files: dict[str, Any]) -> None:
    async def main() -> None:
        async with Cluster(ECHO, workers=1, **files) as cluster:
            await leave_fds(cluster.worker_pids()[0], 10)
            answers = await asyncio.gather(*(first_byte(cluster.port) for _ in range(30)))
            assert answers.count(b"reset") >= 20
            assert set(answers) == {b"reset", b"\x16"}
            assert (await cluster.status())["totals"]["rejected"] == answers.count(b"reset")

    run(main())


async def first_byte(port: int) -> bytes:
    """Begin a TLS handshake and return the first byte of the answer, without ending the connection for 2 seconds."""
    try:
        raw = await Raw.connect(port, data=client_hello())
    except ConnectionResetError:
        return b"reset"
    try:
        async with asyncio.timeout(20):
            answer = await raw.reader.read(1)
        await asyncio.sleep(2)
        return answer
    except ConnectionResetError:
        return b"reset"
    finally:
        await raw.close()


# The end of a connection


async def stop(cluster: Cluster) -> float:
    began = time.monotonic()
    assert await cluster.stop() == 0
    return time.monotonic() - began


def test_a_stop_waits_for_no_client_that_has_not_asked_for_anything(files: dict[str, Any]) -> None:
    async def main() -> None:
        async with Cluster(ECHO, workers=1, graceful_timeout=20, **files) as cluster:
            silent = await Raw.connect(cluster.port)
            half = await Raw.connect(cluster.port, data=client_hello()[:100])
            async with raw_tls(cluster) as (reader, _), cluster.connect(ssl=client_context()) as ws:
                await ws.send("hello")
                assert await ws.recv() == "hello"
                await cluster.wait_status(lambda status: status["workers"][0]["adopted"] == 4)
                assert await stop(cluster) < 5
                assert await close_code(ws) == 1001
                assert await rest(reader) == b""
            for raw in (silent, half):
                assert await raw.rest() == b""
                await raw.close()
            assert complaints(cluster) == []

    run(main())


async def send_on(ws: Any) -> None:
    """Send until the connection has ended."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            await ws.send(b"x" * 65536)
            await asyncio.sleep(0)


def test_a_client_that_is_still_sending_sees_why_its_connection_ends(files: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "ending.py").write_text(
        "async def handler(ws):\n"
        "    async for message in ws:\n"
        "        if message == 'end':\n"
        "            return\n"
        "        if message == 'fail':\n"
        "            raise RuntimeError('as told')\n"
    )
    causes: list[tuple[str | bytes, int]] = [(b"x" * 200_000, 1009), (b"\xff", 1007), ("end", 1000), ("fail", 1011)]

    async def main() -> None:
        async with Cluster("ending:handler", workers=1, app_dir=tmp_path, ws_max_size=100_000, **files) as cluster:
            for cause, code in causes:
                ws = await cluster.connect(ssl=client_context(), compression=None)
                await ws.send(cause, text=True)
                sending = asyncio.create_task(send_on(ws))
                assert await close_code(ws) == code
                await sending
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
            ws = await cluster.connect(ssl=client_context(), compression=None)
            sending = asyncio.create_task(send_on(ws))
            cluster.signal(signal.SIGTERM)
            assert await close_code(ws) == 1001
            await sending

    run(main())


def test_a_client_that_never_ends_its_side_is_gone_within_the_close_timeout(files: dict[str, Any]) -> None:
    async def main() -> None:
        async with Cluster(ECHO, workers=1, ws_close_timeout=0.5, **files) as cluster:
            pid = cluster.worker_pids()[0]
            context = client_context()
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", cluster.port, ssl=context, server_hostname="127.0.0.1"
            )
            writer.write(handshake() + b"\x88\x82" + bytes(4) + b"\x03\xe8")
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(4) == b"\x88\x02\x03\xe8"
            # From here on nothing of it is read, not even the end of TLS.
            stop_reading(writer)
            assert open_fds(pid)
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 0, timeout=5)
            writer.transport.abort()
            assert complaints(cluster) == []

    run(main())


def test_a_client_that_answers_no_ping_is_closed(files: dict[str, Any]) -> None:
    async def main() -> None:
        async with Cluster(ECHO, workers=1, ws_ping_interval=0.3, ws_ping_timeout=0.3, **files) as cluster:
            healthy = await cluster.connect(ssl=client_context())
            async with healthy, raw_tls(cluster, handshake()) as (reader, _):
                await reader.readuntil(b"\r\n\r\n")
                data = await rest(reader)
                assert data[:2] == b"\x89\x04"
                assert data[6:].startswith(b"\x88")
                assert int.from_bytes(data[8:10], "big") == 1011
                await healthy.send("hello")
                assert await healthy.recv() == "hello"

    run(main())


# What waits for a client


def test_a_member_that_does_not_read_is_closed_and_others_hear_everything(files: dict[str, Any]) -> None:
    limit = 200_000

    async def main() -> None:
        async with Cluster(ROOMS, workers=1, max_send_queue=limit, **files) as cluster:
            pid = cluster.worker_pids()[0]
            context = client_context()
            join = json.dumps({"do": "join", "room": "lobby"}).encode()
            frame = bytes((0x81, 0x80 | len(join))) + bytes(4) + join
            async with (
                cluster.connect(ssl=context, max_queue=None) as reads,
                raw_tls(cluster, handshake()) as (
                    reader,
                    writer,
                ),
            ):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(frame)
                assert (await reader.readexactly(2))[0] == 0x81
                stop_reading(writer)
                await reads.send(join.decode())
                await reads.recv()
                async with cluster.connect(ssl=context) as publisher:
                    for number in range(300):
                        await publisher.send(
                            json.dumps({"do": "publish", "room": "lobby", "text": f"{number} " + "x" * 65536})
                        )
                        await publisher.recv()
                        assert str(await reads.recv()).startswith(f"{number} ")
                status = await cluster.wait_status(lambda status: status["totals"]["slow_closed"] == 1)
                assert status["totals"]["connections"] >= 1
                await cluster.wait_status(lambda status: status["totals"]["connections"] == 1, timeout=10)
            assert cluster.worker_pids()[0] == pid
            assert complaints(cluster) == []

    run(main())
