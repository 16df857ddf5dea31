"""``python -m benchmarks.peer HANDLER``: the plain `websockets` server, on the same loop and with the same backlog.

Prints its port on standard output and serves until it is terminated.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from websockets.asyncio.server import serve

from benchmarks import handlers
from wscluster.loops import new_event_loop


async def main(handler: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with serve(getattr(handlers, handler), "127.0.0.1", 0, backlog=2048) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        await stop.wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main(sys.argv[1]))
