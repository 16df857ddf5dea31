"""One worker process: boots the target, adopts what the primary hands it, beats, drains, and dies with the primary."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from wscluster import context, logs
from wscluster.config import Config, counts_open, from_json, value_for
from wscluster.control_paths import default_path
from wscluster.errors import ExitCode, StartError, TargetError
from wscluster.link import Link
from wscluster.loops import new_event_loop
from wscluster.packets import (
    Adopted,
    Beat,
    BootFailed,
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
from wscluster.tls import Context, make_context
from wscluster.workers.bus import Bus
from wscluster.workers.endings import Endings
from wscluster.workers.serve import HandlerServer
from wscluster.workers.subscription import Subscription
from wscluster.workers.target import Target, load_target, user_traceback

if TYPE_CHECKING:
    from wscluster.api import DataLike

PR_SET_PDEATHSIG = 1
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
    """The link's loop of one worker process.

    Args:
        sock: The worker's end of the link.
        loop: The event loop of the process.
    """

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._link = Link(sock, loop, self._received, self._orphaned)
        self._started: asyncio.Future[Start] = loop.create_future()
        self._drain: asyncio.Future[Drain] = loop.create_future()
        self._this: ThisWorker | None = None
        self.control_socket = ""
        self._bus: Bus | None = None
        self._server: HandlerServer | None = None
        self._beat_timer: asyncio.TimerHandle | None = None
        self._beat_due = 0.0
        self._lag = 0.0
        self._leave_by: float | None = None

    async def run(self) -> int:
        """Live from the first packet to the end of the drain; returns the exit code."""
        start = await self._started
        config = from_json(start.config)
        logs.set_up(config.operate.log_level, f"worker {start.worker} slot {start.slot}")
        self._this = ThisWorker(start)
        self.control_socket = _control_socket(config)
        self._bus = Bus(config.bus, config.websocket.max_send_queue, self.loop, self._want_bus)
        context.enter(self)
        try:
            tls = _make_context(config)
            target = self._load(config)
            async with self._lifespan(target):
                self._server = HandlerServer(
                    target, config.websocket, self._bus, start.slot, self.loop,
                    handshake=config.handshake, tls=tls,
                    access_log=value_for("handlers", config.operate, "access_log"),
                )  # fmt: skip
                if counts_open(config.listen):
                    self._server.endings = Endings(self._link, self.loop)
                # What boot left behind lives as long as the process: the collector need not look at it again.
                gc.collect()
                gc.freeze()
                self._link.send(Ready())
                self._start_beating(config.fleet.timeout_worker_healthcheck)
                await self._serve(self._server)
        except WorkerFailed as failed:
            self._link.send(failed.packet)
            return failed.packet.exit_code
        finally:
            if self._beat_timer is not None:
                self._beat_timer.cancel()
            await self._bus.close()
            context.enter(None)
            self._link.close()
        return ExitCode.OK

    @property
    def this_worker(self) -> ThisWorker:
        assert self._this is not None
        return self._this

    async def publish(self, room: str, message: DataLike) -> str:
        assert self._bus is not None
        return await self._bus.publish(room, message)

    def subscribe(self, rooms: tuple[str, ...], max_queue: int) -> Subscription:
        assert self._bus is not None
        return self._bus.subscribe(rooms, max_queue)

    # Boot and end

    def _load(self, config: Config) -> Target:
        try:
            target = load_target(config.target, config.operate.app_dir, config.handshake)
        except TargetError as exc:
            raise WorkerFailed(BootFailed(ExitCode.TARGET, str(exc), exc.traceback)) from exc
        # Now its own logging is set up, where it does that.
        logs.guard_root(f"worker {self.this_worker.id} slot {self.this_worker.slot}")
        return target

    @contextlib.asynccontextmanager
    async def _lifespan(self, target: Target) -> AsyncIterator[None]:
        """Enter the target's lifespan; its failure before the worker is ready is a failed boot."""
        if target.lifespan is None:
            yield
            return
        life = target.lifespan()
        try:
            state = await anext(life)
        except StopAsyncIteration:
            raise WorkerFailed(BootFailed(ExitCode.NOT_STARTED, "the lifespan ended without a yield", "")) from None
        except (Exception, SystemExit) as exc:
            reason = f"the lifespan raised {type(exc).__name__}: {exc}"
            raise WorkerFailed(BootFailed(ExitCode.NOT_STARTED, reason, user_traceback(exc))) from exc
        if state is not None and not isinstance(state, Mapping):
            reason = f"the lifespan yielded {type(state).__name__!r}: a mapping or nothing is wanted"
            raise WorkerFailed(BootFailed(ExitCode.NOT_STARTED, reason, ""))
        self.this_worker.state = state if state is not None else {}
        yield
        try:
            async with asyncio.timeout_at(self._leave_by):
                await anext(life)
        except StopAsyncIteration:
            return
        except TimeoutError:
            logger.error("the lifespan was not left within the graceful timeout")
        except (Exception, SystemExit):
            logger.exception("the lifespan raised while it was left")
        else:
            logger.error("the lifespan yielded more than once")
            await life.aclose()

    async def _serve(self, server: HandlerServer) -> None:
        drain = await self._drain
        self._leave_by = self.loop.time() + drain.timeout
        await server.drain(drain.code, drain.reason, drain.timeout)
        server.stop_deadlines()

    # The link

    def _received(self, packet: Packet, fds: list[int]) -> None:
        match packet:
            case Offer(connections):
                self._offered(connections, fds)
            case Start():
                self._started.set_result(packet)
            case Drain():
                if self._server is not None:
                    self._server.draining = True
                if self._bus is not None:
                    self._bus.end_subscriptions()
                if not self._drain.done():
                    self._drain.set_result(packet)
            case Poll(serial):
                self._beat(serial)
            case BusAt(url, reason):
                assert self._bus is not None
                self._bus.at(url, reason)
            case _:
                logger.error("%s is no packet for a worker: ignored", type(packet).__name__)

    def _offered(self, connections: tuple[Offered, ...], fds: list[int]) -> None:
        """Take the connections or refuse them; either is written before the first byte of one is read."""
        server = self._server
        if server is None or server.draining:
            for fd in fds:
                os.close(fd)
            self._link.send(Refused(tuple(offered.number for offered in connections)))
            return
        # A process at its fd limit receives only the first few sockets; the primary still holds the others.
        refused = connections[len(fds) :]
        if refused:
            logger.error("%d connections refused: no file descriptor left for them", len(refused))
            self._link.send(Refused(tuple(offered.number for offered in refused)))
        taken = list(zip(connections, fds, strict=False))
        if taken:
            numbers = tuple(offered.number for offered, _ in taken)
            self._link.send(Adopted(numbers), sent=lambda: self._adopt(server, taken))

    def _adopt(self, server: HandlerServer, taken: list[tuple[Offered, int]]) -> None:
        for offered, fd in taken:
            server.adopt(fd, offered.host, offered.port, offered.number)

    def _want_bus(self) -> None:
        self._link.send(WantBus())

    def _orphaned(self) -> None:
        """The link has ended: the primary is dead, and nobody would see this worker any more."""
        logger.error("the primary is gone: exiting")
        # A handler that blocks the loop must not keep the process: the alarm needs no loop.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, ORPHAN_SECONDS)
        self.loop.create_task(self._exit_orphaned())

    async def _exit_orphaned(self) -> None:
        if self._server is not None:
            await self._server.abort()
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
        if self._link.outbox == 0:
            self._link.send(Beat(serial, self._stats()))

    def _stats(self) -> Stats:
        server, bus = self._server, self._bus
        if server is None or bus is None:
            return Stats(cpu_seconds=time.process_time(), rss_bytes=_rss_bytes())
        return Stats(
            connections=len(server.connections),
            adopted=server.adopted,
            messages_in=server.messages_in,
            messages_out=server.messages_out,
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
        )


def _control_socket(config: Config) -> str:
    # Absolute, because the target may change its folder.
    return os.path.abspath(config.operate.control_socket or default_path(os.getppid()))


def _make_context(config: Config) -> Context | None:
    """Return the TLS context; files that were well when the primary looked at them may be no longer."""
    try:
        return make_context(config.tls)
    except StartError as exc:
        raise WorkerFailed(BootFailed(exc.exit_code, str(exc), "")) from exc


def _rss_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no procfs, or no descriptor left: the peak is what there is, in KiB or, on macOS, in bytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the primary dies: the belt to the link's end, for a loop that is stuck."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _ignore_signal(_number: int, _frame: object) -> None:
    """Ctrl-C and a TERM to the whole process group reach every process; only the primary decides what they mean."""


def run(link_fd: int) -> int:
    """Run the worker whose end of the link is ``link_fd``; returns the exit code."""
    _die_with_parent()
    signal.signal(signal.SIGINT, _ignore_signal)
    signal.signal(signal.SIGTERM, _ignore_signal)
    # The primary had them blocked when it started this process.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    os.set_inheritable(link_fd, False)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        sock = socket.socket(fileno=link_fd)

        async def live() -> int:
            return await Worker(sock, asyncio.get_running_loop()).run()

        return runner.run(live())
