"""A chat with rooms: what one client says goes through the bus to the members of the room, on every worker."""

import json
import secrets
from contextlib import suppress
from pathlib import Path

from websockets.http11 import Request, Response

import wscluster

PAGE = Path(__file__).with_name("page.html").read_text("utf-8")
POLICY = "default-src 'nonce-%s'; connect-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'"


@wscluster.process_request
def serve_page(ws: wscluster.Connection, request: Request) -> Response | None:
    if "Upgrade" in request.headers or request.path == "/health":  # a WebSocket: go on to `chat`
        return None if "Upgrade" in request.headers else ws.respond(200, "ok\n")
    page = ws.respond(200, PAGE.replace("{nonce}", nonce := secrets.token_urlsafe()))
    del page.headers["Content-Type"]
    page.headers.update({"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": POLICY % nonce})
    return page


async def chat(ws: wscluster.Connection) -> None:
    await ws.send(event(ws, "welcome"))  # and `ws.session` will map each room that it is in to its name there
    try:
        async for message in ws:
            try:
                await obey(ws, json.loads(message))
            except (wscluster.BusUnavailable, TypeError, ValueError, RecursionError) as problem:
                await ws.send(event(ws, "error", text=str(problem), order=str(message)))
    finally:
        with suppress(wscluster.BusUnavailable):
            for room, name in ws.session.items():
                await ws.publish(room, event(ws, "left", room=room, name=name))


async def obey(ws: wscluster.Connection, order: dict[str, str]) -> None:
    match order:
        case {"join": str(room), "name": str(name)} if 0 < len(name) <= 40 and len({room, *ws.session}) <= 20:
            joined = await ws.join(room, since=order.get("since"))  # what was missed goes to the page first
            if "since" in order:
                await ws.send(event(ws, "back", room=room, recovered=joined.recovered, position=joined.position))
            ws.session[room] = name
            await ws.publish(room, event(ws, "joined", room=room, name=name))
        case {"leave": str(room)} if room in ws.session:
            await ws.leave(room)
            await ws.publish(room, event(ws, "left", room=room, name=ws.session.pop(room)))
        case {"say": str(text), "room": str(room)} if room in ws.session and 0 < len(text) <= 4000:
            await ws.publish(room, event(ws, "message", room=room, name=ws.session[room], text=text))
        case {"positions": True}:  # up to here, on this connection: where a page that comes back goes on
            await ws.send(event(ws, "positions", positions=dict(ws.positions)))
        case _:
            raise ValueError("this is no order that the chat knows")


def event(ws: wscluster.Connection, kind: str, **facts: object) -> str:
    return json.dumps({"kind": kind, "by": str(ws.id), "slot": ws.slot, **facts})
