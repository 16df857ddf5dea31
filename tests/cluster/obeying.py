"""A handler that misbehaves as its client tells it."""

import asyncio
import os
import sys
import time
from typing import Any

import wscluster
from wscluster import Connection


async def obey(ws: Connection) -> None:
    """Say the slot, then do what each message says; what is done is answered, mostly with "done"."""
    await ws.send(str(ws.slot))
    async for message in ws:
        what, _, argument = message.partition(" ")
        await ws.send(str(await _do(ws, what, argument)))


async def _do(ws: Connection, what: str, argument: str) -> Any:
    match what:
        case "pid":
            return os.getpid()
        case "id":
            return ws.id
        case "phase":
            return wscluster.this_worker.phase
        case "exit":
            os._exit(int(argument))
        case "sys.exit":
            sys.exit(7)
        case "raise":
            raise RuntimeError("as it was told")
        case "join":
            await ws.join(argument)
        case "print":
            print("x" * 99 + "\n", end="", flush=True)
            sys.stdout.write(("y" * 99 + "\n") * (int(argument) // 100))
            sys.stdout.flush()
        case "say":
            print(argument)  # not flushed: a pipe must not keep it back
        case "complain":
            sys.stderr.write(argument + "\n")
        case "log":
            ws.logger.warning("%s", argument)
        case "block":
            await ws.send("will")
            time.sleep(float(argument))  # noqa: ASYNC251
        case "linger":  # a handler that needs a moment after its connection was closed
            await ws.send("will")
            await ws.wait_closed()
            await asyncio.sleep(float(argument))
            print("lingered", argument, flush=True)
        case "swallow":
            await ws.send("will")
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    print("swallowed", flush=True)
        case _:
            raise LookupError(what)
    return "done"
