"""A python-socketio server as its documentation has it: long polling, upgrade to WebSocket, a session per client.

Engine.IO keeps the session in the memory of one process, so every request of a client has to reach that process.
"""

import os
from typing import Any

import socketio

sio = socketio.AsyncServer(async_mode="asgi")
app = socketio.ASGIApp(sio)


@sio.event
async def connect(sid: str, environ: dict[str, Any]) -> None:
    await sio.save_session(sid, {"total": 0})
    await sio.emit("welcome", {"worker": os.getpid()}, to=sid)


@sio.event
async def add(sid: str, number: int) -> int:
    """Add to the client's own total and return it."""
    async with sio.session(sid) as session:
        session["total"] += number
        return int(session["total"])
