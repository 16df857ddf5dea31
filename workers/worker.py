"""The core of every worker: its link, its beats, its bus, and what `wscluster` offers to the program in it."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from wscluster import context, metrics
from wscluster.config import Config
from wscluster.control_paths import default_path
from wscluster.errors import ExitCode
from wscluster.link import Link
from wscluster.packets import (
    Adopted,
    Answer,
    Ask,
    Beat,
    BootFailed,
    BoundAt,
    BusAt,
    Drain,
    Offer,
    Offered,
    Packet,
    Poll,
    Ready,
    Refused,
    Start,
    Stats,
    WantBus,
)
from wscluster.workers.bus import Bus
from wscluster.workers.described import make_page
from wscluster.workers.subscription import Subscription

if TYPE_CHECKING:
    from wscluster.api import DataLike
    from wscluster.workers.service import Service

ORPHAN_SECONDS = 0.8
"""A worker whose primary is gone ends within this time, whatever its handlers do."""

logger = logging.getLogger("wscluster.worker")


class ThisWorker:
    """`wscluster.this_worker`: who this worker is, and what its lifespan yielded."""

    def __init__(self, start: Start) -> None:
        self.slot = start.slot
        self.phase = start.phase
        self.id = start.worker
        self.pid = os.getpid()
        self.state: Mapping[str, Any] = {}


class WorkerFailed(Exception):
    """The worker cannot become ready; it carries the packet that says why."""

    def __init__(self, packet: BootFailed) -> None:
        super().__init__(packet.reason)
        self.packet = packet


class Worker:
    """One worker on one event loop.

    Args:
        sock: The worker's end of the link.
        start: The first packet of the link.
        config: What it says.
        loop: The event loop that the link is read on.

    Attributes:
        link: The link to the primary.
        bus: Rooms of this worker.
        drain_asked: Done when the primary asks for the end; nothing new is taken from then on.
        on_bound: Called with each answer to a `Bind`.
    """

    def __init__(self, sock: socket.socket, start: Start, config: Config, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.config = config
        self.this_worker = ThisWorker(start)
        self.control_socket = control_socket_of(config)
        self.link = Link(sock, loop, self._received, self._orphaned)
        self.bus = Bus(config.bus, config.websocket.max_send_queue, loop, self._want_bus)
        self.drain_asked: asyncio.Future[Drain] = loop.create_future()
        self.on_bound: Callable[[BoundAt], None] | None = None
        self._service: Service | None = None
        self._beat_timer: asyncio.TimerHandle | None = None
        self._beat_due = 0.0
        self._lag = 0.0
        self._dropped_told = False

    def enter(self) -> None:
        """Offer the public functions of `wscluster` to the code of this process."""
        context.enter(self)

    def ready(self, service: Service) -> None:
        """Tell the primary that ``service`` takes connections, and begin to beat."""
        self._service = service
        self.link.send(Ready())
        self._start_beating(self.config.fleet.timeout_worker_healthcheck)

    def resume(self, service: Service) -> None:
        """Serve ``service``, of which the primary knows that it is ready, on this loop from now on."""
        self._service = service
        self._start_beating(self.config.fleet.timeout_worker_healthcheck)

    def leave(self) -> None:
        """Stop beating and close the link in one turn: the loop is about to be closed."""
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        self.link.close()

    async def close(self) -> None:
        """Stop beating, leave the bus, close the link."""
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        await self.bus.close()
        context.enter(None)
        self.link.close()

    async def publish(self, room: str, message: DataLike) -> str:
        return await self.bus.publish(room, message)

    def subscribe(self, rooms: tuple[str, ...], max_queue: int) -> Subscription:
        return self.bus.subscribe(rooms, max_queue)

    # The link

    def _received(self, packet: Packet, fds: list[int]) -> None:
        match packet:
            case Offer(connections):
                self._offered(connections, fds)
            case Drain():
                if self._service is not None:
                    self._service.draining = True
                if not self.drain_asked.done():
                    self.drain_asked.set_result(packet)
            case Poll(serial):
                self._beat(serial)
            case Ask():
                self.link.send(Answer(packet.serial, self._answer(packet)))
            case BusAt(url, reason):
                self.bus.at(url, reason)
            case BoundAt() if self.on_bound is not None:
                self.on_bound(packet)
            case _:
                logger.error("%s is no packet for a worker: ignored", type(packet).__name__)

    def _answer(self, asked: Ask) -> Any:
        service = self._service
        if service is None:
            return None
        match asked.question:
            case "connections":
                return make_page(service.described(), **asked.arguments)
            case "kick":
                return service.kick(asked.arguments["id"])
        return None

    def _offered(self, connections: tuple[Offered, ...], fds: list[int]) -> None:
        """Take the connections or refuse them; either is written before the first byte of one is read."""
        service = self._service
        # A process at its fd limit receives only the first few sockets; the primary still holds the others.
        refused = [offered.number for offered in connections[len(fds) :]]
        if refused:
            logger.error("%d connections refused: no file descriptor left for them", len(refused))
        taken: list[tuple[Offered, int]] = []
        for offered, fd in zip(connections, fds, strict=False):
            if service is not None and not service.draining and service.takes(offered):
                taken.append((offered, fd))
            else:
                os.close(fd)
                refused.append(offered.number)
        if refused:
            self.link.send(Refused(tuple(refused)))
        if taken and service is not None:
            numbers = tuple(offered.number for offered, _ in taken)
            self.link.send(Adopted(numbers), sent=lambda: _adopt(service, taken))

    def _want_bus(self) -> None:
        self.link.send(WantBus())

    def _orphaned(self) -> None:
        """The link has ended: the primary is dead, and nobody would see this worker any more."""
        logger.error("the primary is gone: exiting")
        # A handler that blocks the loop must not keep the process: the alarm needs no loop.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, ORPHAN_SECONDS)
        self.loop.create_task(self._exit_orphaned())

    async def _exit_orphaned(self) -> None:
        if self._service is not None:
            await self._service.abort()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ExitCode.FAILED)

    # Beats

    def _start_beating(self, timeout: float) -> None:
        interval = min(1.0, timeout / 3)

        def beat() -> None:
            now = self.loop.time()
            self._lag = max(0.0, now - self._beat_due)
            self._beat_due = now + interval
            self._beat_timer = self.loop.call_at(self._beat_due, beat)
            self._beat(0)

        self._beat_due = self.loop.time()
        beat()

    def _beat(self, serial: int) -> None:
        # A primary that does not read finds one beat when it reads again, not a queue of them.
        if self.link.outbox == 0:
            self.link.send(Beat(serial, self._stats()))

    def _stats(self) -> Stats:
        service, bus = self._service, self.bus
        if service is None:
            return Stats(cpu_seconds=time.process_time(), rss_bytes=_rss_bytes())
        figures = service.figures()
        return Stats(
            connections=figures.connections,
            adopted=figures.adopted,
            messages_in=figures.messages_in,
            messages_out=figures.messages_out,
            rooms=bus.rooms,
            loop_lag_seconds=self._lag,
            cpu_seconds=time.process_time(),
            rss_bytes=_rss_bytes(),
            published=bus.published,
            delivered=bus.delivered,
            gaps=bus.gaps,
            ignored=bus.ignored,
            slow_closed=bus.slow_closed,
            bus_connected=bus.connected,
            bus_losses=bus.losses,
            bus_probe_seconds=bus.probe_seconds,
            sizes_in=figures.sizes_in,
            sizes_out=figures.sizes_out,
            bytes_in=figures.bytes_in,
            bytes_out=figures.bytes_out,
            application=self._application(),
        )

    def _application(self) -> list[list[Any]]:
        registry = metrics.registry
        if registry.dropped is not None and not self._dropped_told:
            self._dropped_told = True
            logger.warning(
                "the metric %s has too many series: a worker keeps %d, or %d KiB, of all metrics; no other counts",
                registry.dropped, metrics.MAX_SERIES, metrics.MAX_SNAPSHOT_BYTES // 1024,
            )  # fmt: skip
        return registry.snapshot()


def _adopt(service: Service, taken: list[tuple[Offered, int]]) -> None:
    for offered, fd in taken:
        service.adopt(fd, offered)


def control_socket_of(config: Config) -> str:
    """Return the absolute path of the primary's control socket; the target may change its folder later."""
    return os.path.abspath(config.operate.control_socket or default_path(os.getppid()))


def _rss_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no procfs, or no descriptor left: the peak is what there is, in KiB or, on macOS, in bytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
