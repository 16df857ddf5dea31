"""Lines that come back with the process id, on the loop and from the runner that the first argument names."""

import asyncio
import os
import sys


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(b"%d %s" % (os.getpid(), line))
        await writer.drain()
    writer.close()


async def main() -> None:
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        await server.serve_forever()


match sys.argv[1:]:
    case []:
        asyncio.run(main())
    case ["uvloop.run"]:
        import uvloop

        uvloop.run(main())
    case ["uvloop.install"]:
        import warnings

        import uvloop

        warnings.simplefilter("ignore", DeprecationWarning)  # it is, and many programs have it
        uvloop.install()
        asyncio.run(main())
    case ["Runner"]:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    case ["by hand"]:
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(main())
        finally:
            loop.close()
