"""A subscription to a real Valkey: it comes back by itself, and notices by itself that the server is gone."""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.bus.bus_support import Valkey, run, wait_until
from wscluster import subscriber
from wscluster.loops import new_event_loop
from wscluster.subscriber import Subscriber

LOOPS = pytest.mark.parametrize("loop_factory", [new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])


class Ear:
    """A subscriber and all that it told, in order."""

    def __init__(self, url: str) -> None:
        self.messages: list[tuple[bytes, bytes]] = []
        self.subscribed: list[bytes] = []
        self.run_ids: list[str | None] = []
        self.lost: list[str] = []
        self.told: list[str] = []
        self.subscriber = Subscriber(
            url, asyncio.get_running_loop(), self._message, self._subscribed, self._connected, self._lost
        )

    def _message(self, channel: bytes, data: bytes) -> None:
        self.messages.append((channel, data))
        self.told.append("message")

    def _subscribed(self, channel: bytes) -> None:
        self.subscribed.append(channel)
        self.told.append("subscribed")

    def _connected(self, run_id: str | None) -> None:
        assert not self.subscriber.connected
        self.run_ids.append(run_id)
        self.told.append("connected")

    def _lost(self, reason: str) -> None:
        assert not self.subscriber.connected
        self.lost.append(reason)
        self.told.append("lost")

    async def wait_subscribed(self, count: int) -> None:
        await wait_until(lambda: len(self.subscribed) >= count, f"{count} confirmed: {len(self.subscribed)}")
        assert len(self.subscribed) == count

    async def wait_heard(self, *data: bytes) -> None:
        await wait_until(lambda: len(self.messages) >= len(data), f"{data} are heard: {self.messages}")
        assert [one for _, one in self.messages] == list(data)


@contextlib.asynccontextmanager
async def listening(url: str, *channels: bytes) -> AsyncIterator[Ear]:
    ear = Ear(url)
    try:
        for channel in channels:
            ear.subscriber.subscribe(channel)
        await ear.wait_subscribed(len(channels))
        yield ear
    finally:
        await ear.subscriber.close()


def test_what_is_published_after_the_confirmation_is_heard(valkey: Valkey) -> None:
    async def main() -> None:
        async with listening(valkey.url, b"a", b"b") as ear:
            assert ear.told == ["connected", "subscribed", "subscribed"]
            assert ear.run_ids == [valkey.client.info("server")["run_id"]]
            assert ear.subscriber.connected
            valkey.client.publish("a", "1")
            valkey.client.publish("c", "not this")
            valkey.client.publish("b", b"\xff\x00\r\n")
            await ear.wait_heard(b"1", b"\xff\x00\r\n")
            assert [channel for channel, _ in ear.messages] == [b"a", b"b"]
            ear.subscriber.unsubscribe(b"a")
            await wait_until(lambda: valkey.client.pubsub_channels() == [b"b"], "a is left")
        await wait_until(lambda: valkey.client.pubsub_channels() == [], "the connection is closed")
        assert ear.lost == []

    run(main())


def test_of_opposite_wishes_of_one_turn_the_last_counts(valkey: Valkey) -> None:
    async def main() -> None:
        async with listening(valkey.url, b"kept", b"left") as ear:
            ear.subscriber.unsubscribe(b"kept")
            ear.subscriber.subscribe(b"kept")
            ear.subscriber.subscribe(b"never")
            ear.subscriber.unsubscribe(b"never")
            ear.subscriber.unsubscribe(b"left")
            ear.subscriber.subscribe(b"last")
            await wait_until(lambda: set(valkey.client.pubsub_channels()) == {b"kept", b"last"}, "as it was meant")
            await wait_until(lambda: ear.subscribed[-1] == b"last", "the last is confirmed")
            assert b"never" not in ear.subscribed

    run(main())


def test_many_channels_are_each_confirmed_once(valkey: Valkey) -> None:
    async def main() -> None:
        channels = [b"room %d" % number for number in range(3000)]
        async with listening(valkey.url, *channels) as ear:
            assert sorted(ear.subscribed) == sorted(channels)
            valkey.kill_clients("pubsub")
            await ear.wait_subscribed(6000)
            assert sorted(ear.subscribed[3000:]) == sorted(channels)

    run(main())


@LOOPS
def test_a_connection_that_is_cut_comes_back_with_all_its_channels(
    valkey: Valkey, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main() -> None:
        async with listening(valkey.url, b"a", b"b") as ear:
            for times in range(1, 6):
                valkey.kill_clients("pubsub")
                await ear.wait_subscribed(2 + 2 * times)
                assert len(ear.lost) == times
                assert set(ear.subscribed[-2:]) == {b"a", b"b"}
                valkey.client.publish("b", b"%d" % times)
                await wait_until(lambda: len(ear.messages) == times, "heard again")  # noqa: B023
            assert ear.told == ["connected", "subscribed", "subscribed", *
                ["lost", "connected", "subscribed", "subscribed", "message"] * 5]  # fmt: skip
            assert len(set(ear.run_ids)) == 1

    run(main(), loop_factory)


def test_what_is_wanted_while_the_server_is_gone_is_subscribed_when_it_is_back(valkey: Valkey) -> None:
    async def main() -> None:
        async with listening(valkey.url, b"a", b"b") as ear:
            valkey.kill()
            await wait_until(lambda: ear.lost, "the loss is told")
            assert not ear.subscriber.connected
            ear.subscriber.unsubscribe(b"a")
            ear.subscriber.subscribe(b"c")
            await asyncio.to_thread(valkey.start)
            await ear.wait_subscribed(4)
            assert set(ear.subscribed[2:]) == {b"b", b"c"}
            # Another process: what it remembers is another matter.
            assert len(set(ear.run_ids)) == 2
            assert set(valkey.client.pubsub_channels()) == {b"b", b"c"}

    run(main())


def test_a_server_that_comes_late_is_waited_for_and_said_to_be_missing_once(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        valkey.kill()
        ear = Ear(valkey.url)
        ear.subscriber.subscribe(b"a")
        await wait_until(lambda: "the bus cannot be reached" in caplog.text, "it is said")
        await asyncio.sleep(0.3)  # several attempts
        await asyncio.to_thread(valkey.start)
        await ear.wait_subscribed(1)
        assert ear.lost == []
        assert caplog.text.count("the bus cannot be reached") == 1
        await ear.subscriber.close()

    with caplog.at_level(logging.WARNING, "wscluster"):
        run(main())


def test_an_account_that_may_only_subscribe_is_enough(tmp_path: Path) -> None:
    async def main() -> None:
        with Valkey(tmp_path) as valkey:
            rights = [
                "on",
                ">open",
                "resetkeys",
                "allchannels",
                "nocommands",
                "+subscribe",
                "+unsubscribe",
                "+ping",
                "+auth",
            ]
            valkey.client.execute_command("ACL", "SETUSER", "ear", *rights)  # type: ignore[no-untyped-call]
            async with listening(f"unix://ear:open@{valkey.path}", b"a") as ear:
                assert ear.run_ids == [None]
                valkey.client.publish("a", "1")
                await ear.wait_heard(b"1")

    run(main())


def test_the_end_of_a_subscriber_that_never_connected_is_quick(tmp_path: Path) -> None:
    async def main() -> None:
        ear = Ear(f"unix://{tmp_path}/none.sock")
        await asyncio.sleep(0.01)
        await ear.subscriber.close()
        assert ear.told == []

    run(main())


def test_a_message_that_is_heard_late_is_whole_and_in_order(valkey: Valkey) -> None:
    async def main() -> None:
        async with listening(valkey.url, b"a") as ear:
            large = [b"%d " % number + b"x" * (1 << 20) for number in range(8)]
            for data in large:
                valkey.client.publish("a", data)
            await ear.wait_heard(*large)

    run(main())


def test_silence_cuts_nothing_and_a_server_that_hangs_is_noticed_within_five_seconds(tmp_path: Path) -> None:
    """Three servers at once, because each of these takes its time."""

    async def stay_idle(valkey: Valkey) -> None:
        """For longer than the 5 seconds after which redis-py gives up by default."""
        async with listening(valkey.url, b"a") as ear:
            await asyncio.sleep(5.5)
            assert ear.told == ["connected", "subscribed"]
            valkey.client.publish("a", "1")
            await ear.wait_heard(b"1")
            assert valkey.calls("ping") >= 3

    async def hang(valkey: Valkey, more_channels: int) -> None:
        async with listening(valkey.url, b"a") as ear:
            valkey.signal(signal.SIGSTOP)
            stopped = time.monotonic()
            for number in range(more_channels):
                ear.subscriber.subscribe(b"%0200d" % number)
            await wait_until(lambda: ear.lost, "the loss is told")
            # The server itself was silent for up to 1.5 s before.
            assert 1 < time.monotonic() - stopped < 5
            assert ear.lost[0].startswith("nothing was taken" if more_channels else "no answer to a PING")
            valkey.signal(signal.SIGCONT)
            await ear.wait_subscribed(2 + more_channels)
            valkey.client.publish("a", "1")
            await ear.wait_heard(b"1")
            assert len(ear.lost) == 1

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            servers = []
            for name in ("idle", "hangs", "full"):
                (tmp_path / name).mkdir()
                servers.append(stack.enter_context(Valkey(tmp_path / name)))
            await asyncio.gather(stay_idle(servers[0]), hang(servers[1], 0), hang(servers[2], 4000))

    run(main())


@pytest.mark.parametrize("callback", ["_message", "_subscribed", "_connected", "_lost"])
def test_a_callback_that_raises_is_logged_and_everything_is_heard_again(
    valkey: Valkey, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, callback: str
) -> None:
    """Whoever is told of the new subscription looks at what was missed; without it, the room would be deaf for ever."""

    async def main() -> None:
        raised: list[bool] = []

        def mistake(_: object) -> None:
            if len(raised) < 3:
                raised.append(True)
                raise LookupError("a mistake of ours")

        right = getattr(Ear, callback)

        def wrong(self: Ear, *told: object) -> None:
            right(self, *told)
            mistake(self)

        monkeypatch.setattr(Ear, callback, wrong)
        ear = Ear(valkey.url)
        ear.subscriber.subscribe(b"a")
        while len(raised) < 3 or b"a" not in valkey.client.pubsub_channels() or not ear.subscriber.connected:
            if callback == "_lost":
                valkey.kill_clients("pubsub")
            valkey.client.publish("a", "1")
            await asyncio.sleep(0.02)
        ear.messages.clear()
        valkey.client.publish("a", "2")
        await wait_until(lambda: (b"a", b"2") in ear.messages, "it hears again")
        await ear.subscriber.close()

    with caplog.at_level(logging.WARNING, "wscluster"):
        run(main())
    assert caplog.text.count("LookupError: a mistake of ours") == 3
    assert "could not be handled" in caplog.text


def test_a_loop_that_was_stuck_does_not_blame_the_server(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """The PONG is there, but the loop that is late looks at its timers before it reads."""
    monkeypatch.setattr(subscriber, "PING_SECONDS", 0.05)
    monkeypatch.setattr(subscriber, "PONG_SECONDS", 0.2)
    monkeypatch.setattr(subscriber, "LATE_SECONDS", 0.1)

    async def main() -> None:
        async with listening(valkey.url, b"a") as ear:
            for _ in range(5):
                valkey.signal(signal.SIGSTOP)
                await wait_until(lambda: ear.subscriber._pinged_at is not None, "a PING is on its way")
                valkey.signal(signal.SIGCONT)
                time.sleep(0.5)  # noqa: ASYNC251
                await wait_until(lambda: ear.subscriber._pinged_at is None, "the PONG was read")
            assert ear.lost == []
            # And a server that is gone is still noticed by a loop that is late again and again.
            valkey.signal(signal.SIGSTOP)
            while not ear.lost:
                time.sleep(0.35)  # noqa: ASYNC251
                await asyncio.sleep(0)
            valkey.signal(signal.SIGCONT)
            await ear.wait_subscribed(2)

    run(main())
