"""examples/fastapi_chat: rooms across workers from an ASGI app, by WebSocket and by HTTP."""

import asyncio
import json
from typing import Any

from websockets.asyncio.client import ClientConnection

from tests.cluster.example_support import http_from, on_different_workers
from tests.support import run
from wscluster.testing import Cluster

APP = "examples.fastapi_chat.main:app"
SAID = 30
POSTED = 20


async def hear(ws: ClientConnection) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(await ws.recv())
    return event


async def say(ws: ClientConnection, name: str, count: int) -> None:
    for number in range(count):
        await ws.send(json.dumps({"name": name, "text": str(number)}))


def test_all_of_a_room_hear_websockets_and_http_once_and_in_one_order_on_every_worker() -> None:
    async def main() -> None:
        async with Cluster(APP, workers=2) as cluster:

            async def worker(address: str) -> int:
                async with cluster.connect("/rooms/elsewhere", source=address) as ws:
                    return int((await hear(ws))["worker"])

            addresses = await on_different_workers(worker)
            first, second = addresses
            async with (
                cluster.connect("/rooms/lobby", source=addresses[first]) as ada,
                cluster.connect("/rooms/lobby", source=addresses[second]) as bob,
                http_from("127.3.0.1", cluster.port) as http,
            ):
                assert (await hear(ada), await hear(bob)) == (
                    {"kind": "welcome", "worker": first},
                    {"kind": "welcome", "worker": second},
                )

                async def post(number: int) -> str:
                    answer = await http.post("/rooms/lobby", json={"name": "job", "text": str(number)})
                    return str(answer.raise_for_status().json()["position"])

                *positions, _, _ = await asyncio.gather(
                    *map(post, range(POSTED)), say(ada, "Ada", SAID), say(bob, "Bob", SAID)
                )
                assert len(set(positions)) == POSTED
                heard = [await hear(ada) for _ in range(2 * SAID + POSTED)]
                assert [await hear(bob) for _ in heard] == heard
                for name, slot in (("Ada", first), ("Bob", second)):
                    own = [(event["text"], event["worker"]) for event in heard if event["name"] == name]
                    assert own == [(str(number), slot) for number in range(SAID)]
                assert {event["text"] for event in heard if event["name"] == "job"} == set(map(str, range(POSTED)))

                # Nothing came twice: the next that both hear is the last word.
                await post(POSTED)
                assert (await hear(ada))["text"] == (await hear(bob))["text"] == str(POSTED)
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
        assert cluster.process.returncode == 0

    run(main())


def test_what_is_no_message_is_told_to_its_sender_alone() -> None:
    async def main() -> None:
        async with (
            Cluster(APP, workers=2) as cluster,
            cluster.connect("/rooms/lobby") as ada,
            cluster.connect("/rooms/lobby") as bob,
            http_from("127.0.0.1", cluster.port) as http,
        ):
            for ws in (ada, bob):
                assert (await hear(ws))["kind"] == "welcome"
            for bad in ("no JSON", '{"name": "Ada", "text": ""}'):
                await ada.send(bad)
                assert (await hear(ada))["kind"] == "error"
            assert (await http.post("/rooms/lobby", json={"name": "Ada"})).status_code == 422
            await say(ada, "Ada", 1)
            assert [(await hear(ws))["kind"] for ws in (ada, bob)] == ["message", "message"]

    run(main())


def test_a_stop_ends_the_chat_with_1012_and_says_nothing_bad() -> None:
    async def main() -> None:
        async with Cluster(APP, workers=2) as cluster, cluster.connect("/rooms/lobby") as ws:
            assert (await hear(ws))["kind"] == "welcome"
            assert await cluster.stop() == 0
            await ws.wait_closed()
            assert ws.close_code == 1012
        assert not [line for line in cluster.output if "Traceback" in line or " ERROR " in line]

    run(main())
