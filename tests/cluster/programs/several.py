"""Listens in every way at once and prints what its servers say of themselves, as JSON behind the process id."""

import asyncio
import json
import os
import ssl
import sys


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    peer = writer.get_extra_info("peername")
    while line := await reader.readline():
        writer.write(b"%d %s %s" % (os.getpid(), str(peer).encode(), line))
        await writer.drain()
    writer.close()


async def main(port: int, path: str, certificate: str, key: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    servers = [
        await asyncio.start_server(answer, "127.0.0.1", port),
        await asyncio.start_server(answer, ["127.0.0.1", "::1"], 0),
        await asyncio.start_server(answer, None, 0),
        await asyncio.start_unix_server(answer, path),
        await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context),
        await asyncio.start_server(answer, "127.0.0.1", 0, start_serving=False),
    ]
    assert not servers[-1].is_serving()
    assert servers[0].is_serving()
    names = [[sock.getsockname() for sock in server.sockets] for server in servers]
    # In one write, because another worker writes too.
    sys.stdout.write(f"{os.getpid()} {json.dumps(names)}\n")
    sys.stdout.flush()
    async with servers[-1]:
        await servers[-1].serve_forever()


asyncio.run(main(int(sys.argv[1]), *sys.argv[2:]))
