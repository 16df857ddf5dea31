"""A chat on python-socketio: an emit reaches the clients of all workers."""

import os
from typing import Any

import socketio

from examples.socketio_app.rooms import RoomManager

manager = RoomManager()
sio = socketio.AsyncServer(async_mode="asgi", client_manager=manager)
app = socketio.ASGIApp(sio)


@sio.event
async def connect(sid: str, environ: dict[str, Any]) -> None:
    await manager.live.wait()  # from here on it misses nothing
    await sio.emit("welcome", {"worker": os.getpid()}, to=sid)


@sio.event
async def join(sid: str, room: str) -> None:
    await sio.enter_room(sid, room)


@sio.event
async def say(sid: str, room: str, text: str) -> None:
    if room in sio.rooms(sid):
        await sio.emit("said", {"by": sid, "text": text, "worker": os.getpid()}, to=room)
