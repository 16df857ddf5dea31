"""A real Valkey on a Unix socket, for the tests of the two connections to the bus."""

import asyncio
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from wscluster.gateway.redis_server import find_program
from wscluster.loops import new_event_loop

WAIT_SECONDS = 20.0


def run(
    main: Coroutine[Any, Any, None], loop_factory: Callable[[], asyncio.AbstractEventLoop] = new_event_loop
) -> None:
    """Run a test's coroutine on the loop that a worker runs on."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.wait_for(main, 60))


async def wait_until(condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.005)


class Valkey:
    """A server that can be stopped, continued, killed and started again at the same path."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self._folder = folder
        self._flags = flags
        self.path = folder / "bus.sock"
        self.url = f"unix://{self.path}"
        self._popen: subprocess.Popen[bytes] | None = None
        # No retries: they would wait for up to a second while the server starts.
        self.client = redis.Redis(unix_socket_path=str(self.path), retry=Retry(NoBackoff(), 0))

    def __enter__(self) -> "Valkey":
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()
        self.kill()

    def start(self) -> None:
        """Start it and wait until it answers."""
        program = find_program()
        assert program is not None
        self.path.unlink(missing_ok=True)
        with (self._folder / "valkey.log").open("ab") as log:
            self._popen = subprocess.Popen(
                [program, "--port", "0", "--unixsocket", str(self.path), "--save", "", "--appendonly", "no",
                 "--dir", str(self._folder), *self._flags],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        deadline = time.monotonic() + WAIT_SECONDS
        while not self._answers():
            assert self._popen.poll() is None, (self._folder / "valkey.log").read_text()
            assert time.monotonic() < deadline, "Valkey does not answer"
            time.sleep(0.005)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._popen is not None
        self._popen.send_signal(number)

    def kill(self) -> None:
        """End it."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()
            self._popen = None

    def calls(self, command: str) -> int:
        """Return how often ``command`` was executed."""
        found: dict[str, Any] = self.client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})
        return int(found["calls"])

    def reads(self) -> int:
        """Return how often it has read from a socket, this question included."""
        return int(self.client.info("stats")["total_reads_processed"])

    def log(self, key: str | bytes) -> list[tuple[str, bytes]]:
        """Return id and payload of each entry of a room's log."""
        entries: Any = self.client.xrange(key)
        return [(entry[0].decode(), entry[1][b"e"]) for entry in entries]

    def hear(self, channel: bytes) -> Any:
        """Return a subscription to ``channel`` that is live."""
        heard: Any = self.client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        heard.subscribe(channel)
        heard.get_message(timeout=5)
        return heard

    def kill_clients(self, kind: str) -> None:
        """End the connections of others: ``normal`` or ``pubsub``."""
        self.client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")  # type: ignore[no-untyped-call]


class Proxy:
    """Stands between a client and the server, and can keep an answer back and cut the connection instead."""

    def __init__(self, valkey: Valkey) -> None:
        self._valkey = valkey
        self._tasks: set[asyncio.Task[None]] = set()
        self.path = valkey.path.with_name("proxy.sock")
        self.cut_next_answer = False
        self.connections = 0

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        up_reader, up_writer = await asyncio.open_unix_connection(self._valkey.path)
        asking = asyncio.create_task(self._copy(reader, up_writer))
        try:
            while answer := await up_reader.read(65536):
                if self.cut_next_answer and not answer.startswith((b"-NOSCRIPT", b"$40")):
                    self.cut_next_answer = False
                    break
                writer.write(answer)
        except asyncio.CancelledError:
            pass
        finally:
            asking.cancel()
            await asyncio.wait([asking])
            for one in (writer, up_writer):
                one.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
