"""Handlers that the cluster tests serve."""

import asyncio
import contextlib
import dataclasses
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import wscluster
from wscluster import Connection


async def echo(ws: Connection) -> None:
    async for message in ws:
        await ws.send(message)


async def who(ws: Connection) -> None:
    """Say who serves, then echo."""
    await ws.send(json.dumps({"slot": ws.slot, "pid": os.getpid(), "client": ws.client, "path": ws.request.path}))
    async for message in ws:
        await ws.send(message)


async def rooms(ws: Connection) -> None:
    """Do what the client asks for as JSON; answers begin with "!", everything else that it hears is a room's."""
    async for command in ws:
        answer: dict[str, Any]
        try:
            answer = {"is": await _do(ws, **json.loads(command))}
        except Exception as exc:
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        await ws.send("!" + json.dumps(answer))


async def _do(ws: Connection, do: str, room: str, **how: Any) -> Any:
    match do:
        case "join":
            joined = await ws.join(room, **how)
            return dataclasses.asdict(joined) if "since" in how else joined.position
        case "join many":
            await asyncio.gather(*(ws.join(f"{room} {number}") for number in range(how["count"])))
        case "join in haste":
            for number in range(how["count"]):
                # From at once to a few times what a join takes.
                name = room if "since" in how else f"{room} {number}"
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ws.join(name, since=how.get("since")), number % 100 * 2e-5)
                await ws.leave(name)
        case "join at once":
            all_joined = await asyncio.gather(*(ws.join(room, since=how["since"]) for _ in range(how["count"])))
            return [dataclasses.asdict(each) for each in all_joined]
        case "leave amid joins":
            told = []
            for turns in range(how["count"]):
                replaying = asyncio.create_task(ws.join(room, since=how["since"]))
                for _ in range(turns):
                    await asyncio.sleep(0)
                await ws.leave(room)
                told.append((dataclasses.asdict(await ws.join(room, since=how["since"])), ws.rooms == {room}))
                await replaying
                await ws.send("--")
                await ws.leave(room)
            return told
        case "join amid fragments":
            speaking = asyncio.create_task(ws.send(_fragments(ws, how["speak_in"])))
            await asyncio.sleep(0)
            joined = await ws.join(room, since=how["since"])
            await speaking
            return dataclasses.asdict(joined)
        case "leave":
            await ws.leave(room)
        case "publish":
            return await ws.publish(room, _message(**how), exclude_self=how.get("exclude_self", False))
        case "publish many":
            return [await ws.publish(room, f"{how['text']} {number}") for number in range(how["count"])]
        case "say":
            await ws.send(how["text"])
        case "say in fragments":
            await ws.send(_fragments(ws, room))
        case "who":
            return {"slot": ws.slot, "pid": os.getpid(), "client": ws.client, "remote": ws.remote_address}
        case "state":
            return {"slot": ws.slot, "rooms": sorted(ws.rooms), "positions": dict(ws.positions)}
        case _:
            raise LookupError(do)
    return None


def _message(text: str | None = None, hex: str | None = None, size: int = 0, wrong: Any = None, **_: Any) -> Any:  # noqa: A002
    if wrong is not None:
        return wrong
    if hex is not None:
        return bytes.fromhex(hex)
    return "x" * size if text is None else text


async def _fragments(ws: Connection, room: str) -> AsyncIterator[str]:
    """Say half a message, let the room say something, and only when that has come say the other half."""
    before = ws.positions[room]
    yield "one "
    async with asyncio.timeout(10), wscluster.subscribe(room) as messages:
        position = await ws.publish(room, "between")
        async for message in messages:
            if isinstance(message, wscluster.Message) and message.position == position:
                break
    # It is held until this message is whole, so it does not count yet.
    assert ws.positions[room] == before
    yield "whole"
