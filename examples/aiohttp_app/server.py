"""News on aiohttp: POST /news tells everybody who listens at the WebSocket /news, on whichever worker they are."""

import json
import os
import sys
from asyncio import TaskGroup
from collections.abc import AsyncIterator
from contextlib import suppress

from aiohttp import WSCloseCode, web

import wscluster

ROOM = "news"


async def who(request: web.Request) -> web.Response:
    return web.json_response({"worker": os.getpid(), "client": request.remote})


async def tell(request: web.Request) -> web.Response:
    text = (await request.text()).strip()
    if not 0 < len(text) <= 1000:
        return web.json_response({"error": "a piece of news has 1 to 1000 characters"}, status=400)
    position = await wscluster.publish(ROOM, json.dumps({"news": text, "worker": os.getpid()}))
    return web.json_response({"position": position, "worker": os.getpid()})


async def listen(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse(heartbeat=20)
    await ws.prepare(request)
    async with wscluster.subscribe(ROOM) as messages, TaskGroup() as tasks:
        await ws.send_json({"welcome": os.getpid()})
        hearing = tasks.create_task(hear(ws, messages))
        async for _ in ws:  # until the client has gone; whoever listens has nothing to say
            pass
        hearing.cancel()
    return ws


async def hear(ws: web.WebSocketResponse, messages: AsyncIterator[wscluster.Message | wscluster.Gap]) -> None:
    with suppress(ConnectionError):
        async for message in messages:
            if isinstance(message, wscluster.Message):
                await ws.send_str(str(message.data))
        await ws.close(code=WSCloseCode.GOING_AWAY)  # the worker drains


app = web.Application()
app.add_routes([web.get("/", who), web.post("/news", tell), web.get("/news", listen)])

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]) if len(sys.argv) > 1 else 8080)
