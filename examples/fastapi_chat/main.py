"""A chat on FastAPI: each WebSocket hears a room with `wscluster.subscribe` and speaks to it with `wscluster.publish`.

The members of a room may be on any worker. An HTTP request speaks to the room as well.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, HTTPException, WebSocket, WebSocketDisconnect
from fastapi import Path as InPath
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field, ValidationError

import wscluster

app = FastAPI(title="Chat")

Room = Annotated[str, InPath(min_length=1, max_length=60)]


class Said(BaseModel):
    """What somebody says in a room."""

    name: str = Field(min_length=1, max_length=40)
    text: str = Field(min_length=1, max_length=4000)


@app.get("/", include_in_schema=False)
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("page.html"))


@app.post("/rooms/{room}")
async def post(room: Room, said: Said) -> dict[str, str]:
    """Say something in the room; answers with the message's position."""
    try:
        return {"position": await say(room, said)}
    except wscluster.BusUnavailable as problem:
        raise HTTPException(503, str(problem)) from problem


@app.websocket("/rooms/{room}")
async def chat(ws: WebSocket, room: Room) -> None:
    await ws.accept()
    async with wscluster.subscribe(room) as messages:
        await ws.send_json({"kind": "welcome", "worker": wscluster.this_worker.slot})
        async with asyncio.TaskGroup() as tasks:
            hearing = tasks.create_task(hear(ws, messages))
            async for text in ws.iter_text():
                try:
                    await say(room, Said.model_validate_json(text))
                except (ValidationError, wscluster.BusUnavailable) as problem:
                    await ws.send_json({"kind": "error", "text": str(problem)})
            hearing.cancel()


async def hear(ws: WebSocket, messages: AsyncIterator[wscluster.Message | wscluster.Gap]) -> None:
    """Send the client what the room says, until it has gone or the worker drains."""
    with suppress(WebSocketDisconnect):
        async for message in messages:
            if isinstance(message, wscluster.Gap):
                await ws.send_json({"kind": "gap"})
            else:
                await ws.send_text(str(message.data))


async def say(room: str, said: Said) -> str:
    said_by = {"kind": "message", "worker": wscluster.this_worker.slot, **said.model_dump()}
    return await wscluster.publish(room, json.dumps(said_by))
