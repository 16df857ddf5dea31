"""Boots a worker: what it serves, from the first packet to the end of the drain."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import io
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping

from wscluster import logs
from wscluster.config import Config, counts_open, from_json, value_for
from wscluster.errors import ExitCode, StartError, TargetError
from wscluster.link import receive_first
from wscluster.log_text import sign_worker
from wscluster.loops import new_event_loop
from wscluster.packets import BootFailed, Drain, Start
from wscluster.tls import Context, make_context
from wscluster.workers.age import ready_within
from wscluster.workers.asgi_log import AsgiLog
from wscluster.workers.endings import Endings
from wscluster.workers.giving_back import GivingBack
from wscluster.workers.serve import HandlerServer
from wscluster.workers.service import Service
from wscluster.workers.target import App, Target, load_target, user_traceback
from wscluster.workers.worker import Worker, WorkerFailed

PR_SET_PDEATHSIG = 1

logger = logging.getLogger("wscluster.worker")


class Boot:
    """Serves a target on a worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._config = worker.config
        self._loop = worker.loop
        self._leave_by: float | None = None
        self._ready_by = worker.loop.time() + ready_within(worker.config.fleet.worker_startup_timeout)

    async def run(self) -> int:
        """Live to the end of the drain; returns the exit code."""
        worker = self._worker
        worker.enter()
        try:
            tls = _make_context(self._config)
            log = AsgiLog(
                sign(worker), self._config.operate.log_level,
                access_log=value_for("ASGI", self._config.operate, "access_log"),
            )  # fmt: skip
            target = self._load()
            if isinstance(target, App):
                await self._serve_app(target, tls, log)
            else:
                async with self._lifespan(target):
                    await self._serve_handler(target, tls)
        except WorkerFailed as failed:
            worker.link.send(failed.packet)
            return failed.packet.exit_code
        finally:
            await worker.close()
        return ExitCode.OK

    def _load(self) -> Target | App:
        try:
            target = load_target(self._config)
        except TargetError as exc:
            raise WorkerFailed(BootFailed(ExitCode.TARGET, str(exc), exc.traceback)) from exc
        # Now its own logging is set up, where it does that.
        logs.guard_root(sign(self._worker))
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
        self._worker.this_worker.state = state if state is not None else {}
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

    async def _serve_handler(self, target: Target, tls: Context | None) -> None:
        config, worker = self._config, self._worker
        server = HandlerServer(
            target, config.websocket, worker.bus, worker.this_worker.slot, self._loop,
            handshake=config.handshake, tls=tls, access_log=value_for("handlers", config.operate, "access_log"),
        )  # fmt: skip
        if counts_open(config.listen):
            server.endings = Endings(worker.link, self._loop)
        server.giving_back = GivingBack(worker.link, server.check_idle)
        drain = await self._until_drain(server)
        self._leave_by = self._loop.time() + drain.timeout
        worker.bus.end_subscriptions()
        await server.drain(drain.code, drain.reason, drain.timeout, drain.rate)
        server.stop_deadlines()

    async def _serve_app(self, app: App, tls: Context | None, log: AsgiLog) -> None:
        try:
            import httptools  # noqa: F401

            from wscluster.workers.asgi import AsgiServer
        except ModuleNotFoundError as exc:
            if exc.name not in ("uvicorn", "httptools"):
                raise
            reason = f"{self._config.target!r} is an ASGI app: pip install 'wscluster[asgi]'"
            raise WorkerFailed(BootFailed(ExitCode.NOT_STARTED, reason, "")) from None
        server = AsgiServer(app, self._worker, tls, log)
        await server.start(self._ready_by)
        drain = await self._until_drain(server)
        if not await server.drain(drain.code, drain.timeout, drain.rate):
            # Its tasks may swallow their cancellation, and its threads may never return.
            await self._worker.close()
            logging.shutdown()
            sys.stdout.flush()
            os._exit(ExitCode.OK)

    async def _until_drain(self, service: Service) -> Drain:
        # What boot left behind lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        self._worker.ready(service)
        return await self._worker.drain_asked


def sign(worker: Worker) -> str:
    """Return who signs the lines of the log."""
    this = worker.this_worker
    return sign_worker(this.id, this.slot, this.phase)


def _make_context(config: Config) -> Context | None:
    """Return the TLS context; files that were well when the primary looked at them may be no longer."""
    try:
        return make_context(config.tls)
    except StartError as exc:
        raise WorkerFailed(BootFailed(exc.exit_code, str(exc), "")) from exc


def _die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the primary dies: the belt to the link's end, for a loop that is stuck."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _ignore_signal(_number: int, _frame: object) -> None:
    """Ctrl-C and a TERM to the whole process group reach every process; only the primary decides what they mean."""


def run(link_fd: int) -> int:
    """Run the worker whose end of the link is ``link_fd``; returns the exit code."""
    _die_with_parent()
    os.set_inheritable(link_fd, False)
    sock = socket.socket(fileno=link_fd)
    start = receive_first(sock)
    if start is None:  # the primary has ended
        return ExitCode.FAILED
    config = from_json(start.config)
    if config.reload.reload:
        # A file that is saved twice within a second, with the same size, would be taken for the one of before.
        sys.dont_write_bytecode = True
    who = sign_worker(start.worker, start.slot, start.phase)
    logs.set_up(config.operate.log_level, who, config.operate.log_format, colour=start.colour)
    # A pipe would keep what is printed back until there is enough of it.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    if config.run:
        from wscluster.workers.program import Program

        return Program(sock, start, config).run()
    signal.signal(signal.SIGINT, _ignore_signal)
    signal.signal(signal.SIGTERM, _ignore_signal)
    # The primary had these blocked when it started this process, and more of them in the middle of an upgrade.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return _run_target(sock, start, config)


def _run_target(sock: socket.socket, start: Start, config: Config) -> int:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:

        async def live() -> int:
            return await Boot(Worker(sock, start, config, asyncio.get_running_loop())).run()

        return runner.run(live())
