"""A program in a worker, beside a primary that the test plays: how it listens, is fed, and ends."""

import socket
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.link.played_primary import PlayedPrimary
from wscluster.packets import Adopted, Ready, Refused

ECHO = """
    import asyncio, os, signal, socket, sys

    async def echo(reader, writer):
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
        writer.close()
"""

Write = Callable[..., list[str]]


@pytest.fixture
def program(tmp_path: Path) -> Write:
    """Writes a program that has `echo` and returns how it is run."""

    def write(text: str, *arguments: str) -> list[str]:
        path = tmp_path / "server.py"
        path.write_text(textwrap.dedent(ECHO) + textwrap.dedent(text))
        return [str(path), *arguments]

    return write


def says(client: socket.socket, line: bytes = b"hello\n") -> bytes:
    client.sendall(line)
    return client.recv(100)


SERVE = """
    async def main():
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server:
            await server.serve_forever()
"""
RUNS = {
    "asyncio.run": "asyncio.run(main())",
    "uvloop.run": "import uvloop; uvloop.run(main())",
    "Runner": "with asyncio.Runner() as runner: runner.run(main())",
    "Runner with uvloop": """import uvloop
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner: runner.run(main())""",
    "a loop by hand": """loop = asyncio.new_event_loop()
try: loop.run_until_complete(main())
finally: loop.close()""",
    "a derived loop": """class Loop(asyncio.SelectorEventLoop):
    async def create_server(self, *args, **options): return await super().create_server(*args, **options)
with asyncio.Runner(loop_factory=Loop) as runner: runner.run(main())""",
    "a thread": """import threading
thread = threading.Thread(target=lambda: asyncio.run(main()))
thread.start()""",
}


@pytest.mark.parametrize("how", RUNS)
def test_whatever_loop_a_program_makes_is_fed(program: Write, how: str) -> None:
    with PlayedPrimary(program(SERVE + textwrap.indent(RUNS[how], "    "))) as primary:
        primary.until(Ready)
        for _ in range(3):
            client, number = primary.hand_over()
            with client:
                assert primary.until(Adopted) == Adopted((number,))
                assert says(client) == b"hello\n"


def test_a_drained_program_keeps_its_connections_and_is_ended_when_the_last_is_gone(program: Write) -> None:
    with PlayedPrimary(program(SERVE + "    asyncio.run(main())")) as primary:
        primary.until(Ready)
        client, _ = primary.hand_over()
        with client:
            primary.until(Adopted)
            primary.drain()
            late, number = primary.hand_over()
            with late:
                assert primary.until(Refused) == Refused((number,))
            assert says(client) == b"hello\n"
        assert primary.output() == ("", "")
        assert primary.process.returncode == 0
