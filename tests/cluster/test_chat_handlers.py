"""The chat of examples/chat by its protocol: plain clients, no page."""

import asyncio
import contextlib
import http.client
import json
import re
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from tests.cluster.room_support import Valkey
from tests.support import ROOT, run
from wscluster.testing import Cluster

CHAT = "examples.chat.handlers:chat"
WAIT_SECONDS = 20.0


class Guest:
    """A client of the chat; `slot` and `by` are what the chat welcomed it with."""

    def __init__(self, ws: ClientConnection, welcome: dict[str, Any]) -> None:
        self.ws = ws
        self.by = welcome["by"]
        self.slot = welcome["slot"]

    async def order(self, **what: Any) -> None:
        await self.ws.send(json.dumps(what))

    async def hear(self) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_SECONDS):
            event: dict[str, Any] = json.loads(await self.ws.recv())
        return event

    async def join(self, name: str, room: str = "lobby") -> None:
        await self.order(join=room, name=name)
        assert await self.hear() == self.event("joined", room=room, name=name)

    async def hear_text(self, text: str) -> list[str]:
        """Hear on until somebody says ``text``; returns all that was said until then."""
        said: list[str] = []
        while text not in said:
            event = await self.hear()
            said += [event["text"]] if event["kind"] == "message" else []
        return said

    async def nothing_waits(self) -> None:
        """Nothing was on its way: the answer to an order that is none comes next."""
        await self.ws.send("{}")
        assert (await self.hear())["kind"] == "error"

    def event(self, kind: str, **facts: Any) -> dict[str, Any]:
        """What the others hear about this one."""
        return {"kind": kind, "by": self.by, "slot": self.slot, **facts}


@contextlib.asynccontextmanager
async def guest(cluster: Cluster, source: str = "127.1.0.1") -> AsyncIterator[Guest]:
    async with cluster.connect(source=source) as ws:
        welcome = json.loads(await ws.recv())
        assert welcome["kind"] == "welcome"
        yield Guest(ws, welcome)


@contextlib.asynccontextmanager
async def two_guests(cluster: Cluster) -> AsyncIterator[tuple[Guest, Guest]]:
    """One on each of the two workers."""
    async with guest(cluster) as one, contextlib.AsyncExitStack() as stack:
        for number in range(2, 100):
            other = await stack.enter_async_context(guest(cluster, f"127.1.0.{number}"))
            if other.slot != one.slot:
                yield one, other
                return
        raise AssertionError("every address is on one worker")


def get(port: int, path: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode("utf-8")
    finally:
        connection.close()


def test_guests_on_two_workers_hear_who_joins_what_is_said_and_who_leaves() -> None:
    async def main() -> None:
        async with Cluster(CHAT, workers=2) as cluster, two_guests(cluster) as (ada, bob):
            await ada.join("Ada")
            await bob.join("Bob")
            assert await ada.hear() == bob.event("joined", room="lobby", name="Bob")

            await bob.order(say="hello", room="lobby")
            said = bob.event("message", room="lobby", name="Bob", text="hello")
            assert [await bob.hear(), await ada.hear()] == [said, said]

            await bob.order(leave="lobby")
            assert await ada.hear() == bob.event("left", room="lobby", name="Bob")
            await ada.order(say="gone?", room="lobby")
            assert (await ada.hear())["text"] == "gone?"
            await bob.nothing_waits()

    run(main())


def test_what_is_said_in_one_room_stays_there_and_a_second_join_gives_another_name() -> None:
    async def main() -> None:
        async with Cluster(CHAT, workers=2) as cluster, two_guests(cluster) as (ada, bob):
            await ada.join("Ada")
            await bob.join("Bob", "games")
            await bob.order(say="chess?", room="games")
            assert (await bob.hear())["text"] == "chess?"
            await ada.nothing_waits()

            await ada.join("Ada", "games")
            assert (await bob.hear())["name"] == "Ada"
            await ada.join("Augusta", "games")
            assert (await bob.hear())["name"] == "Augusta"
            await ada.order(say="yes", room="games")
            assert await bob.hear() == ada.event("message", room="games", name="Augusta", text="yes")

    run(main())


@pytest.mark.parametrize(
    "how",
    ["closes", "is cut off", "resets", "falls silent"],
)
def test_a_client_that_goes_in_any_way_has_left_every_room(how: str) -> None:
    """Also one that says nothing: a phone out of reach is found by its missing pong."""

    async def main() -> None:
        async with (
            Cluster(CHAT, workers=2, ws_ping_interval=0.3, ws_ping_timeout=0.3, ws_close_timeout=0.3) as cluster,
            two_guests(cluster) as (ada, bob),
        ):
            await ada.join("Ada", "one")
            await ada.join("Ada", "two")
            await bob.join("Bob", "one")
            await bob.join("Bob", "two")
            transport = bob.ws.transport
            match how:
                case "closes":
                    await bob.ws.close()
                case "is cut off":
                    transport.abort()
                case "resets":
                    linger = struct.pack("ii", 1, 0)
                    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    transport.abort()
                case "falls silent":
                    assert isinstance(transport, asyncio.ReadTransport)
                    transport.pause_reading()
            heard = [await ada.hear() for _ in range(4)]
            for room in ("one", "two"):  # each room has an order of its own
                assert [event for event in heard if event["room"] == room] == [
                    bob.event("joined", room=room, name="Bob"),
                    bob.event("left", room=room, name="Bob"),
                ]
            await cluster.wait_status(lambda status: status["workers"][bob.slot]["rooms"] == 0)
            assert not any("Traceback" in line for line in cluster.output)
            transport.abort()

    run(main())


BAD: list[str | bytes] = [
    "", "nonsense", "{", "null", "[]", "7", '"join"', "1" * 5000, "[" * 100_000, "\x00", b"\xff\xfe", b"{}",
    '{"join": "lobby"}', '{"join": 7, "name": "Eve"}', '{"join": "lobby", "name": null}', '{"join": "", "name": "Eve"}',
    '{"join": "\\ud800", "name": "Eve"}', json.dumps({"join": "r" * 256, "name": "Eve"}),
    json.dumps({"join": "é" * 128, "name": "Eve"}), '{"join": "lobby", "name": ""}',
    json.dumps({"join": "lobby", "name": "n" * 41}), '{"leave": "nowhere"}', '{"leave": ["lobby"]}',
    '{"say": "hello"}', '{"say": "hello", "room": "elsewhere"}', '{"say": "", "room": "here"}',
    '{"say": {"deep": 1}, "room": "here"}', json.dumps({"say": "x" * 4001, "room": "here"}),
]  # fmt: skip


def test_a_bad_order_is_answered_by_an_error_and_nothing_else_happens() -> None:
    async def main() -> None:
        async with Cluster(CHAT, workers=2) as cluster, two_guests(cluster) as (ada, eve):
            await ada.join("Ada", "here")
            await eve.join("Eve", "here")
            assert (await ada.hear())["name"] == "Eve"
            pids = cluster.worker_pids()
            for bad in BAD:
                await eve.ws.send(bad)
                answer = await eve.hear()
                assert answer["kind"] == "error", bad
                assert answer["text"]
                assert answer["order"] == str(bad)
            # Only to the one who gave them; and she is still a member, under her name.
            await eve.order(say="sorry", room="here")
            assert await ada.hear() == eve.event("message", room="here", name="Eve", text="sorry")
            assert cluster.worker_pids() == pids
            assert not any("Traceback" in line for line in cluster.output)

    run(main())


def test_names_texts_and_rooms_are_taken_up_to_their_limits() -> None:
    async def main() -> None:
        async with Cluster(CHAT, workers=1) as cluster, guest(cluster) as ada:
            await ada.join("🎉" * 40, "r" * 255)
            await ada.order(say="🎉" * 4000, room="r" * 255)
            assert (await ada.hear())["text"] == "🎉" * 4000
            for number in range(19):
                await ada.join("Ada", f"room {number}")
            await ada.order(join="one too many", name="Ada")
            assert (await ada.hear())["kind"] == "error"
            # A room that one is in already is no room more, and a room that was left makes place.
            await ada.join("Augusta", "room 0")
            await ada.order(leave="room 0")
            await ada.join("Ada", "one too many")

    run(main())


def test_a_message_beyond_the_servers_limit_closes_that_client_alone() -> None:
    async def main() -> None:
        async with Cluster(CHAT, workers=2, ws_max_size=65536) as cluster, two_guests(cluster) as (ada, eve):
            await ada.join("Ada")
            await eve.join("Eve")
            await eve.ws.send("x" * 65537)
            async with asyncio.timeout(WAIT_SECONDS):
                await eve.ws.wait_closed()
            assert eve.ws.close_code == 1009
            assert [(await ada.hear())["kind"] for _ in range(2)] == ["joined", "left"]

    run(main())


def test_the_page_its_health_and_the_websocket_are_on_one_port() -> None:
    async def main() -> None:
        async with Cluster(CHAT, workers=2) as cluster:
            status, _, body = await asyncio.to_thread(get, cluster.port, "/health")
            assert (status, body) == (200, "ok\n")
            pages = [await asyncio.to_thread(get, cluster.port, "/") for _ in range(2)]
            nonces = set()
            for status, headers, body in pages:
                assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
                policy = headers["Content-Security-Policy"]
                (nonce,) = re.findall(r"default-src 'nonce-([\w-]{20,})'", policy)
                assert "unsafe" not in policy
                # Every style and script has it; nothing is loaded from elsewhere.
                assert set(re.findall(r"<(?:script|style)[^>]*>", body)) == {
                    f'<script nonce="{nonce}">',
                    f'<style nonce="{nonce}">',
                }
                assert not re.search(r"""(?:src|href)=["'](?!data:)|url\(|@import|\bon\w+=""", body)
                assert "{nonce}" not in body
                nonces.add(nonce)
            assert len(nonces) == 2
            async with guest(cluster) as ada:
                await ada.join("Ada")

    run(main())


def test_while_the_bus_is_away_orders_are_answered_by_an_error_and_nobody_is_disconnected(tmp_path: Path) -> None:
    async def main() -> None:
        with Valkey(tmp_path) as valkey:
            async with (
                Cluster(CHAT, workers=1, redis_url=valkey.url, bus_timeout=1) as cluster,
                guest(cluster) as ada,
                guest(cluster) as bob,
            ):
                await ada.join("Ada")
                await ada.join("Ada", "attic")
                await bob.join("Bob", "attic")
                assert (await ada.hear())["name"] == "Bob"
                valkey.kill()
                for order in (
                    {"join": "cellar", "name": "Ada"},
                    {"say": "hello?", "room": "lobby"},
                    {"leave": "attic"},
                ):
                    await ada.order(**order)
                    answer = await ada.hear()
                    assert (answer["kind"], json.loads(answer["order"])) == ("error", order)
                valkey.start()
                # Whether what was refused arrives late is not known, so it is not asked here.
                while answer["kind"] != "joined":
                    await ada.order(join="cellar", name="Ada")
                    answer = await ada.hear()
                # She left although nobody could be told.
                await bob.order(say="alone", room="attic")
                await bob.hear_text("alone")
                await ada.order(say="hello!", room="lobby")
                assert "alone" not in await ada.hear_text("hello!")

    run(main())


def test_a_guest_that_comes_back_with_its_position_gets_what_it_missed_before_it_is_back() -> None:
    async def main() -> None:
        async with Cluster(CHAT, workers=2) as cluster, two_guests(cluster) as (ada, bob):
            await ada.join("Ada")
            await bob.join("Bob")
            await ada.hear()
            await ada.order(positions=True)
            told = await ada.hear()
            assert told == ada.event("positions", positions=told["positions"])
            assert list(told["positions"]) == ["lobby"]
            await ada.ws.close()
            assert (await bob.hear())["kind"] == "left"
            for text in ("one", "two"):
                await bob.order(say=text, room="lobby")
                await bob.hear_text(text)
            async with guest(cluster) as again:
                await again.order(join="lobby", name="Ada", since=told["positions"]["lobby"])
                events = [await again.hear() for _ in range(5)]
                assert [event["kind"] for event in events] == ["left", "message", "message", "back", "joined"]
                back = events[3]
                assert back == again.event("back", room="lobby", recovered=True, position=back["position"])
                await again.order(leave="lobby")
                for wrong in ("nonsense", 7):
                    await again.order(join="lobby", name="Ada", since=wrong)
                    assert (await again.hear())["kind"] == "error"

    run(main())


def test_the_handlers_stay_short() -> None:
    assert len((ROOT / "examples/chat/handlers.py").read_text().splitlines()) <= 60
