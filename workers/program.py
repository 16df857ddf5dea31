"""The life of a worker of `wscluster run`: a program runs as `__main__`, and whatever loop it makes meets the link."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import errno
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from wscluster import context
from wscluster.config import Config
from wscluster.errors import ExitCode, TargetError
from wscluster.packets import BootFailed, Drain, Start, encode
from wscluster.workers import program_faults
from wscluster.workers.age import ready_within
from wscluster.workers.fed_server import FedServer, ProtocolFactory
from wscluster.workers.listening import Listening, Place
from wscluster.workers.loop import feed_loops
from wscluster.workers.main_module import brief, find_main_module, run_main_module
from wscluster.workers.program_server import ProgramServer
from wscluster.workers.subscription import Subscription
from wscluster.workers.target import user_traceback
from wscluster.workers.watch import Watch, end_children
from wscluster.workers.worker import ThisWorker, Worker, control_socket_of

if TYPE_CHECKING:
    from wscluster.api import DataLike

SERVICE_RESTART = 1012
LAST_WORD_SECONDS = 1.0
"""So long a worker that ends waits for a primary that does not read."""


class Program:
    """Runs the program of one worker.

    The link belongs to the loop that first listens, publishes or subscribes, and to the next one once that is closed.

    Args:
        sock: The worker's end of the link.
        start: The first packet of the link.
        config: What it says.
    """

    def __init__(self, sock: socket.socket, start: Start, config: Config) -> None:
        self.this_worker = ThisWorker(start)
        self.control_socket = control_socket_of(config)
        self._sock = sock
        self._start = start
        self._config = config
        self._listening = Listening()
        self._server = ProgramServer(config, self._listening, self._ready, self._unfit)
        limit = config.fleet.worker_startup_timeout
        self._watch = Watch(ready_within(limit), lambda: self._asked, self._hopeless, self._late)
        self._worker: Worker | None = None
        # The loop's own end of the link: it is closed with the loop.
        self._link_sock: socket.socket | None = None
        self._asked = False
        self._forked = False
        self._ended = False
        self._last_word = threading.Lock()

    def run(self) -> int:
        """Run the program to its end; returns the exit code.

        Raises:
            SystemExit: The program raised it after it had been ready.
        """
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # The primary had these blocked when it started this process, and more of them in the middle of an upgrade.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        context.enter(self)
        os.register_at_fork(after_in_child=self._leave_child)
        feed_loops(self)
        self._watch.begin()
        words = self._config.run
        try:
            main = find_main_module(words)
        except TargetError as exc:
            return self._not_started(BootFailed(ExitCode.TARGET, str(exc), exc.traceback))
        raised: BaseException | None = None
        try:
            run_main_module(main, words[2:] if words[0] == "-m" else words[1:])
        except BaseException as exc:
            raised = exc
            self._show(exc)
        if self._server.is_ready or not _has_threads():
            return self._over(raised)
        # One of them may be what listens. Python waits for them before it calls this, and wakes those of executors.
        atexit.register(self._over_at_last, raised)
        return ExitCode.OK if raised is None else ExitCode.FAILED

    # What the program asks of `wscluster`

    async def publish(self, room: str, message: DataLike) -> str:
        return await self._attach(asyncio.get_running_loop()).publish(room, message)

    def subscribe(self, rooms: tuple[str, ...], max_queue: int) -> Subscription:
        return self._attach(asyncio.get_running_loop()).subscribe(rooms, max_queue)

    # What its loops ask

    async def listen(
        self,
        loop: asyncio.AbstractEventLoop,
        factory: ProtocolFactory,
        places: Sequence[Place],
        backlog: int,
        options: dict[str, Any],
    ) -> FedServer:
        """Return a server for ``places`` that does not serve yet.

        Raises:
            OSError: The primary cannot bind one of them, or this program listens there already.
            RuntimeError: Another loop is served, or this process was forked.
        """
        worker = self._attach(loop)
        if not self._server.is_ready and all(place.path for place in places):
            self._check_manager()
        self._asked = True
        taken = await self._listening.take(worker, places, backlog)
        return self._server.make(worker, factory, taken, options)

    def refuse_socket(self) -> None:
        """End the boot, because the program has bound a TCP socket itself.

        Raises:
            RuntimeError: It was ready before, and goes on.
        """
        self._check_not_forked()
        if self._server.is_ready:
            raise RuntimeError(program_faults.OWN_SOCKET)
        self._hopeless(program_faults.OWN_SOCKET)

    def loop_closes(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the link from ``loop``, which is about to be closed; another may have it."""
        if not self._forked and self._worker is not None and self._worker.loop is loop:
            self._server.loop_closes(loop)
            self._worker.leave()
            self._worker = None

    def _attach(self, loop: asyncio.AbstractEventLoop) -> Worker:
        worker = self._worker
        if worker is None:
            self._check_not_forked()
            self._link_sock = self._sock.dup()
            self._worker = worker = Worker(self._link_sock, self._start, self._config, loop)
            worker.on_bound = self._listening.answered
            worker.drain_asked.add_done_callback(self._drain)
            if self._server.is_ready:
                worker.resume(self._server)
        elif worker.loop is not loop:
            raise RuntimeError(
                "one event loop of a program is served, and another one that is still open listens or publishes: "
                "do it all on that one, or close it first"
            )
        return worker

    def _check_manager(self) -> None:
        """A manager of processes may use a loop for its own control socket, as gunicorn does, and for nothing else."""
        seen = self._watch.seen()
        if seen.manager in program_faults.MANAGERS.values():
            self._hopeless(program_faults.explain(seen))

    def _check_not_forked(self) -> None:
        if self._forked:
            raise RuntimeError(
                "this process was forked by a program under `wscluster run`: only the program's first process "
                f"listens; for a server that starts processes {program_faults.SERVE}"
            )

    def _leave_child(self) -> None:
        """In a child after a fork: the link is its parent's alone, who may die before it."""
        self._forked = True
        self._worker = None
        self._watch.forget()
        context.enter(None)
        self._sock.close()
        if self._link_sock is not None:
            self._link_sock.close()

    # Ready, and its end

    def _ready(self) -> None:
        self._watch.end()
        assert self._worker is not None
        self._worker.ready(self._server)

    def _drain(self, asked: asyncio.Future[Drain]) -> None:
        if asked.cancelled():
            return
        self._server.draining = True
        if asked.result().code == SERVICE_RESTART and self._worker is not None:
            self._server.give_back(self._worker.link)
        self._server.on_idle = self._end
        if self._server.connections:
            asked.get_loop().call_later(asked.result().timeout, self._end)
        else:
            self._end()

    def _end(self) -> None:
        """Ask the program to end, as the system does: a SIGTERM where it waits for one, else what Ctrl-C sends."""
        if self._ended:
            return
        self._ended = True
        if self._worker is not None:
            self._worker.bus.end_subscriptions()
        handled = signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN, None)
        os.kill(os.getpid(), signal.SIGTERM if handled else signal.SIGINT)

    def _show(self, exc: BaseException) -> None:
        """Show what the program raised while it ran, as Python does."""
        if not self._server.is_ready or isinstance(exc, SystemExit):
            return
        if not (self._ended and isinstance(exc, KeyboardInterrupt)):
            own = exc.with_traceback(_own_part(exc))
            sys.excepthook(type(own), own, own.__traceback__)

    def _over_at_last(self, raised: BaseException | None) -> None:
        if not self._server.is_ready:
            self._over(raised)

    def _over(self, raised: BaseException | None) -> int:
        if self._forked:
            return self._child_over(raised)
        if self._ended:
            return ExitCode.OK
        if self._server.is_ready:
            if isinstance(raised, SystemExit):
                raise raised
            return ExitCode.OK if raised is None else ExitCode.FAILED
        error = self._listening.error
        if raised is not None and raised is error:
            packet = BootFailed(ExitCode.NOT_STARTED, _reason(error), "")
        elif raised is None or isinstance(raised, SystemExit):
            status = None if raised is None else raised.code
            told = "" if error is None else _reason(error)
            reason = program_faults.explain_ended(status, told, listened=bool(self._listening.asked))
            packet = BootFailed(ExitCode.NOT_STARTED, reason, "")
        elif _is_taken(raised) and self._watch.last_bind is not None:
            packet = BootFailed(
                ExitCode.NOT_STARTED, program_faults.explain_taken(self._watch.last_bind), "", hopeless=True
            )
        else:
            packet = BootFailed(ExitCode.TARGET, f"the program raised {brief(raised)}", user_traceback(raised))
        return self._not_started(packet)

    def _child_over(self, raised: BaseException | None) -> int:
        """A child that the program has forked came to the program's end: it ends as any other process."""
        if raised is None:
            return ExitCode.OK
        if isinstance(raised, SystemExit):
            raise raised
        if not self._server.is_ready:  # else `_show` has
            own = raised.with_traceback(_own_part(raised))
            sys.excepthook(type(own), own, own.__traceback__)
        return ExitCode.FAILED

    # Why it cannot become ready

    def _hopeless(self, reason: str) -> None:
        self._fail(BootFailed(ExitCode.NOT_STARTED, reason, "", hopeless=True))

    def _late(self, seen: program_faults.Seen) -> None:
        limit = self._config.fleet.worker_startup_timeout
        reason = program_faults.explain_late(seen, limit, self._listening.asked)
        self._fail(BootFailed(ExitCode.NOT_STARTED, reason, "", hopeless=seen.serves_itself))

    def _unfit(self, missing: list[int]) -> None:
        listening = self._listening
        reason = program_faults.explain_difference(listening.asked, missing, listening.known)
        self._fail(BootFailed(ExitCode.NOT_STARTED, reason, ""))

    def _not_started(self, packet: BootFailed) -> int:
        """Send the last word of a program that has ended by itself."""
        self._last_word.acquire()
        self._watch.end()
        _send_last(self._sock, packet)
        return packet.exit_code

    def _fail(self, packet: BootFailed) -> NoReturn:
        """End the process and the processes that the program has started, from any thread, whatever it does."""
        self._last_word.acquire()
        _send_last(self._sock, packet)
        end_children()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # the program may have closed it
                stream.flush()
        os._exit(packet.exit_code)


def _send_last(sock: socket.socket, packet: BootFailed) -> None:
    room = select.poll()
    room.register(sock, select.POLLOUT)
    room.poll(LAST_WORD_SECONDS * 1000)
    with contextlib.suppress(OSError):  # the primary is gone, or does not read: it finds out by the exit status
        sock.send(encode(packet), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)


def _has_threads() -> bool:
    """Say whether Python waits for threads before it ends."""
    return any(not thread.daemon for thread in threading.enumerate() if thread is not threading.current_thread())


def _own_part(exc: BaseException) -> Any:
    part = exc.__traceback__
    while part is not None and os.path.dirname(part.tb_frame.f_code.co_filename) == os.path.dirname(__file__):
        part = part.tb_next
    return part


def _is_taken(exc: BaseException) -> bool:
    return isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE


def _reason(error: OSError) -> str:
    return " ".join((error.strerror or str(error)).split())
