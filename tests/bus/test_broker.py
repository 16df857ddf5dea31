"""Commands to a real Valkey: pipelines, positions, deadlines, and nothing is ever sent twice."""

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis
from redis._parsers.hiredis import _AsyncHiredisParser

from tests.bus.bus_support import Proxy, Valkey, run, wait_until
from wscluster import unsent
from wscluster.broker import end_connection, make_connection, open_blocking, open_connection, probe
from wscluster.commands import Commands
from wscluster.envelope import MAX_LOGGED_BYTES, publish_arguments
from wscluster.errors import BusUnavailable, StartError

KEY = b"t:{room}"


@contextlib.asynccontextmanager
async def opened(url: str, timeout: float = 10) -> AsyncIterator[Commands]:
    commands = Commands(url, timeout, asyncio.get_running_loop())
    try:
        yield commands
    finally:
        await commands.close()


def publish(commands: Commands, payload: bytes, log: int = 1000, ttl: float = 60) -> asyncio.Future[bytes]:
    return commands.send(*publish_arguments(KEY, payload, log, ttl))


async def published(commands: Commands, *payloads: bytes, log: int = 1000, ttl: float = 60) -> list[tuple[int, int]]:
    """Publish in one turn; return the epoch and count of each."""
    answers = await asyncio.gather(*(publish(commands, payload, log, ttl) for payload in payloads))
    return [(int(epoch), int(seq)) for epoch, _, seq in (answer.decode().partition("-") for answer in answers)]


def test_publishes_of_one_turn_go_in_one_pipeline(valkey: Valkey) -> None:
    async def main() -> None:
        async with opened(valkey.url) as commands:
            await published(commands, b"first")
            before = valkey.reads()
            await published(commands, *(b"%d" % number for number in range(50)))
            # One read for all of them, and one for this question.
            assert valkey.reads() - before == 2
        assert [payload for _, payload in valkey.log(KEY)] == [b"first", *(b"%d" % number for number in range(50))]

    run(main())


def test_what_is_given_while_a_pipeline_is_under_way_goes_in_the_next(valkey: Valkey) -> None:
    async def main() -> None:
        async with opened(valkey.url) as commands:
            await published(commands, b"first")
            valkey.signal(signal.SIGSTOP)
            under_way = publish(commands, b"under way")
            for _ in range(5):
                await asyncio.sleep(0)
            later = [publish(commands, b"%d" % number) for number in range(30)]
            await asyncio.sleep(0.02)
            valkey.signal(signal.SIGCONT)
            await under_way
            before = valkey.reads()
            await asyncio.gather(*later)
            assert valkey.reads() - before <= 2
        assert [payload for _, payload in valkey.log(KEY)][1:] == [
            b"under way",
            *(b"%d" % number for number in range(30)),
        ]

    run(main())


def test_positions_count_from_one_without_holes_and_are_the_ids_of_the_log(valkey: Valkey) -> None:
    async def main() -> None:
        async with opened(valkey.url) as one, opened(valkey.url) as other:
            before = time.time() * 1000
            positions = await published(one, b"a", b"b", b"c")
            positions += await published(other, b"d")
            positions += await published(one, b"e")
        assert [seq for _, seq in positions] == [1, 2, 3, 4, 5]
        (epoch,) = {epoch for epoch, _ in positions}
        assert before - 1000 <= epoch <= time.time() * 1000 + 1000
        assert valkey.log(KEY) == [(f"{epoch}-{n}", p) for n, p in enumerate([b"a", b"b", b"c", b"d", b"e"], 1)]

    run(main())


def test_a_script_that_the_server_forgot_is_loaded_and_each_message_is_sent_once(valkey: Valkey) -> None:
    async def main() -> None:
        with valkey.hear(KEY) as heard:
            async with opened(valkey.url) as commands:
                for round_number in range(3):
                    valkey.client.script_flush()
                    loads = valkey.calls("script|load")
                    positions = await published(commands, b"a", b"b", b"c")
                    assert [seq for _, seq in positions] == [round_number * 3 + at for at in (1, 2, 3)]
                    assert valkey.calls("script|load") == loads + 1
            assert [payload for _, payload in valkey.log(KEY)] == [b"a", b"b", b"c"] * 3
            for number in range(9):
                message = heard.get_message(timeout=5)
                assert message is not None
                position, _, payload = message["data"].partition(b" ")
                assert (position.decode(), payload) == valkey.log(KEY)[number]
            assert heard.get_message() is None

    run(main())


def test_the_log_is_bounded_and_lives_as_long_as_it_is_told(valkey: Valkey) -> None:
    async def main() -> None:
        async with opened(valkey.url) as commands:
            (*_, (epoch, last)) = await published(commands, *(b"%d" % number for number in range(700)), log=10, ttl=30)
            assert last == 700
            # The server trims whole nodes, of 100 entries by default.
            assert 10 <= valkey.client.xlen(KEY) <= 110
            assert 25_000 < valkey.client.pttl(KEY) <= 30_000
            await published(commands, b"x", ttl=90)
            assert valkey.client.pttl(KEY) > 80_000
            await published(commands, b"y", ttl=0.02)
            await wait_until(lambda: not valkey.client.exists(KEY), "the log ends")
            ((new_epoch, seq),) = await published(commands, b"z")
            assert seq == 1
            assert new_epoch > epoch

    run(main())


@pytest.mark.parametrize(("size", "log"), [(MAX_LOGGED_BYTES + 1, 100), (1 << 20, 100), (5, 0), (0, 0)])
def test_a_message_that_is_not_kept_has_its_position_and_is_heard_whole(valkey: Valkey, size: int, log: int) -> None:
    async def main() -> None:
        with valkey.hear(KEY) as heard:
            async with opened(valkey.url) as commands:
                positions = await published(commands, b"x" * size, b"y" * size, log=log)
                assert [seq for _, seq in positions] == [1, 2]
            assert [payload for _, payload in valkey.log(KEY)] == [b"", b""]
            for letter in (b"x", b"y"):
                message = heard.get_message(timeout=5)
                assert message is not None
                assert message["data"].partition(b" ")[2] == letter * size

    run(main())


def test_the_largest_message_that_is_kept_is_in_the_log(valkey: Valkey) -> None:
    async def main() -> None:
        async with opened(valkey.url) as commands:
            await published(commands, b"x" * MAX_LOGGED_BYTES)
        ((_, payload),) = valkey.log(KEY)
        assert payload == b"x" * MAX_LOGGED_BYTES

    run(main())


def test_without_a_log_the_entries_do_not_pile_up(valkey: Valkey) -> None:
    async def main() -> None:
        async with opened(valkey.url) as commands:
            (*_, (_, last)) = await published(commands, *[b"x"] * 500, log=0)
            assert last == 500
        assert valkey.client.xlen(KEY) <= 101

    run(main())


def test_a_publish_whose_answer_is_lost_is_not_sent_again(valkey: Valkey) -> None:
    async def main() -> None:
        async with Proxy(valkey) as proxy, opened(f"unix://{proxy.path}") as commands:
            await published(commands, b"before")
            proxy.cut_next_answer = True
            lost = [publish(commands, b"a"), publish(commands, b"b")]
            told = await asyncio.gather(*lost, return_exceptions=True)
            assert [type(answer) for answer in told] == [BusUnavailable] * 2
            assert all("whether it was done is unknown" in str(answer) for answer in told)
            assert (await published(commands, b"after"))[0][1] == 4
            assert proxy.connections == 2
        assert [payload for _, payload in valkey.log(KEY)] == [b"before", b"a", b"b", b"after"]

    run(main())


def test_whatever_is_cut_in_the_middle_nothing_is_sent_twice_and_what_was_answered_is_true(valkey: Valkey) -> None:
    async def main() -> None:
        answered: dict[bytes, str] = {}
        failed: set[bytes] = set()

        async def publish_one(number: int) -> None:
            payload = b"%d" % number
            try:
                answered[payload] = (await publish(commands, payload, log=10_000)).decode()
            except BusUnavailable:
                failed.add(payload)

        async with opened(valkey.url) as commands:
            for turn in range(20):
                await publish_one(turn)
                # Written while the server is stopped, the publishes and the end of their connection are found together.
                valkey.signal(signal.SIGSTOP)
                under_way = [asyncio.create_task(publish_one(1000 + turn * 20 + number)) for number in range(20)]
                await asyncio.sleep(0.002)
                killing = asyncio.create_task(asyncio.to_thread(valkey.kill_clients, "normal"))
                await asyncio.sleep(0.003)
                valkey.signal(signal.SIGCONT)
                await asyncio.gather(killing, *under_way)
        log = valkey.log(KEY)
        payloads = [payload for _, payload in log]
        assert len(payloads) == len(set(payloads))
        assert {payload: position for position, payload in log if payload in answered} == answered
        assert set(payloads) <= set(answered) | failed
        assert len(answered) + len(failed) == 20 * 21
        assert failed & set(payloads), "some were done and their answer was lost"

    run(main())


def test_a_connection_that_the_server_closed_while_it_was_idle_costs_no_publish(valkey: Valkey) -> None:
    async def main() -> None:
        async with opened(valkey.url) as commands:
            for number in range(3):
                await published(commands, b"%d" % number)
                valkey.kill_clients("normal")
                await wait_until(lambda: len(valkey.client.client_list()) == 1, "the connection is closed")
                await asyncio.sleep(0.02)
            await published(commands, b"last")
        assert len(valkey.log(KEY)) == 4

    run(main())


def test_a_server_that_hangs_is_told_at_the_deadline_and_serves_again_afterwards(valkey: Valkey) -> None:
    async def main() -> None:
        async with opened(valkey.url, timeout=0.4) as commands:
            await published(commands, b"before")
            valkey.signal(signal.SIGSTOP)
            begun = time.monotonic()
            sent = publish(commands, b"sent")
            await asyncio.sleep(0.1)
            waiting = publish(commands, b"waiting")
            with pytest.raises(
                BusUnavailable, match="the bus is unavailable: no answer: whether it was done is unknown"
            ):
                await sent
            assert 0.35 < time.monotonic() - begun < 2
            with pytest.raises(BusUnavailable, match=r"not sent within 0.4 s: no answer"):
                await waiting
            assert 0.45 < time.monotonic() - begun < 2
            valkey.signal(signal.SIGCONT)
            await wait_until(lambda: len(valkey.log(KEY)) == 2, "what was sent is done")

        async with opened(valkey.url) as commands:
            await published(commands, b"after")
        assert [payload for _, payload in valkey.log(KEY)] == [b"before", b"sent", b"after"]

    run(main())


def test_a_server_that_comes_within_the_deadline_is_waited_for(valkey: Valkey) -> None:
    async def main() -> None:
        valkey.kill()
        async with opened(valkey.url) as commands:
            early = publish(commands, b"early")
            await asyncio.sleep(0.1)
            assert not early.done()
            await asyncio.to_thread(valkey.start)
            assert (await early).endswith(b"-1")

    run(main())


def test_a_server_that_is_not_there_is_named_as_the_reason(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(f"unix://{tmp_path}/none.sock", timeout=0.2) as commands:
            with pytest.raises(BusUnavailable, match=r"not sent within 0\.2 s: Error 2 .*none\.sock"):
                await publish(commands, b"x")

    run(main())


def test_what_waits_is_bounded_and_what_is_too_much_fails_at_once(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsent, "MAX_WAITING_COMMANDS", 100)
    monkeypatch.setattr(unsent, "MAX_WAITING_BYTES", 10_000)

    async def main() -> None:
        async with opened(valkey.url) as commands:
            for size, fits in ((1, 100), (1000, 9)):
                sent = [publish(commands, b"x" * size) for _ in range(120)]
                assert [answer.done() for answer in sent] == [False] * fits + [True] * (120 - fits)
                for answer in sent[fits:]:
                    with pytest.raises(BusUnavailable, match=f"not sent, because {fits} commands wait already"):
                        await answer
                await asyncio.gather(*sent[:fits])
        assert len(valkey.log(KEY)) == 109

    run(main())


def test_a_caller_that_gave_up_before_it_was_sent_sends_nothing(valkey: Valkey) -> None:
    async def main() -> None:
        async with opened(valkey.url) as commands:
            answers = [publish(commands, b"%d" % number) for number in range(4)]
            answers[1].cancel()
            await asyncio.gather(*answers, return_exceptions=True)
        assert [payload for _, payload in valkey.log(KEY)] == [b"0", b"2", b"3"]

    run(main())


def test_a_command_that_the_server_refuses_fails_alone(valkey: Valkey) -> None:
    async def main() -> None:
        valkey.client.set("string", "x")
        async with opened(valkey.url) as commands:
            before = publish(commands, b"before")
            refused = commands.send(*publish_arguments(b"string", b"x", 10, 60))
            after = publish(commands, b"after")
            with pytest.raises(BusUnavailable, match=r"the server refuses: .*WRONGTYPE"):
                await refused
            assert [answer.rpartition(b"-")[2] for answer in (await before, await after)] == [b"1", b"2"]

    run(main())


def test_after_the_end_whatever_waits_or_comes_fails_at_once(valkey: Valkey) -> None:
    async def main() -> None:
        commands = Commands(valkey.url, 10, asyncio.get_running_loop())
        waiting = publish(commands, b"waiting")
        await commands.close()
        for answer in (waiting, publish(commands, b"late")):
            assert answer.done()
            with pytest.raises(BusUnavailable, match="not sent, because this side is closing"):
                await answer
        assert valkey.log(KEY) == []

    run(main())


def test_answers_are_parsed_in_c_and_a_url_decides_neither_retries_nor_timeouts(valkey: Valkey) -> None:
    async def main() -> None:
        assert redis.utils.HIREDIS_AVAILABLE
        url = f"{valkey.url}?socket_timeout=0.1&retry_on_timeout=true&health_check_interval=1&decode_responses=true"
        connection = make_connection(url)
        await connection.connect()  # type: ignore[no-untyped-call]
        try:
            assert type(connection._parser) is _AsyncHiredisParser
            assert connection.socket_timeout is None
            assert connection.health_check_interval == 0
            assert connection.retry._retries == 0
            assert connection.encoder.decode_responses is False
        finally:
            await connection.disconnect()

    run(main())


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("unix://{folder}/none.sock?password=sesame", "No such file"),
        ("redis://:sesame@127.0.0.1:{closed}", "refused"),
        ("unix://:sesame@{valkey}", "the server refuses the login"),
        ("unix://{valkey}", "the server refuses the login"),
        ("unix://someone:open@{valkey}", "the server refuses the login"),
        ("unix://:sesame@{silent}", "no answer within 0.3 s"),
        ("redis://:sesame@127.0.0.1:{garbage}", "--redis-url redis://:***@127.0.0.1"),
        ("http://:sesame@127.0.0.1", "schemes"),
        ("sesame", "schemes"),
        ("redis://:sesame@127.0.0.1:banana", "it cannot be read"),
        ("redis://:ses/ame@127.0.0.1", "it cannot be read"),
        ("redis://:sesame@127.0.0.1?db=banana", "'db'"),
        ("redis://:sesame@127.0.0.1?nonsense=1", "nonsense"),
        ("redis://:sesame@" + "x" * 70, "--redis-url redis://:***@xxx"),
    ],
)
def test_a_url_of_no_use_is_one_line_without_the_password(tmp_path: Path, url: str, says: str) -> None:
    async def main() -> None:
        async def talk_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(talk_nonsense, "127.0.0.1", 0) as garbage:
            text = url.format(
                folder=tmp_path, valkey=valkey.path, silent=tmp_path / "silent.sock",
                closed=closed.getsockname()[1], garbage=garbage.sockets[0].getsockname()[1],
            )  # fmt: skip
            with pytest.raises(StartError) as failed:
                await probe(text, 0.3 if "{silent}" in url else 10)
        line = str(failed.value)
        assert line.startswith("--redis-url ")
        assert says in line
        assert line.isprintable()
        if url != "sesame":
            assert not any(part in line for part in ("sesame", "ses/", "/ame"))
        assert failed.value.exit_code == 3

    with (
        Valkey(tmp_path, "--requirepass", "open") as valkey,
        socket.socket() as closed,
        socket.socket(socket.AF_UNIX) as silent,
    ):
        closed.bind(("127.0.0.1", 0))
        silent.bind(str(tmp_path / "silent.sock"))
        silent.listen()
        run(main())


def test_a_url_that_serves_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Valkey(tmp_path, "--requirepass", "o/p@e:n") as valkey, caplog.at_level(logging.DEBUG, "wscluster"):
        run(probe(f"unix://:o%2Fp%40e%3An@{valkey.path}", 10))
        run(probe(f"unix://{valkey.path}?password=o%2Fp%40e%3An", 10))
    assert caplog.text == ""


def test_every_connection_over_tcp_ends_when_nothing_is_acknowledged(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]

        async def main() -> None:
            # A URL that says otherwise is not asked.
            url = f"redis://127.0.0.1:{port}?socket_keepalive=no&socket_timeout=9"
            connection, transport = await open_connection(url)
            blocking = await asyncio.to_thread(open_blocking, url, 2.5)
            assert blocking._sock is not None
            for sock in (transport.get_extra_info("socket"), blocking._sock):
                timeout = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                assert 0 < timeout < 5000, "noticed within 5 seconds"
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            await end_connection(connection, transport)
            blocking.disconnect()

        with Valkey(tmp_path, "--bind", "127.0.0.1", "--port", str(port)):
            run(main())


def test_a_fault_of_ours_in_a_pipeline_fails_its_commands_and_ends_no_later_ones(
    valkey: Valkey, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with opened(valkey.url) as commands:
            await published(commands, b"before")

            def mistake(*_: object) -> None:
                raise LookupError("a mistake of ours")

            with monkeypatch.context() as broken:
                broken.setattr("redis.asyncio.connection.AbstractConnection.pack_commands", mistake)
                with pytest.raises(BusUnavailable, match="no answer"):
                    await publish(commands, b"never sent")
            await published(commands, b"after")
        assert [payload for _, payload in valkey.log(KEY)] == [b"before", b"after"]
        assert "LookupError: a mistake of ours" in caplog.text

    run(main())


def test_a_server_that_refuses_the_script_says_so_and_the_connection_stays(valkey: Valkey) -> None:
    async def main() -> None:
        rights = ["on", ">open", "allkeys", "allchannels", "+@all", "-script"]
        valkey.client.execute_command("ACL", "SETUSER", "poor", *rights)  # type: ignore[no-untyped-call]
        async with opened(f"unix://poor:open@{valkey.path}") as commands:
            for _ in range(2):
                with pytest.raises(BusUnavailable, match=r"the server refuses the script: .*script"):
                    await publish(commands, b"x")
            assert await commands.send("PING") in (b"PONG", True)

    run(main())
