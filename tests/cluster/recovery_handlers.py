"""A handler for clients that come back, one that hears rooms without a connection, and a check of what they heard."""

import json
from contextlib import suppress
from typing import Any

import wscluster
from wscluster import Connection


async def room(ws: Connection) -> None:
    """The first message is ``{"since": …}``; then each message is answered with the position, after what it counts."""
    how = json.loads(await ws.recv())
    gaps: list[Any] = []
    joined = await ws.join("lobby", since=how["since"], on_gap=gaps.append)
    await ws.send("!" + json.dumps({"recovered": joined.recovered, "missed": joined.missed, "at": joined.position}))
    async for _ in ws:
        # The positions are those of what was written to the client before this answer.
        await ws.send("!" + json.dumps({"at": ws.positions["lobby"], "gaps": len(gaps)}))


async def hear(ws: Connection) -> None:
    """Send what a subscription of the rooms in the query says; "next" takes one item, "all" the rest as they come."""
    how = json.loads(await ws.recv())
    try:
        async with wscluster.subscribe(*how["rooms"], **how["options"]) as messages:
            await ws.send("entered")
            with suppress(StopAsyncIteration):
                while await ws.recv() == "next":
                    await ws.send(shown(await anext(aiter(messages))))
            async for item in messages:
                await ws.send(shown(item))
            await ws.send("the end")
    except Exception as exc:
        await ws.send(f"{type(exc).__name__}: {exc}")


def shown(item: wscluster.Message | wscluster.Gap) -> str:
    if isinstance(item, wscluster.Gap):
        return json.dumps({"room": item.room, "after": item.after, "before": item.before})
    data = item.data if isinstance(item.data, str) else list(item.data)
    return json.dumps({"room": item.room, "data": data, "position": item.position})
