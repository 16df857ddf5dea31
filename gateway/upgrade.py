"""USR2: this process executes itself anew, with the code that is installed now, and goes on with all that it has.

The pid stays, and so workers, listeners and connections do. Two things are never done: an execve from another thread
than the main one, which the kernel takes for the death of the workers' parent (PR_SET_PDEATHSIG), and one before the
same code has read the same state in a process of its own and found nothing wrong with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from wscluster.config import Config, from_json
from wscluster.errors import StartError
from wscluster.gateway.carried import InvalidState, decode, encode, find_fds
from wscluster.gateway.child import Child
from wscluster.gateway.primary import Primary
from wscluster.gateway.state import State
from wscluster.gateway.takeover import carry
from wscluster.packets import PROTOCOL
from wscluster.sources import STATE_VARIABLE
from wscluster.tls import make_context

TRIAL_SECONDS = 30.0
SIGNALS = frozenset({
    signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1,
    signal.SIGUSR2,
})  # fmt: skip
"""They wait, blocked, until the next process has handlers for them."""
HEARD_TURNS = 4
"""Of the loop: it reads the number of a signal in one, and calls its handler in the next."""
MAX_REASON_CHARS = 500
STANDARD = (0, 1, 2)
"""Every process has them."""
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

logger = logging.getLogger("wscluster.primary")


@dataclass(frozen=True, slots=True)
class Handed:
    """What the process before has left to this one."""

    state: State
    config: Config


def take_handed() -> Handed | None:
    """Return what this process is to go on with; None where it begins anew. A trial ends here, with exit code 0.

    Raises:
        StartError: It cannot be gone on with; the text says why.
    """
    what, _, number = os.environ.pop(STATE_VARIABLE, "").partition(":")
    if not what:
        return None
    try:
        state = _read(int(number))
        if (os.getppid() if what == "try" else os.getpid()) != state.pid:
            raise InvalidState(f"it is that of process {state.pid}")
        if state.protocol != PROTOCOL:
            raise InvalidState(f"its workers speak version {state.protocol} of the link, this code speaks {PROTOCOL}")
        handed = Handed(state, from_json(state.config))
    except (ValueError, OSError, TypeError, KeyError, AttributeError) as exc:
        raise StartError(f"cannot go on with the state of the running primary: {exc}") from exc
    make_context(handed.config.tls)
    if what == "try":
        if state.metrics is not None:
            import wscluster.gateway.metrics  # noqa: F401
        os._exit(0)  # not one line of the program behind `wscluster.serve()`
    for fd in find_fds(state):
        if fd not in STANDARD:
            os.set_inheritable(fd, False)
    return handed


class Upgrade:
    """Carries out upgrades of ``primary``, one at a time.

    Attributes:
        trial_pid: Process id of the trial that is under way, or None.
    """

    def __init__(self, primary: Primary) -> None:
        self.trial_pid: int | None = None
        self._primary = primary
        self._task: asyncio.Task[None] | None = None
        self._stepped = asyncio.Event()
        primary.on_step = self._stepped.set

    def ask(self) -> None:
        """Begin; while one is under way that is all that is said."""
        if self._task is not None and not self._task.done():
            logger.info("USR2: an upgrade is under way")
            return
        self._task = self._primary.loop.create_task(self._run())

    async def close(self) -> None:
        """End a trial that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        primary = self._primary
        logger.info("upgrading: the new code is tried first")
        try:
            reason = self._not_any_more() or await self._try_out() or await self._when_quiet()
        except Exception as exc:
            logger.exception("what has failed in the upgrade")
            reason = f"{type(exc).__name__}: {exc}"
        logger.error("not upgraded, everything goes on as before: %s", reason)
        primary.events.emit("upgrade_failed", reason=reason)

    async def _try_out(self) -> str:
        """Let the new code read this state in a process of its own; returns why it cannot, or nothing."""
        loop = self._primary.loop
        memfd, said = _write(carry(self._primary)), os.memfd_create("wscluster-trial", os.MFD_CLOEXEC)
        ended: asyncio.Future[None] = loop.create_future()
        try:
            child = _start_trial(memfd, said)
            self.trial_pid = child.pid
            loop.add_reader(child.pidfd, _set, ended)
            try:
                async with asyncio.timeout(TRIAL_SECONDS):
                    await ended
            except TimeoutError:
                return f"the new code has not read the state within {TRIAL_SECONDS:g} s"
            finally:
                loop.remove_reader(child.pidfd)
                child.kill()
                status = child.reap()
                self.trial_pid = None
            lines = os.pread(said, 1 << 20, 0).decode(errors="replace").strip().splitlines()
        except OSError as exc:
            return f"the new code cannot be tried: {exc.strerror}"
        finally:
            os.close(memfd)
            os.close(said)
        if not status:
            return ""
        last = lines[-1].removeprefix("wscluster: ")[-MAX_REASON_CHARS:] if lines else "it said nothing"
        return f"the new code ends with status {status}: {last}"

    async def _when_quiet(self) -> str:
        """Replace this process as soon as nobody waits for what it alone knows; returns why that was not possible."""
        primary, told = self._primary, ""
        while True:
            while (busy := self._busy()) and not self._not_any_more():
                if busy != told:
                    logger.info("the upgrade waits: %s", busy)
                    told = busy
                self._stepped.clear()
                await self._stepped.wait()
            primary.pages.hurry(on=True)
            await primary.control.park()
            if primary.metrics is not None:
                await primary.metrics.pause()
            with _signals_blocked():
                # Those that have come before are in the loop, and would end there: they are heard first.
                for _ in range(HEARD_TURNS):
                    await asyncio.sleep(0)
                reason = self._not_any_more()
                if not reason and not self._busy():
                    reason = self._replace()
            primary.pages.hurry(on=False)
            primary.control.go_on()
            if primary.metrics is not None and not primary.finished:
                await primary.metrics.start()
            if reason:
                return reason

    def _not_any_more(self) -> str:
        fleet = self._primary.fleet
        return "everything is about to end" if fleet.stopping or fleet.exit_code is not None else ""

    def _busy(self) -> str:
        primary = self._primary
        if primary.fleet.rolling is not None:
            return "a reload, or the replacement of a worker, is under way"
        if primary.operations.waited_for:
            return "somebody waits for what comes of a scale or a drain"
        return "a program is about to listen" if primary.asking.busy else ""

    def _replace(self) -> str:
        """Execute the new code in this process, in the main thread, as the loop is; returns only where that fails."""
        primary = self._primary
        state = carry(primary)
        fds = [fd for fd in find_fds(state) if fd not in STANDARD]
        memfd = _write(state)
        environment = dict(os.environ) | primary.notifier.environment | {STATE_VARIABLE: f"go:{memfd}"}
        try:
            for fd in (*fds, memfd):
                os.set_inheritable(fd, True)
            sys.stdout.flush()
            sys.stderr.flush()
            os.execve(sys.executable, _command(), environment)
        except (OSError, ValueError, TypeError) as exc:
            for fd in fds:
                with contextlib.suppress(OSError):  # the one that is not open may be what was wrong
                    os.set_inheritable(fd, False)
            os.close(memfd)
            return f"{sys.executable} cannot be executed with all that is open: {exc}"


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Let signals wait, for the end of this or for the next process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_trial(memfd: int, said: int) -> Child:
    popen = subprocess.Popen(
        _command(), env=dict(os.environ) | {STATE_VARIABLE: f"try:{memfd}"}, pass_fds=[memfd],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
    )  # fmt: skip
    return Child.of(popen)


def _command() -> list[str]:
    # Not the first word of the command line: a name that was found on PATH may mean another Python by now.
    return [sys.executable, *sys.orig_argv[1:]]


def _write(state: State) -> int:
    """Return a memfd with ``state``, which nobody can change."""
    data = json.dumps(encode(state), separators=(",", ":")).encode()
    memfd = os.memfd_create("wscluster-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(memfd, "wb", closefd=False) as file:
            file.write(data)
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(memfd)
        raise
    return memfd


def _read(memfd: int) -> State:
    with os.fdopen(memfd, "rb") as file:
        file.seek(0)
        return decode(State, json.loads(file.read()))


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
