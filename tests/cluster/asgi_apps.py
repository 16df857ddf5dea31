"""ASGI apps that the cluster tests serve."""

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import wscluster

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """Speak every protocol; the path says what is done."""
    if scope["type"] == "lifespan":
        await live(scope, receive, send)
    elif scope["type"] == "http":
        await HTTP.get(scope["path"].removeprefix(scope["root_path"]), what)(scope, receive, send)
    else:
        await WEBSOCKET.get(scope["path"].removeprefix(scope["root_path"]), echo)(scope, receive, send)


async def live(scope: Message, receive: Receive, send: Send) -> None:
    """The lifespan: its state has the process id."""
    await receive()
    scope["state"]["pid"] = os.getpid()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print("lifespan is over", flush=True)
    await send({"type": "lifespan.shutdown.complete"})


# Lifespans that are none, or fail, or hang


async def without_lifespan(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        raise LookupError("only http is spoken")
    await app(scope, receive, send)


async def failing(scope: Message, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "Traceback of the app\nOSError: no database"})


async def hanging(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] != "lifespan":
        await app(scope, receive, send)
    await asyncio.sleep(3600)


async def deaf(scope: Message, receive: Receive, send: Send) -> None:
    """Start, and never answer at the end, whatever is done to it."""
    if scope["type"] != "lifespan":
        await app(scope, receive, send)
        return
    await receive()
    await send({"type": "lifespan.startup.complete"})
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            print("deaf", flush=True)


def make() -> App:
    """A factory."""
    return app


# HTTP


async def respond(send: Send, text: str, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    body = text.encode()
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


def facts(scope: Message) -> dict[str, Any]:
    names = ("type", "asgi", "method", "path", "root_path", "http_version", "scheme", "subprotocols", "extensions")
    told = {name: scope[name] for name in names if name in scope}
    told |= {"raw_path": scope["raw_path"].decode(), "query": scope["query_string"].decode()}
    return told | {"headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]}


async def what(scope: Message, receive: Receive, send: Send) -> None:
    """Say what the request is."""
    await respond(send, json.dumps(facts(scope)))


async def who(scope: Message, receive: Receive, send: Send) -> None:
    """Say what the request is, and who serves."""
    told = facts(scope) | {"client": scope["client"], "server": scope["server"], "state": scope["state"]}
    await respond(send, json.dumps(told | {"pid": os.getpid(), "slot": wscluster.this_worker.slot}))


async def body(scope: Message, receive: Receive, send: Send) -> None:
    """Read the whole body and say what it was."""
    digest, size = hashlib.sha256(), 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        digest.update(message.get("body", b""))
        if not message.get("more_body"):
            break
    await respond(send, f"{message['type']} {size} {digest.hexdigest()}")


READ = asyncio.Event()


async def body_later(scope: Message, receive: Receive, send: Send) -> None:
    """Read the body when /read-now was asked for."""
    await READ.wait()
    await body(scope, receive, send)


async def read_now(scope: Message, receive: Receive, send: Send) -> None:
    READ.set()
    await respond(send, "")


async def stream(scope: Message, receive: Receive, send: Send) -> None:
    """Respond in three parts, without saying how long it is."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Kind", b"stream")]})
    for part in (b"one", b"", b"two"):
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body"})


async def endless(scope: Message, receive: Receive, send: Send) -> None:
    """Respond a part every 10 ms, for ever."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"tick", "more_body": True})
        await asyncio.sleep(0.01)


async def status(scope: Message, receive: Receive, send: Send) -> None:
    """Respond with the status of the query and no body."""
    await send({"type": "http.response.start", "status": int(scope["query_string"]), "headers": []})
    await send({"type": "http.response.body"})


async def slow(scope: Message, receive: Receive, send: Send) -> None:
    """Say that it has begun, and respond as many seconds later as the query says."""
    print("slow begins", flush=True)
    await asyncio.sleep(float(scope["query_string"]))
    await respond(send, "late")


async def wait_disconnect(scope: Message, receive: Receive, send: Send) -> None:
    print("waiting", flush=True)
    while (message := await receive())["type"] != "http.disconnect":
        pass
    print(f"saw {message['type']}", flush=True)


async def fail(scope: Message, receive: Receive, send: Send) -> None:
    raise LookupError("failed\x1b[31m")


async def fail_late(scope: Message, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise LookupError("failed late")


async def nothing(scope: Message, receive: Receive, send: Send) -> None:
    """Return without a response."""


async def block(scope: Message, receive: Receive, send: Send) -> None:
    time.sleep(3600)  # noqa: ASYNC251


async def publish(scope: Message, receive: Receive, send: Send) -> None:
    await respond(send, await wscluster.publish("lobby", scope["query_string"].decode()))


# WebSocket


async def echo(scope: Message, receive: Receive, send: Send) -> None:
    """Accept and echo."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", **{key: message.get(key) for key in ("text", "bytes")}})
    print(f"websocket.disconnect {message['code']}", flush=True)


async def echo_who(scope: Message, receive: Receive, send: Send) -> None:
    """Accept, say who serves, and echo."""
    await receive()
    await send({"type": "websocket.accept"})
    told = {"client": scope["client"], "pid": os.getpid(), "slot": wscluster.this_worker.slot}
    await send({"type": "websocket.send", "text": json.dumps(told)})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", **{key: message.get(key) for key in ("text", "bytes")}})


async def told(scope: Message, receive: Receive, send: Send) -> None:
    """Accept with a subprotocol and a header, say what the scope is, and close."""
    await receive()
    await send({"type": "websocket.accept", "subprotocol": "chat", "headers": [(b"x-kind", b"told")]})
    await send({"type": "websocket.send", "text": json.dumps(facts(scope))})
    await send({"type": "websocket.close", "code": 4001, "reason": "enough"})


async def refuse(scope: Message, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close"})


async def deny(scope: Message, receive: Receive, send: Send) -> None:
    """Answer the upgrade with a page."""
    await receive()
    await send({"type": "websocket.http.response.start", "status": 418, "headers": [(b"x-kind", b"denied")]})
    await send({"type": "websocket.http.response.body", "body": b"no ", "more_body": True})
    await send({"type": "websocket.http.response.body", "body": b"entry"})


async def hear(scope: Message, receive: Receive, send: Send) -> None:
    """Send what the room says; close normally when it says nothing more."""
    await receive()
    await send({"type": "websocket.accept"})
    async with wscluster.subscribe("lobby") as messages:
        await send({"type": "websocket.send", "text": "hearing"})
        async for message in messages:
            assert isinstance(message, wscluster.Message)
            await send({"type": "websocket.send", "text": str(message.data)})
    await send({"type": "websocket.close", "code": 1000})


HTTP: dict[str, App] = {
    "/who": who,
    "/body": body,
    "/body-later": body_later,
    "/read-now": read_now,
    "/stream": stream,
    "/endless": endless,
    "/status": status,
    "/slow": slow,
    "/wait-disconnect": wait_disconnect,
    "/fail": fail,
    "/fail-late": fail_late,
    "/nothing": nothing,
    "/block": block,
    "/publish": publish,
}
WEBSOCKET: dict[str, App] = {
    "/echo": echo,
    "/who": echo_who,
    "/told": told,
    "/refuse": refuse,
    "/deny": deny,
    "/hear": hear,
}
