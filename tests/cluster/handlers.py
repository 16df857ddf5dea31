"""Handlers that the cluster tests serve."""

import json
import os

from wscluster import Connection


async def echo(ws: Connection) -> None:
    async for message in ws:
        await ws.send(message)


async def who(ws: Connection) -> None:
    """Say who serves, then echo."""
    await ws.send(json.dumps({"slot": ws.slot, "pid": os.getpid(), "client": ws.client, "path": ws.request.path}))
    async for message in ws:
        await ws.send(message)
