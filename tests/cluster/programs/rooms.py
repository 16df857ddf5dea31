"""Lines go to everybody on every worker, through a room: `wscluster.publish` and `subscribe` in a plain program."""

import asyncio

import wscluster

writers: set[asyncio.StreamWriter] = set()


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writers.add(writer)
    writer.write(b"welcome to slot %d\n" % wscluster.this_worker.slot)
    while line := await reader.readline():
        await wscluster.publish("all", line)
    writers.remove(writer)
    writer.close()


async def main() -> None:
    async with wscluster.subscribe("all") as messages, await asyncio.start_server(talk, "127.0.0.1", 0):
        async for message in messages:
            assert isinstance(message, wscluster.Message)
            assert isinstance(message.data, bytes)
            for writer in writers:
                writer.write(message.data)


asyncio.run(main())
