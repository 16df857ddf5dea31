"""The echo handler on the library's own server, to compare with: prints its port, serves until its input ends."""

import asyncio
import sys

from websockets.asyncio.server import serve

from tests.cluster.handlers import echo


async def main() -> None:
    async with serve(echo, "127.0.0.1", 0, max_size=int(sys.argv[1]), ping_interval=None) as server:  # type: ignore[arg-type]
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
