"""What the nemesis troubles: publishers, members that come back with their last position, and listeners."""

import json
from urllib.parse import parse_qs, urlsplit

import wscluster
from wscluster import Connection, Gap


async def serve(ws: Connection) -> None:
    """`/publish`, `/member?room=R&since=POSITION` or `/listen?room=R`."""
    url = urlsplit(ws.request.path)
    asked = {name: values[0] for name, values in parse_qs(url.query).items()}
    match url.path:
        case "/publish":
            await publish(ws)
        case "/member":
            await member(ws, asked["room"], asked.get("since"))
        case "/listen":
            await listen(ws, asked["room"])


async def publish(ws: Connection) -> None:
    async for order in ws:
        room, text = order.split(" ", 1)
        try:
            await ws.send(json.dumps({"position": await ws.publish(room, text)}))
        except wscluster.BusUnavailable as exc:
            await ws.send(json.dumps({"error": str(exc)}))


async def member(ws: Connection, room: str, since: str | None) -> None:
    async def lost(gap: Gap) -> None:
        await ws.send(json.dumps({"after": gap.after, "before": gap.before}))

    joined = await ws.join(room, since=since, on_gap=lost)
    await ws.send(json.dumps({"began": joined.position, "recovered": joined.recovered}))
    async for _ in ws:
        await ws.send(json.dumps({"mark": ws.positions[room]}))


async def listen(ws: Connection, room: str) -> None:
    async with wscluster.subscribe(room) as messages:
        await ws.send(json.dumps({"listening": room}))
        async for item in messages:
            if isinstance(item, Gap):
                await ws.send(json.dumps({"after": item.after, "before": item.before}))
            else:
                await ws.send(json.dumps({"heard": item.data, "position": item.position}))
