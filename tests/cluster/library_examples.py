"""Handlers in the shapes that the documentation of `websockets` shows: none of them knows wscluster."""

import asyncio
import functools
import itertools
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.server import ServerConnection, broadcast
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK
from websockets.frames import CloseCode


async def hello(websocket: ServerConnection) -> None:
    """One question, one answer, and the end."""
    name = str(await websocket.recv())
    await websocket.send(f"Good day, {name}!")


async def echo(websocket: ServerConnection) -> None:
    async for message in websocket:
        await websocket.send(message)


# State that all clients share

USERS: set[ServerConnection] = set()
VALUE = 0


async def counter(websocket: ServerConnection) -> None:
    """A number that everybody may change and everybody sees, and how many they are."""
    global VALUE
    try:
        USERS.add(websocket)
        broadcast(USERS, json.dumps({"users": len(USERS)}))
        await websocket.send(json.dumps({"value": VALUE}))
        async for message in websocket:
            VALUE += {"up": 1, "down": -1}[json.loads(message)["action"]]
            broadcast(USERS, json.dumps({"value": VALUE}))
    finally:
        USERS.discard(websocket)
        broadcast(USERS, json.dumps({"users": len(USERS)}))


# Patterns


async def consumer(websocket: ServerConnection) -> None:
    total = 0
    async for message in websocket:
        total += int(message)
        if not total:
            await websocket.send("nothing left")


async def producer(websocket: ServerConnection) -> None:
    for number in itertools.count():
        try:
            await websocket.send(str(number))
        except ConnectionClosed:
            break
        await asyncio.sleep(0.001)


async def _answers(websocket: ServerConnection, asked: asyncio.Queue[str]) -> None:
    while True:
        await websocket.send(f"answer to {await asked.get()}")


async def _questions(websocket: ServerConnection, asked: asyncio.Queue[str]) -> None:
    async for message in websocket:
        await asked.put(str(message))


async def first_to_end(websocket: ServerConnection) -> None:
    """Receives and sends in two tasks; the end of one is the end of both."""
    asked: asyncio.Queue[str] = asyncio.Queue()
    tasks = [asyncio.create_task(work(websocket, asked)) for work in (_answers, _questions)]
    _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()


async def in_a_group(websocket: ServerConnection) -> None:
    """The same in a task group, which the end of the connection ends with an exception."""
    asked: asyncio.Queue[str] = asyncio.Queue()
    try:
        async with asyncio.TaskGroup() as group:
            answering = group.create_task(_answers(websocket, asked))
            await _questions(websocket, asked)
            answering.cancel()
    except* ConnectionClosedOK:
        pass


async def impatient(websocket: ServerConnection) -> None:
    """Asks on when nothing comes for a while."""
    while True:
        try:
            async with asyncio.timeout(0.02):
                message = await websocket.recv()
        except TimeoutError:
            await websocket.send("still there?")
        else:
            await websocket.send(message)
            if message == "yes":
                return


# Broadcasting

REGISTERED: set[ServerConnection] = set()
QUEUES: set[asyncio.Queue[str]] = set()
BY_NAME: dict[str, ServerConnection] = {}


async def _send(websocket: ServerConnection, message: str) -> None:
    try:
        await websocket.send(message)
    except ConnectionClosed:
        pass


async def naive_chat(websocket: ServerConnection) -> None:
    """Sends to one after the other."""
    REGISTERED.add(websocket)
    try:
        async for message in websocket:
            for each in REGISTERED.copy():
                await _send(each, str(message))
    finally:
        REGISTERED.remove(websocket)


async def chat_with_tasks(websocket: ServerConnection) -> None:
    """A task for each send, so that nobody waits for the slowest."""
    REGISTERED.add(websocket)
    try:
        async for message in websocket:
            sends = [asyncio.create_task(_send(each, str(message))) for each in REGISTERED]
            await asyncio.gather(*sends)
    finally:
        REGISTERED.remove(websocket)


async def chat_with_broadcast(websocket: ServerConnection) -> None:
    REGISTERED.add(websocket)
    try:
        async for message in websocket:
            broadcast(REGISTERED, message)
    finally:
        REGISTERED.remove(websocket)


async def _relay(queue: asyncio.Queue[str], websocket: ServerConnection) -> None:
    while True:
        await websocket.send(await queue.get())


async def chat_with_queues(websocket: ServerConnection) -> None:
    """A queue and a relay for each client."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    relaying = asyncio.create_task(_relay(queue, websocket))
    QUEUES.add(queue)
    try:
        async for message in websocket:
            for each in QUEUES:
                each.put_nowait(str(message))
    finally:
        QUEUES.remove(queue)
        relaying.cancel()


class Stream:
    """Publish and subscribe with a chain of futures: each message names the next one."""

    def __init__(self) -> None:
        self._waiter: asyncio.Future[tuple[str, Any]] | None = None

    def publish(self, value: str) -> None:
        waiter, self._waiter = self._next(), asyncio.get_running_loop().create_future()
        waiter.set_result((value, self._waiter))

    def _next(self) -> asyncio.Future[tuple[str, Any]]:
        if self._waiter is None:
            self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    async def subscribe(self) -> AsyncIterator[str]:
        waiter = self._next()
        while True:
            value, waiter = await waiter
            yield value

    __aiter__ = subscribe


STREAM = Stream()


async def _forward(websocket: ServerConnection) -> None:
    async for message in STREAM:
        await websocket.send(message)


async def chat_with_a_stream(websocket: ServerConnection) -> None:
    forwarding = asyncio.create_task(_forward(websocket))
    await asyncio.sleep(0)
    try:
        async for message in websocket:
            STREAM.publish(str(message))
    finally:
        forwarding.cancel()


async def direct_messages(websocket: ServerConnection) -> None:
    """Finds the connection of somebody by a name, and takes it away when that one leaves."""
    name = str(await websocket.recv())
    BY_NAME[name] = websocket
    await websocket.send("known")
    try:
        async for message in websocket:
            to, text = json.loads(message)
            await BY_NAME[to].send(json.dumps([name, text]))
    finally:
        del BY_NAME[name]


# The game of the tutorial: one starts it, one joins with a key, others watch

JOIN: dict[str, tuple[list[int], set[ServerConnection]]] = {}
WATCH: dict[str, tuple[list[int], set[ServerConnection]]] = {}


async def _play(websocket: ServerConnection, moves: list[int], connected: set[ServerConnection], player: str) -> None:
    async for message in websocket:
        column = json.loads(message)["column"]
        if not 0 <= column < 7:
            await websocket.send(json.dumps({"type": "error", "message": "There is no such column."}))
            continue
        moves.append(column)
        broadcast(connected, json.dumps({"type": "play", "player": player, "column": column}))


async def _start(websocket: ServerConnection) -> None:
    moves: list[int] = []
    connected = {websocket}
    join_key, watch_key = secrets.token_urlsafe(12), secrets.token_urlsafe(12)
    JOIN[join_key] = WATCH[watch_key] = moves, connected
    try:
        await websocket.send(json.dumps({"type": "init", "join": join_key, "watch": watch_key}))
        await _play(websocket, moves, connected, "red")
    finally:
        del JOIN[join_key]
        del WATCH[watch_key]


async def _enter(websocket: ServerConnection, games: dict[str, Any], key: str, player: str | None) -> None:
    if key not in games:
        await websocket.send(json.dumps({"type": "error", "message": "There is no such game."}))
        return
    moves, connected = games[key]
    connected.add(websocket)
    try:
        for column in moves:
            await websocket.send(json.dumps({"type": "play", "player": "red", "column": column}))
        if player is None:
            await websocket.wait_closed()
        else:
            await _play(websocket, moves, connected, player)
    finally:
        connected.remove(websocket)


async def game(websocket: ServerConnection) -> None:
    event = json.loads(await websocket.recv())
    if "join" in event:
        await _enter(websocket, JOIN, event["join"], "yellow")
    elif "watch" in event:
        await _enter(websocket, WATCH, event["watch"], None)
    else:
        await _start(websocket)


# Authentication, routing, facts


async def token_comes_first(websocket: ServerConnection) -> None:
    if await websocket.recv() != "good token":
        await websocket.close(CloseCode.INTERNAL_ERROR, "authentication failed")
        return
    await websocket.send("Hello alice!")
    await echo(websocket)


async def router(websocket: ServerConnection) -> None:
    """One function for each path."""
    assert websocket.request is not None
    match urlsplit(websocket.request.path).path:
        case "/hello":
            await hello(websocket)
        case "/echo":
            await echo(websocket)
        case _:
            await websocket.close(CloseCode.POLICY_VIOLATION, "no such path")


async def about(websocket: ServerConnection) -> None:
    """What a connection knows of itself."""
    request, response = websocket.request, websocket.response
    assert request is not None
    assert response is not None
    facts = {
        "path": request.path,
        "origin": request.headers.get("Origin"),
        "agent": request.headers["User-Agent"],
        "status": response.status_code,
        "accept": len(response.headers["Sec-WebSocket-Accept"]),
        "subprotocol": websocket.subprotocol,
        "peer": websocket.remote_address[0],
        "local": websocket.local_address[0],
        "state": websocket.state.name,
        "closed": [websocket.close_code, websocket.close_reason],
        "id": websocket.id.version,
    }
    await websocket.send(json.dumps(facts))


async def prefix(text: str, websocket: ServerConnection) -> None:
    async for message in websocket:
        await websocket.send(text + str(message))


with_argument = functools.partial(prefix, "said: ")
"""A handler that is given more than the connection."""


# Frames, pings and the end


async def in_pieces(websocket: ServerConnection) -> None:
    """Sends what it receives in fragments, each as soon as it is there."""

    async def pieces() -> AsyncIterator[str]:
        async for fragment in websocket.recv_streaming(decode=True):
            yield fragment.upper()

    while True:
        try:
            await websocket.send(pieces())
        except ConnectionClosed:
            return


async def latency(websocket: ServerConnection) -> None:
    pong = await websocket.ping()
    measured = await pong
    await websocket.send(json.dumps([measured >= 0, websocket.latency == measured]))
    await websocket.wait_closed()


async def json_commands(websocket: ServerConnection) -> None:
    """Many streams over one connection, each in a task."""
    async with asyncio.TaskGroup() as group:
        async for message in websocket:
            event = json.loads(message)

            async def work(event: Any = event) -> None:
                await asyncio.sleep(event["after"])
                await websocket.send(json.dumps({"stream": event["stream"]}))

            group.create_task(work())


async def says_goodbye(websocket: ServerConnection) -> None:
    """Sends what it has to say although the server is closing it: there is no more time for that."""
    try:
        await websocket.wait_closed()
        await websocket.send("too late")
    except ConnectionClosed as exc:
        print(f"{type(exc).__name__} {exc.sent.code if exc.sent else None}", flush=True)
        raise
    finally:
        print("cleaned up", flush=True)
