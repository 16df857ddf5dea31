"""Handlers with a task in the background that runs as long as the worker."""

import asyncio
import datetime
from collections.abc import AsyncIterator
from typing import Any

from websockets.asyncio.server import ServerConnection, broadcast

import wscluster

LISTENERS: set[ServerConnection] = set()


async def show_time(websocket: ServerConnection) -> None:
    """Each client has the time sent by its own handler."""
    while True:
        await websocket.send(datetime.datetime.now(datetime.UTC).isoformat())
        await asyncio.sleep(0.01)


async def listen(websocket: ServerConnection) -> None:
    """All clients have the same time sent by one task."""
    LISTENERS.add(websocket)
    try:
        await websocket.wait_closed()
    finally:
        LISTENERS.remove(websocket)


async def _tick() -> None:
    while True:
        await asyncio.sleep(0.01)
        broadcast(LISTENERS, datetime.datetime.now(datetime.UTC).isoformat())


@wscluster.lifespan
async def ticking() -> AsyncIterator[dict[str, Any]]:
    """What the library's program does in `main`, around its server, stands here around the worker."""
    task = asyncio.create_task(_tick())
    yield {}
    task.cancel()
