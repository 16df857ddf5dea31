"""Publishing from outside to a real Valkey: from a loop and from threads, and nothing is ever sent twice."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.bus.bus_support import Proxy, Valkey, run
from tests.support import ROOT, open_fds
from wscluster import BusUnavailable, Publisher, SyncPublisher, WsclusterError
from wscluster.blocking import BlockingCommands

KEY = "wscluster:{room}"
TEXT = b"\x01\x01"


async def publish_async(url: str, *messages: Any, **options: Any) -> list[str]:
    async with Publisher(url, **options) as publisher:
        return list(await asyncio.gather(*(publisher.publish("room", message) for message in messages)))


async def publish_sync(url: str, *messages: Any, **options: Any) -> list[str]:
    def publish() -> list[str]:
        with SyncPublisher(url, **options) as publisher:
            return [publisher.publish("room", message) for message in messages]

    return await asyncio.to_thread(publish)


BOTH = pytest.mark.parametrize("publish", [publish_async, publish_sync], ids=["async", "sync"])


@BOTH
def test_messages_are_logged_in_order_with_the_positions_that_were_answered(
    valkey: Valkey, publish: Callable[..., Any]
) -> None:
    async def main() -> None:
        positions = await publish(valkey.url, "text \N{SNOWMAN}", b"\x00\xff", bytearray(b"array"), "")
        assert valkey.log(KEY) == list(
            zip(
                positions,
                [TEXT + "text \N{SNOWMAN}".encode(), b"\x01\x00\x00\xff", b"\x01\x00array", TEXT],
                strict=True,
            )
        )
        assert 50_000 < valkey.client.pttl(KEY) <= 60_000

    run(main())


@BOTH
def test_what_is_no_room_and_no_message_is_refused_and_sends_nothing(
    valkey: Valkey, publish: Callable[..., Any]
) -> None:
    async def main() -> None:
        for message in (None, 3, ["x"]):
            with pytest.raises(TypeError, match="a message is str or bytes"):
                await publish(valkey.url, message)
        with pytest.raises(ValueError, match="surrogates"):
            await publish(valkey.url, "\ud800")
        with SyncPublisher(valkey.url) as publisher:
            for room in ("", "x" * 256):
                with pytest.raises(ValueError, match="1 to 255 bytes"):
                    publisher.publish(room, "x")
            with pytest.raises(TypeError, match="a room's name is a str"):
                publisher.publish(b"room", "x")  # type: ignore[arg-type]
        assert valkey.client.keys() == []

    run(main())


def test_the_prefix_is_the_one_that_is_given(valkey: Valkey) -> None:
    with SyncPublisher(valkey.url, prefix="other") as publisher:
        publisher.publish("room", "x")
    assert valkey.client.keys() == [b"other:{room}"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://:sesame@127.0.0.1", "must specify one of the following schemes"),
        ("redis://:sesame@127.0.0.1:banana", "it cannot be read"),
        ("", "must specify one of the following schemes"),
    ],
)
@pytest.mark.parametrize("kind", [Publisher, SyncPublisher])
def test_a_url_of_no_use_is_refused_at_once_without_its_password(
    kind: Callable[[str], Any], url: str, says: str
) -> None:
    with pytest.raises(ValueError, match=says) as raised:
        kind(url)
    assert "sesame" not in str(raised.value)


def test_what_is_said_about_the_log_counts(valkey: Valkey) -> None:
    with SyncPublisher(valkey.url, room_log=0, room_log_ttl=20) as publisher:
        publisher.publish("room", "x")
    assert [payload for _, payload in valkey.log(KEY)] == [b""]
    assert 15_000 < valkey.client.pttl(KEY) <= 20_000


@pytest.mark.parametrize(
    "options",
    [
        {"room_log": -1},
        {"room_log_ttl": 0},
        {"bus_timeout": 0},
        {"bus_timeout": float("nan")},
        {"room_log_ttl": float("inf")},
    ],
)
@pytest.mark.parametrize("kind", [Publisher, SyncPublisher])
def test_a_number_out_of_range_is_refused(kind: Callable[..., Any], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(options))} is a number from"):
        kind("redis://127.0.0.1", **options)


@pytest.mark.parametrize("kind", [Publisher, SyncPublisher])
def test_a_url_and_a_primary_are_not_both_given(kind: Callable[..., Any]) -> None:
    for primary in ({"control_socket": "/x"}, {"port": 0}, {"pid": 1}):
        with pytest.raises(ValueError, match="both a redis_url and a primary"):
            kind("redis://127.0.0.1", **primary)


def test_the_variable_redis_url_counts_where_no_url_is_given(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", valkey.url)
    with SyncPublisher() as publisher:
        publisher.publish("room", "x")
    assert len(valkey.log(KEY)) == 1
    monkeypatch.setenv("REDIS_URL", "http://:sesame@127.0.0.1")
    with pytest.raises(ValueError, match=r"^REDIS_URL http://:\*\*\*@127.0.0.1: ") as raised, SyncPublisher():
        pass
    assert "sesame" not in str(raised.value)


def test_a_publisher_that_is_not_open_says_so(valkey: Valkey) -> None:
    async def main() -> None:
        publisher = Publisher(valkey.url)
        for _ in range(2):
            with pytest.raises(WsclusterError, match="use it within `async with`"):
                await publisher.publish("room", "x")
            async with publisher:  # more than once
                await publisher.publish("room", "x")

    run(main())


def test_a_sync_publisher_opens_and_closes_as_it_is_needed(valkey: Valkey) -> None:
    before = open_fds()
    publisher = SyncPublisher(valkey.url)
    assert open_fds() == before
    for _ in range(3):
        publisher.publish("room", "x")
        assert len(open_fds()) == len(before) + 1
        publisher.close()
        publisher.close()
        assert open_fds() == before
    assert len(valkey.log(KEY)) == 3


# Trouble


@BOTH
def test_no_server_is_a_clear_error_within_the_timeout(tmp_path: Path, publish: Callable[..., Any]) -> None:
    async def main() -> None:
        began = time.monotonic()
        with pytest.raises(BusUnavailable, match=r"not sent within 0.3 s: .*none.sock"):
            await publish(f"unix://{tmp_path}/none.sock", "x", bus_timeout=0.3)
        assert 0.25 < time.monotonic() - began < 3

    run(main())


@BOTH
def test_a_server_that_hangs_is_told_at_the_deadline_and_nothing_is_sent_again(
    valkey: Valkey, publish: Callable[..., Any]
) -> None:
    async def main() -> None:
        await publish(valkey.url, "before")
        async with Publisher(valkey.url, bus_timeout=0.3) as publisher, contextlib.AsyncExitStack() as stack:
            sync = stack.enter_context(SyncPublisher(valkey.url, bus_timeout=0.3))
            await publisher.publish("room", "open")
            sync.publish("room", "open")
            valkey.signal(signal.SIGSTOP)
            try:
                for one in (publisher.publish("room", "a"), asyncio.to_thread(sync.publish, "room", "b")):
                    with pytest.raises(BusUnavailable, match="no answer: whether it was done is unknown"):
                        await one
            finally:
                valkey.signal(signal.SIGCONT)
            await publish(valkey.url, "after")
        payloads = [payload.removeprefix(TEXT) for _, payload in valkey.log(KEY)]
        assert sorted(payloads) == sorted([b"before", b"open", b"open", b"a", b"b", b"after"])

    run(main())


@BOTH
def test_a_publish_whose_connection_is_cut_before_the_answer_is_never_sent_again(
    valkey: Valkey, publish: Callable[..., Any]
) -> None:
    async def main() -> None:
        async with Proxy(valkey) as proxy:
            url = f"unix://{proxy.path}"
            await publish(url, "first")
            async with Publisher(url) as publisher:
                sync = SyncPublisher(url)

                async def send(room: str, text: str) -> str:
                    if publish is publish_async:
                        return await publisher.publish(room, text)
                    return await asyncio.to_thread(sync.publish, room, text)

                for number in range(30):
                    await send("room", f"answered {number}")
                    proxy.cut_next_answer = True
                    with pytest.raises(BusUnavailable, match="no answer: whether it was done is unknown"):
                        await send("room", f"cut {number}")
                sync.close()
        payloads = [payload.removeprefix(TEXT).decode() for _, payload in valkey.log(KEY)]
        expected = [f"{word} {number}" for number in range(30) for word in ("answered", "cut")]
        assert payloads == ["first", *expected]

    run(main())


def test_a_server_that_closed_the_connection_or_forgot_its_scripts_costs_no_publish(valkey: Valkey) -> None:
    with SyncPublisher(valkey.url) as publisher:
        for number in range(5):
            publisher.publish("room", f"{number}")
            valkey.kill_clients("normal")
            valkey.client.script_flush()
        publisher.publish("room", "last")
    assert [payload.removeprefix(TEXT) for _, payload in valkey.log(KEY)] == [b"0", b"1", b"2", b"3", b"4", b"last"]


@BOTH
def test_what_the_server_refuses_is_told_with_its_reason_and_the_next_message_passes(
    valkey: Valkey, publish: Callable[..., Any]
) -> None:
    async def main() -> None:
        valkey.client.set(KEY, "a string")
        with pytest.raises(BusUnavailable, match=r"the server refuses: .*WRONGTYPE"):
            await publish(valkey.url, "x")
        valkey.client.delete(KEY)
        valkey.client.config_set("maxmemory", "1")
        with pytest.raises(BusUnavailable, match=r"the server refuses: .*memory > 'maxmemory'"):
            await publish(valkey.url, "x")
        valkey.client.config_set("maxmemory", "0")
        await publish(valkey.url, "passes")
        assert [payload for _, payload in valkey.log(KEY)] == [TEXT + b"passes"]

    run(main())


# Threads, signals and forks


def test_threads_share_one_sync_publisher_and_each_gets_its_own_position(valkey: Valkey) -> None:
    with SyncPublisher(valkey.url) as publisher, ThreadPoolExecutor(8) as threads:
        messages = [f"{number}" for number in range(400)]
        positions = dict(
            zip(messages, threads.map(lambda text: publisher.publish("room", text), messages), strict=True)
        )
    # The log keeps 100 entries or a few more.
    logged = {payload.removeprefix(TEXT).decode(): position for position, payload in valkey.log(KEY)}
    assert len(set(positions.values())) == 400
    assert len(logged) >= 100
    assert logged.items() <= positions.items()


def test_a_thread_that_finds_the_connection_busy_fails_at_its_deadline(valkey: Valkey) -> None:
    commands = BlockingCommands(valkey.url, 0.5)
    commands.send("PING")
    valkey.signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(2) as threads:
            failed = [str(one.exception()) for one in [threads.submit(commands.send, "PING") for _ in range(2)]]
    finally:
        valkey.signal(signal.SIGCONT)
    assert any("no answer" in text for text in failed)
    assert commands.send("PING") in (b"PONG", "PONG")
    commands.close()


class _Alarmed(Exception):
    pass


def test_after_an_exception_out_of_a_signal_handler_nobody_gets_a_strangers_answer(valkey: Valkey) -> None:
    def alarmed(*_: object) -> None:
        raise _Alarmed

    old = signal.signal(signal.SIGALRM, alarmed)
    try:
        with SyncPublisher(valkey.url) as publisher:
            publisher.publish("room", "first")
            valkey.signal(signal.SIGSTOP)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(_Alarmed):
                publisher.publish("room", "interrupted")
            valkey.signal(signal.SIGCONT)
            position = publisher.publish("room", "next")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        valkey.signal(signal.SIGCONT)
    assert {payload: position for position, payload in valkey.log(KEY)}[TEXT + b"next"] == position


FORKING = """
import os, sys, threading, time
import wscluster

publisher = wscluster.SyncPublisher(sys.argv[1])
publisher.publish("room", "parent 0")
stop = False
def busy():
    number = 0
    while not stop:
        publisher.publish("busy", str(number))
        number += 1
threading.Thread(target=busy).start()  # which holds the lock most of the time
pids = []
for child in range(8):
    pid = os.fork()
    if pid == 0:
        for number in range(5):
            publisher.publish("room", f"child {child} {number}")
        publisher.close()
        os._exit(0)
    pids.append(pid)
for number in range(1, 6):
    publisher.publish("room", f"parent {number}")
codes = [os.waitpid(pid, 0)[1] for pid in pids]
stop = True
print(codes)
"""


def test_processes_that_are_forked_while_a_thread_publishes_each_use_their_own_connection(valkey: Valkey) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING, valkey.url],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=40, check=False,
    )  # fmt: skip
    assert done.stdout == f"{[0] * 8}\n", done.stderr
    payloads = [payload.removeprefix(TEXT).decode() for _, payload in valkey.log(KEY)]
    assert sorted(payloads) == sorted(
        [f"parent {number}" for number in range(6)] + [f"child {a} {b}" for a in range(8) for b in range(5)]
    )


@BOTH
def test_a_host_that_is_no_name_is_told_at_the_deadline(publish: Callable[..., Any]) -> None:
    async def main() -> None:
        with pytest.raises(BusUnavailable, match=r"not sent within 0.3 s: .*label"):
            await publish("redis://a..b", "x", bus_timeout=0.3)

    run(main())


@pytest.mark.parametrize("answer", [b'{"ok": true, "result": {}}\n', b'{"ok": true, "result": null}\n', b"[]\n", b""])
def test_what_answers_but_is_no_primary_is_told(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()

        def serve() -> None:
            caller, _ = sock.accept()
            with caller:
                caller.recv(100)
                caller.sendall(answer)

        with ThreadPoolExecutor(1) as threads:
            served = threads.submit(serve)
            with pytest.raises(WsclusterError, match=r"no primary of|without an answer"):
                SyncPublisher(control_socket=str(path)).publish("room", "x")
            served.result()


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """Accepts and never answers."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield f"redis://127.0.0.1:{sock.getsockname()[1]}"


@BOTH
def test_a_server_that_never_answers_keeps_nobody_beyond_the_deadline(publish: Callable[..., Any]) -> None:
    async def main() -> None:
        with silent_server() as url:
            began = time.monotonic()
            with pytest.raises(BusUnavailable, match=r"not sent within 0.3 s"):
                await publish(url, "x", bus_timeout=0.3)
            assert time.monotonic() - began < 4
        assert threading.active_count() < 20

    run(main())
