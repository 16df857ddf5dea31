"""The echo server of the documentation of `websockets`, with the process id."""

import asyncio
import os

from websockets.asyncio.server import ServerConnection, serve


async def echo(websocket: ServerConnection) -> None:
    async for message in websocket:
        await websocket.send(f"{os.getpid()} {message!s}")


async def main() -> None:
    async with serve(echo, "127.0.0.1", 0) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
