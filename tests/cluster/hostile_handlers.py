"""What the attacked clusters serve: each path is another kind of handler."""

import asyncio
import time

from wscluster import Connection

BIG = bytes(1 << 20)


async def by_path(ws: Connection) -> None:
    kind = ws.request.path.split("/")[1]
    if kind == "room":
        await ws.join("lobby")
        await ws.send("joined")
        async for message in ws:
            await ws.publish("lobby", message)
    elif kind == "big":
        for _ in range(10):
            await ws.send(BIG)
    elif kind == "tasks":
        async for _ in ws:
            await ws.send(str(len(asyncio.all_tasks())))
    elif kind == "who":
        async for message in ws:
            await ws.send(f"{ws.request.path} {message!r}")
    elif kind == "drop":
        async for _ in ws:
            pass
    elif kind == "stall":
        async for message in ws:
            time.sleep(float(message))  # noqa: ASYNC251
    else:
        async for message in ws:
            await ws.send(message)
