"""``python -m benchmarks.stuck``: what becomes of a worker whose loop is blocked, and of the clients of the others.

40 clients are connected and send a message ten times a second each; one of them makes its worker block. The deadline is
3 seconds for both servers (``--timeout-worker-healthcheck``). Counted are the seconds until the clients of the blocked
worker are let go of, how long it takes until each is served again, and the slowest answer of every other worker.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, field

from benchmarks.deployed import APP, HANDLER, Deployed, uvicorn, wscluster
from benchmarks.load import REQUEST, masked_frame

CLIENTS = 40
PAUSE_SECONDS = 0.1

BLOCKING_HANDLER = HANDLER.replace(
    "    async for message in ws:\n",
    '    import json, time\n    await ws.send(json.dumps({{"pid": os.getpid()}}))\n    async for message in ws:\n'
    '        if message == "block":\n            time.sleep(60)\n',
)
BLOCKING_APP = APP.replace(
    '    while (event := await receive())["type"] == "websocket.receive":\n',
    "    import json, time\n"
    '    await send({{"type": "websocket.send", "text": json.dumps({{"pid": os.getpid()}})}})\n'
    '    while (event := await receive())["type"] == "websocket.receive":\n'
    '        if event["text"] == "block":\n            time.sleep(60)\n',
)


@dataclass
class Client:
    """One client, and what it has felt since the block."""

    pid: int = 0
    slowest: float = 0.0
    lost_at: float | None = None
    back_at: float | None = None
    waiting_since: float | None = field(default=None)


async def _connect(port: int, source: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    writer.write(REQUEST)
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer, json.loads(await _message(reader))["pid"]


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(2)
    return await reader.readexactly(head[1])


async def _live(port: int, number: int, client: Client, ready: asyncio.Event, block: asyncio.Event) -> None:
    source = f"127.4.0.{number + 1}"
    await asyncio.sleep(number * 0.03)  # uvicorn gives those who come together to one worker
    reader, writer, client.pid = await _connect(port, source)
    ready.set()
    try:
        while True:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    if number == 0 and block.is_set() and client.lost_at is None:
                        writer.write(masked_frame(b"block"))
                    else:
                        writer.write(masked_frame(b"hello"))
                    client.waiting_since = time.monotonic()
                    await _message(reader)
                    if block.is_set() and client.lost_at is None:
                        client.slowest = max(client.slowest, time.monotonic() - client.waiting_since)
                    client.waiting_since = None
                    await asyncio.sleep(PAUSE_SECONDS)
            writer.transport.abort()
            client.lost_at = client.lost_at or time.monotonic()
            reader, writer, _ = await _connect(port, source)
            client.back_at = client.back_at or time.monotonic()
    finally:
        writer.transport.abort()


async def watch(name: str, service: Deployed, seconds: float) -> None:
    """Block one worker, watch for ``seconds``, and print what the clients have felt."""
    clients = [Client() for _ in range(CLIENTS)]
    ready = [asyncio.Event() for _ in clients]
    block = asyncio.Event()
    tasks = [
        asyncio.create_task(_live(service.port, number, client, ready[number], block))
        for number, client in enumerate(clients)
    ]
    await asyncio.gather(*(one.wait() for one in ready))
    await asyncio.sleep(1)
    began = time.monotonic()
    block.set()
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    stuck = [client for client in clients if client.pid == clients[0].pid]
    others = [client for client in clients if client.pid != clients[0].pid]
    freed = [client.lost_at - began for client in stuck if client.lost_at is not None]
    back = [client.back_at - began for client in stuck if client.back_at is not None]
    print(f"{name}: {len(stuck)} of {CLIENTS} clients on the worker that blocks")
    if freed:
        print(f"  let go of after {min(freed):.1f} to {max(freed):.1f} s; {len(back)} served again, the last after "
              f"{max(back):.1f} s")  # fmt: skip
    else:
        print(f"  not let go of within {seconds:g} s: {len(stuck)} clients without an answer")
    disturbed = sum(client.lost_at is not None for client in others)
    slowest = max((client.slowest for client in others), default=0.0)
    print(f"  others: slowest answer {slowest * 1e3:.0f} ms, {disturbed} disturbed")


async def main(seconds: float) -> None:
    """Watch both servers, one after the other."""
    options = {"timeout_worker_healthcheck": 3}
    async with wscluster(BLOCKING_HANDLER, 4, 0, **options) as service:
        await watch("wscluster", service, seconds)
    async with uvicorn(BLOCKING_APP, 4, 0, "--timeout-worker-healthcheck", "3") as service:
        await watch("uvicorn", service, seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stuck", description=__doc__)
    parser.add_argument("--seconds", type=float, default=15)
    asyncio.run(main(**vars(parser.parse_args())))
