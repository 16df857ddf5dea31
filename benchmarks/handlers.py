"""The same handlers for both servers of a comparison; only how a room is reached differs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from websockets.asyncio.server import ServerConnection, broadcast
from websockets.exceptions import ConnectionClosed

if TYPE_CHECKING:
    from wscluster import Connection


async def echo(ws: Any) -> None:
    """Echo every message; the close is caught, so that no traceback is logged or counted."""
    try:
        async for message in ws:
            await ws.send(message)
    except ConnectionClosed:
        return


async def room(ws: Connection) -> None:
    """Publish every message to the room that everybody is in."""
    await ws.join("room")
    await ws.send("joined")
    async for message in ws:
        await ws.publish("room", message)


_members: set[ServerConnection] = set()


async def peer_room(ws: ServerConnection) -> None:
    """What a program without rooms does: `websockets.broadcast` to a set of its own."""
    _members.add(ws)
    try:
        await ws.send("joined")
        async for message in ws:
            broadcast(_members, message)
    finally:
        _members.discard(ws)
