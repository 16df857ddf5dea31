"""The echo server of the documentation of `websockets`, which also says in which process it runs."""

import asyncio
import os
import sys

from websockets.asyncio.server import ServerConnection, serve


async def echo(ws: ServerConnection) -> None:
    await ws.send(f"process {os.getpid()}")
    async for message in ws:
        await ws.send(message)


async def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8765
    async with serve(echo, "localhost", port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
