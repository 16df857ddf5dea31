"""A server that ends as its first argument says when it is asked to."""

import asyncio
import signal
import sys


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
    writer.close()


async def main(how: str) -> None:
    async with await asyncio.start_server(answer, "127.0.0.1", 0):
        try:
            if how == "handler":
                asked = asyncio.Event()
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
                await asked.wait()
                sys.stdout.write("asked by SIGTERM\n")
            elif how == "ignores":
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.signal(signal.SIGTERM, lambda *_: print("SIGTERM is not heard", flush=True))
                await asyncio.sleep(600)
            else:
                await asyncio.sleep(600)
        except asyncio.CancelledError:
            sys.stdout.write("cancelled\n")
            raise


asyncio.run(main(sys.argv[1]))
