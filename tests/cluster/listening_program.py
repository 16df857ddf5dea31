"""A program for `wscluster run`: listens where its arguments say (HOST:PORT, :PORT, unix:PATH).

Each client gets a line of JSON that says who serves it, and then each of its lines back. ``listen HOST:PORT`` listens
there too, ``exit N`` ends the program, ``spawn`` starts a process that does nothing and tells its pid. Where an address
is taken, ``or:`` and another one may follow it.
"""

import asyncio
import json
import os
import sys

import wscluster


def say(text: str) -> None:
    # In one write, because the other workers have the same pipe.
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Lines:
    def __init__(self) -> None:
        self.over: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def listen(self, text: str) -> None:
        server: asyncio.Server

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            me = {
                "slot": wscluster.this_worker.slot,
                "pid": os.getpid(),
                "names": [sock.getsockname() for sock in server.sockets],
                "client": writer.get_extra_info("peername"),
            }
            writer.write(json.dumps(me).encode() + b"\n")
            while line := await reader.readline():
                word, _, rest = line.decode().strip().partition(" ")
                if word == "listen":
                    await self.listen(rest)
                elif word == "exit":
                    self.over.set_result(int(rest))
                elif word == "spawn":
                    process = await asyncio.create_subprocess_exec("sleep", "600")
                    line = f"{process.pid}\n".encode()
                writer.write(line)
            writer.close()

        if text.startswith("unix:"):
            server = await asyncio.start_unix_server(serve, text.removeprefix("unix:"))
            return
        host, _, port = text.rpartition(":")
        server = await asyncio.start_server(serve, host.strip("[]") or None, int(port))


async def main() -> int:
    lines = Lines()
    addresses = iter(sys.argv[1:])
    taken: OSError | None = None
    for text in addresses:
        if text.startswith("or:") and taken is None:
            continue
        try:
            await lines.listen(text.removeprefix("or:"))
            taken = None
        except OSError as exc:
            taken = exc
            say(f"cannot: errno {exc.errno}")
    if taken is not None:
        raise taken
    try:
        return await lines.over
    except asyncio.CancelledError:
        say(f"cancelled in slot {wscluster.this_worker.slot}")
        raise


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
