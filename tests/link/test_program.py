"""A program in a worker, beside a primary that the test plays: how it listens, is fed, and ends."""

import os
import socket
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.link.played_primary import PlayedPrimary
from wscluster.packets import Adopted, Bind, BootFailed, BoundAt, Ready, Refused

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


def test_threads_that_only_wait_for_work_do_not_hold_the_end(program: Write) -> None:
    text = """
        from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
        threads, processes = ThreadPoolExecutor(), ProcessPoolExecutor(1)
        assert threads.submit(os.getpid).result() == os.getpid() != processes.submit(os.getpid).result()
    """
    with PlayedPrimary(program(textwrap.dedent(text) + textwrap.dedent(SERVE) + "asyncio.run(main())")) as primary:
        primary.until(Ready)
        primary.drain()
        assert primary.process.wait(10) == 0
    with PlayedPrimary(program(textwrap.dedent(text) + "sys.exit(7)")) as primary:
        assert primary.until(BootFailed).reason == "the program ended (status 7) before it listened anywhere"
        primary.process.wait(10)


def lines_of(primary: PlayedPrimary, count: int) -> list[str]:
    """Return the next lines that the program has printed."""
    assert primary.process.stdout is not None
    return [primary.process.stdout.readline().rstrip("\n") for _ in range(count)]


def test_a_program_finds_itself_as_python_would_run_it(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("NAME = 'beside'\n")
    server = tmp_path / "server.py"
    server.write_text(
        """
import asyncio, os, sys, beside, pickle
class Thing: pass
assert type(pickle.loads(pickle.dumps(Thing()))) is Thing
assert sys.modules["__main__"].Thing is Thing
print(__name__, __file__, __package__, __spec__, sys.argv, sys.path[0], sep="|", flush=True)
"""
        + textwrap.dedent(ECHO + SERVE)
        + "asyncio.run(main())"
    )
    link = tmp_path / "elsewhere" / "link.py"
    link.parent.mkdir()
    link.symlink_to(server)
    with PlayedPrimary(["server.py", "--help", "-m", ""], cwd=tmp_path) as primary:
        primary.until(Ready)
        said = f"__main__|{server}|None|None|['server.py', '--help', '-m', '']|{tmp_path}"
        assert lines_of(primary, 1) == [said]
    with PlayedPrimary([str(link)]) as primary:
        primary.until(Ready)
        assert lines_of(primary, 1) == [f"__main__|{link}|None|None|['{link}']|{tmp_path}"]


@pytest.mark.parametrize(("words", "file"), [(["-m", "app"], "__main__.py"), (["-m", "app.server"], "server.py")])
def test_a_module_finds_itself_as_python_would_run_it(tmp_path: Path, words: list[str], file: str) -> None:
    package = tmp_path / "app"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "beside.py").write_text("")
    text = """
        from . import beside
        import sys
        print(__name__, __file__, __package__, __spec__.name, sys.argv, sys.path[0], sep="|", flush=True)
    """
    (package / file).write_text(
        textwrap.dedent(text) + textwrap.dedent(ECHO) + textwrap.dedent(SERVE) + "asyncio.run(main())"
    )
    with PlayedPrimary([*words, "a"], cwd=tmp_path) as primary:
        primary.until(Ready)
        path = package / file
        assert lines_of(primary, 1) == [
            f"__main__|{path}|app|app.{file.removesuffix('.py')}|['{path}', 'a']|{tmp_path}"
        ]


def test_a_folder_with_a_main_is_a_program(tmp_path: Path) -> None:
    (tmp_path / "__main__.py").write_text(textwrap.dedent(ECHO) + textwrap.dedent(SERVE) + "asyncio.run(main())")
    with PlayedPrimary([str(tmp_path)]) as primary:
        primary.until(Ready)


def test_a_program_that_fails_later_shows_its_own_traceback(program: Write) -> None:
    text = """
        async def main():
            await asyncio.start_server(echo, "127.0.0.1", 0)
            for _ in range(30):
                await asyncio.sleep(0)
            raise LookupError("no luck")

        asyncio.run(main())
    """
    with PlayedPrimary(program(text)) as primary:
        primary.until(Ready)
        out, err = primary.output()
        assert primary.process.returncode == 1
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].endswith('server.py", line 16, in <module>')
    assert lines[-1] == "LookupError: no luck"
    assert "wscluster" not in err


@pytest.mark.parametrize(
    ("text", "status", "said"), [("sys.exit(7)", 7, ""), ("sys.exit('bye')", 1, "bye\n"), ("", 0, "")]
)
def test_a_program_that_ends_later_ends_with_its_own_status(program: Write, text: str, status: int, said: str) -> None:
    with PlayedPrimary(program(f"""
        async def main():
            await asyncio.start_server(echo, "127.0.0.1", 0)
            for _ in range(30):
                await asyncio.sleep(0)

        asyncio.run(main())
        {text}
    """)) as primary:  # fmt: skip
        primary.until(Ready)
        assert primary.output() == ("", said)
        assert primary.process.returncode == status


def test_a_second_loop_is_refused_while_the_first_is_open_and_served_after_it(program: Write) -> None:
    text = """
        async def main(port):
            async with await asyncio.start_server(echo, "127.0.0.1", port) as server:
                print(server.sockets[0].getsockname()[1], flush=True)
                if not port:
                    for _ in range(30):
                        await asyncio.sleep(0)
                    try:
                        await asyncio.to_thread(asyncio.run, main(1))
                    except RuntimeError as exc:
                        print(exc, flush=True)
                else:
                    await server.serve_forever()
                return server.sockets[0].getsockname()[1]

        asyncio.run(main(asyncio.run(main(0))))
    """
    with PlayedPrimary(program(text)) as primary:
        primary.until(Ready)
        first, refused = lines_of(primary, 2)
        assert refused.startswith("one event loop of a program is served, and another one that is still open listens")
        request = primary.until(Bind)
        assert request.port == int(first)
        # The same listener, as the primary answers who asks for it again.
        primary.send(BoundAt(request.serial, [0], [primary.known[0]], [0], known_addresses=primary.known))
        assert lines_of(primary, 1) == [first]
        client, number = primary.hand_over()
        with client:
            assert primary.until(Adopted) == Adopted((number,))
            assert says(client) == b"hello\n"


def test_what_is_wrong_is_told_as_asyncio_tells_it(program: Write) -> None:
    text = """
        import ssl
        CASES = [
            dict(host="127.0.0.1", port=0, sock=socket.socket()),
            dict(),
            dict(sock=socket.socket(type=socket.SOCK_DGRAM)),
            dict(host="127.0.0.1", port=0, ssl=True),
            dict(host="127.0.0.1", port=0, ssl_handshake_timeout=1),
            dict(host="127.0.0.1", port=0, ssl_shutdown_timeout=1),
            dict(host="127.0.0.1", port=70000),
            dict(host="127.0.0.1", port=0, nonsense=1),
            dict(host=[], port=0),
        ]
        async def main():
            loop = asyncio.get_running_loop()
            for case in CASES:
                try:
                    await loop.create_server(asyncio.Protocol, **case)
                except Exception as exc:
                    print(type(exc).__name__, exc, flush=True)
            try:
                await loop.create_unix_server(asyncio.Protocol)
            except ValueError as exc:
                print(exc, flush=True)
            server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0, start_serving=False)
            port = server.sockets[0].getsockname()[1]
            again = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0, start_serving=False)
            print(port != again.sockets[0].getsockname()[1], flush=True)
            await loop.create_server(asyncio.Protocol, "127.0.0.1", port)

        asyncio.run(main())
    """
    with PlayedPrimary(program(text)) as primary:
        for nth in range(2):
            request = primary.until(Bind)
            assert (request.port, request.nth) == (0, nth)
            primary.answer(request)
        request = primary.until(Bind)
        primary.send(BoundAt(request.serial, [0], [primary.known[0]], [0, 1], known_addresses=primary.known))
        failure = primary.until(BootFailed)
        out, err = primary.output()
    assert out.splitlines() == [
        "ValueError host/port and sock can not be specified at the same time",
        "ValueError Neither host/port nor sock were specified",
        next(line for line in out.splitlines() if line.startswith("ValueError A Stream Socket was expected, got ")),
        "TypeError ssl argument must be an SSLContext or None",
        "ValueError ssl_handshake_timeout is only meaningful with ssl",
        "ValueError ssl_shutdown_timeout is only meaningful with ssl",
        "OverflowError bind(): port must be 0-65535.",
        next(line for line in out.splitlines() if "nonsense" in line),
        "OSError could not bind on any address out of []",
        "path was not specified, and no sock specified",
        "True",
    ]
    assert err == ""
    assert failure.reason.startswith("Address already in use: this program already listens on 127.0.0.1:")


def test_what_a_program_no_longer_serves_is_refused(program: Write) -> None:
    text = """
        async def main():
            server = await asyncio.start_server(echo, "127.0.0.1", 0)
            other = await asyncio.start_server(echo, "127.0.0.1", 0)
            while True:
                line = await asyncio.to_thread(os.read, int(sys.argv[1]), 1)
                server.close()
                await server.wait_closed()
                assert server.sockets == () and not server.is_serving()
                print("closed", flush=True)

        asyncio.run(main())
    """
    ours, theirs = os.pipe()
    os.set_inheritable(ours, True)
    try:
        with PlayedPrimary(program(text, str(ours)), pass_fds=[ours]) as primary:
            primary.until(Ready)
            client, number = primary.hand_over()
            assert primary.until(Adopted) == Adopted((number,))
            client.close()
            os.write(theirs, b"x")
            assert lines_of(primary, 1) == ["closed"]
            client, number = primary.hand_over()
            client.close()
            assert primary.until(Refused) == Refused((number,))
            client, number = primary.hand_over(1)
            client.close()
            assert primary.until(Adopted) == Adopted((number,))
    finally:
        os.close(ours)
        os.close(theirs)
