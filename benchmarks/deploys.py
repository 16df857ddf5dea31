"""``python -m benchmarks.deploys``: what clients see while the service that they use is deployed twenty times.

1,000 clients stay connected, send a message now and then, and come back when they are closed; 300 more a second come,
send one message, hear its echo and leave. Meanwhile the code is deployed 20 times, 5 of them a release that cannot be
imported, and a worker is killed with -9 after every fourth. Counted are the connects that fail, how connections end,
and the messages that were sent before the server's Close was answered and that no worker has heard; what was under way
to a killed worker is counted apart. With ``--upgrades`` the primary of wscluster executes itself anew as often, after
every deploy in turn: new connections wait for that long.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.deployed import SERVICES, Deployed
from benchmarks.load import CLOSE, REQUEST, masked_frame

CONNECT_SECONDS = 10.0
SPEAK_SECONDS = 4.0
"""A client that stays sends a message at random times, on average this far apart."""
PAUSE_SECONDS = 1.0
"""Between two deploys."""

NO_CLOSE = "no Close: the TCP connection ended"


@dataclass
class Seen:
    """What the clients of one service have seen."""

    connects: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    failed_by_kill: int = 0
    killed_at: list[float] = field(default_factory=list)
    closes: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    sent: int = 0
    answered_close: set[str] = field(default_factory=set)
    cut_off: set[str] = field(default_factory=set)
    refused: int = 0
    broken: int = 0
    deploys: int = 0
    kills: int = 0
    pauses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def table(self, name: str, heard: set[str]) -> str:
        """Return the account as text."""
        waits = sorted(self.waits)
        closes = ", ".join(f"{count} {how}" for how, count in sorted(self.closes.items()))
        failed = ", ".join(f"{count} {how}" for how, count in self.failed.most_common(4))
        deploys = f"{self.deploys} deploys in {self.seconds:.0f} s, {self.broken} of a broken release"
        lost, cut = len(self.answered_close - heard), len(self.cut_off - heard)
        lines = [
            f"{name}: {deploys} ({self.refused} refused), {self.kills} workers killed",
            f"  connects  {self.connects}, failed {self.failed.total()}, {self.failed_by_kill} by a kill  {failed}",
            f"  connect   median {waits[len(waits) // 2] * 1e3:.1f} ms, worst {waits[-1] * 1e3:.0f} ms",
            f"  closed    {closes}",
            f"  messages  {self.sent} sent, {lost} lost before a Close was answered, {cut} lost without a Close",
        ]
        if self.pauses:
            pauses = sorted(self.pauses)
            median, worst = pauses[len(pauses) // 2] * 1e3, pauses[-1] * 1e3
            lines.append(
                f"  upgrades  {len(pauses)}, nothing accepted for {median:.0f} ms (median), {worst:.0f} ms (worst)"
            )
        return "\n".join(lines)


class Clients:
    """All clients of one service."""

    def __init__(self, port: int, seen: Seen) -> None:
        self._port = port
        self._seen = seen
        self._numbers = iter(range(10**9))
        self.leaving = asyncio.Event()

    @contextlib.contextmanager
    def _failure(self) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as exc:
            if any(begin <= at for at in self._seen.killed_at):
                self._seen.failed_by_kill += 1
            else:
                self._seen.failed[type(exc).__name__] += 1
            raise ConnectionAbortedError from exc

    async def connect(self, source: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect and upgrade.

        Raises:
            ConnectionAbortedError: It failed, and was counted.
        """
        self._seen.connects += 1
        begin = time.monotonic()
        with self._failure():
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(source, 0))
                try:
                    writer.write(REQUEST)
                    head = await reader.readuntil(b"\r\n\r\n")
                    if not head.startswith(b"HTTP/1.1 101"):
                        raise ConnectionError(head[:12])
                except BaseException:
                    writer.transport.abort()
                    raise
        self._seen.waits.append(time.monotonic() - begin)
        return reader, writer

    async def stay(self, number: int) -> None:
        """Be a client that comes back whenever it is closed."""
        source = f"127.2.{number // 250}.{number % 250 + 1}"
        while not self.leaving.is_set():
            with contextlib.suppress(ConnectionAbortedError):
                reader, writer = await self.connect(source)
                try:
                    await self._speak(reader, writer)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(random.random() * 0.2)

    async def visit(self, number: int) -> None:
        """Be a client that sends one message and leaves."""
        source = f"127.3.{number // 250 % 250}.{number % 250 + 1}"
        with contextlib.suppress(ConnectionAbortedError):
            reader, writer = await self.connect(source)
            try:
                sent = [self._send(writer)]
                ended = await self._hear(reader)
                if ended is None:
                    writer.write(CLOSE)
                    await reader.read()
                else:
                    self._ended(writer, ended, sent)
            except ConnectionError:
                self._ended(writer, NO_CLOSE, sent)
            finally:
                writer.transport.abort()

    async def _speak(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent: list[str] = []
        heard = asyncio.ensure_future(self._hear(reader))
        leaving = asyncio.ensure_future(self.leaving.wait())
        try:
            while True:
                pause = random.expovariate(1 / SPEAK_SECONDS)
                await asyncio.wait([heard, leaving], timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                if heard.done():
                    if (ended := heard.result()) is not None:
                        self._ended(writer, ended, sent)
                        return
                    heard = asyncio.ensure_future(self._hear(reader))
                elif leaving.done():
                    return
                else:
                    sent.append(self._send(writer))
        finally:
            heard.cancel()
            leaving.cancel()
            await asyncio.gather(heard, leaving, return_exceptions=True)

    def _send(self, writer: asyncio.StreamWriter) -> str:
        message = f"m{next(self._numbers)}"
        writer.write(masked_frame(message.encode()))
        self._seen.sent += 1
        return message

    async def _hear(self, reader: asyncio.StreamReader) -> str | None:
        """Read one frame; returns how the connection has ended, or None for a message."""
        try:
            head = await reader.readexactly(2)
            payload = await reader.readexactly(head[1])
        except (ConnectionError, asyncio.IncompleteReadError):
            return NO_CLOSE
        if head[0] == 0x88:
            return str(int.from_bytes(payload[:2], "big"))
        return None

    def _ended(self, writer: asyncio.StreamWriter, how: str, sent: list[str]) -> None:
        self._seen.closes[how] += 1
        if how == NO_CLOSE:
            self._seen.cut_off.update(sent)
            return
        writer.write(CLOSE)
        self._seen.answered_close.update(sent)


async def deploy_often(service: Deployed, seen: Seen, arguments: argparse.Namespace) -> None:
    """Deploy, break, mend, upgrade and kill."""
    bad = set(random.Random(arguments.broken).sample(range(1, arguments.deploys), arguments.broken))
    for number in range(arguments.deploys):
        service.write(number + 2, broken=number in bad)
        seen.deploys += 1
        seen.broken += number in bad
        seen.refused += not await service.reload()
        if number % 4 == 3:
            seen.killed_at.append(time.monotonic())
            service.kill()
            seen.kills += 1
        if service.upgrade is not None and number < arguments.upgrades:
            seen.pauses.append(await service.upgrade())
        await asyncio.sleep(PAUSE_SECONDS)


async def measure(name: str, arguments: argparse.Namespace) -> Seen:
    """Run one service under its clients; returns what they have seen."""
    serve, code = SERVICES[name]
    seen = Seen()
    async with serve(code, arguments.workers, arguments.drain_rate) as service:
        clients = Clients(service.port, seen)
        staying = [asyncio.create_task(clients.stay(number)) for number in range(arguments.open)]
        visits: set[asyncio.Task[None]] = set()
        begin = time.monotonic()
        deploying = asyncio.create_task(deploy_often(service, seen, arguments))
        number = 0
        while not deploying.done():
            visit = asyncio.create_task(clients.visit(number))
            visits.add(visit)
            visit.add_done_callback(visits.discard)
            number += 1
            await asyncio.sleep(max(0.0, begin + number / arguments.rate - time.monotonic()))
        await deploying
        seen.seconds = time.monotonic() - begin
        clients.leaving.set()
        await asyncio.wait_for(asyncio.gather(*staying, *visits), 60)
        print(seen.table(name, service.heard()), flush=True)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deploys", description=__doc__)
    parser.add_argument("services", nargs="*", choices=[[], *SERVICES], default=[], help="all of them by default")
    parser.add_argument("--open", type=int, default=1000, help="clients that stay")
    parser.add_argument("--rate", type=float, default=300, help="new clients a second")
    parser.add_argument("--deploys", type=int, default=20)
    parser.add_argument("--broken", type=int, default=5)
    parser.add_argument("--upgrades", type=int, default=0, help="of wscluster's primary")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--drain-rate", type=float, default=0, help="of wscluster, connections a second")
    arguments = parser.parse_args()
    for name in arguments.services or SERVICES:
        asyncio.run(measure(name, arguments))


if __name__ == "__main__":
    main()
