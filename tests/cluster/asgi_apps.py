"""ASGI apps that the cluster tests serve."""

import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import wscluster

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """Speak every protocol; the path says what is done."""
    if scope["type"] == "lifespan":
        await live(scope, receive, send)
    elif scope["type"] == "http":
        await HTTP.get(scope["path"].removeprefix(scope["root_path"]), who)(scope, receive, send)
    else:
        await WEBSOCKET.get(scope["path"], echo)(scope, receive, send)


async def live(scope: Message, receive: Receive, send: Send) -> None:
    """The lifespan: its state has the process id."""
    await receive()
    scope["state"]["pid"] = os.getpid()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print("lifespan is over", flush=True)
    await send({"type": "lifespan.shutdown.complete"})


async def respond(send: Send, text: str, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    body = text.encode()
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def who(scope: Message, receive: Receive, send: Send) -> None:
    """Say what the request is, and who serves."""
    told = {name: scope[name] for name in ("method", "path", "root_path", "http_version", "scheme", "client", "server")}
    told |= {"raw_path": scope["raw_path"].decode(), "query": scope["query_string"].decode()}
    told |= {"headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]}
    told |= {"pid": os.getpid(), "slot": wscluster.this_worker.slot, "state": scope["state"]}
    await respond(send, json.dumps(told))


async def echo(scope: Message, receive: Receive, send: Send) -> None:
    """Accept, say who serves, and echo."""
    await receive()
    await send({"type": "websocket.accept"})
    told = {"client": scope["client"], "pid": os.getpid(), "slot": wscluster.this_worker.slot}
    await send({"type": "websocket.send", "text": json.dumps(told)})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", **{key: message.get(key) for key in ("text", "bytes")}})
    print(f"websocket.disconnect {message['code']}", flush=True)


HTTP: dict[str, Callable[[Message, Receive, Send], Awaitable[None]]] = {"/who": who}
WEBSOCKET: dict[str, Callable[[Message, Receive, Send], Awaitable[None]]] = {"/echo": echo}
