"""The process that calls the function of ``--on-event``: what it does, and how long it takes, nobody else feels."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from typing import Any

from wscluster.config import Config
from wscluster.errors import ExitCode, StartError
from wscluster.gateway.carried import Fd
from wscluster.gateway.child import Child
from wscluster.gateway.events import EventLog
from wscluster.gateway.output import ON_EVENT, Output
from wscluster.gateway.state import HelperState

START_SECONDS = 30.0
"""What the function's module gets to be imported."""
END_SECONDS = 2.0
"""What the function gets for the last events."""
FIRST_BACKOFF, MAX_BACKOFF = 0.5, 30.0

logger = logging.getLogger("wscluster.primary")


class EventHelper:
    """Starts the process, hands events on, and starts it again where it ends by itself.

    Up to 1,024 events wait for a function that is slow; later ones are lost, and that is said once.
    """

    def __init__(self, function: str, folder: str, loop: asyncio.AbstractEventLoop, output: Output) -> None:
        self._output = output
        self._function = function
        self._folder = os.path.abspath(folder)
        self._loop = loop
        self._child: Child | None = None
        self._input = -1
        self._events = EventLog(None, loop)
        self._timer: asyncio.TimerHandle | None = None
        self._failures = 0
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Process id; None where it does not run."""
        return None if self._child is None else self._child.pid

    async def start(self) -> None:
        """Start the process; returns when the function is imported.

        Raises:
            StartError: It cannot be; exit code 4, or 3 where it takes too long.
        """
        told = self._spawn()
        ready: asyncio.Future[bytes] = self._loop.create_future()

        def read() -> None:
            self._loop.remove_reader(told)
            if not ready.done():
                ready.set_result(os.read(told, 4096))

        self._loop.add_reader(told, read)
        try:
            async with asyncio.timeout(START_SECONDS):
                said = (await ready).decode(errors="replace").strip()
        except TimeoutError:
            self._kill()
            raise StartError(f"--on-event {self._function}: not imported within {START_SECONDS:g} s") from None
        finally:
            self._loop.remove_reader(told)
            os.close(told)
        if said != "ok":
            reason = said.removeprefix("failed ") or "its process ended before it was imported"
            raise StartError(f"--on-event {self._function}: {reason}", ExitCode.TARGET)

    def carry(self) -> HelperState:
        """Return what the next process needs to go on with this one's."""
        child, pipe = (None, None) if self._child is None else (self._child.carry(), Fd(self._input))
        return HelperState(child, pipe, self._events.carry(), self._failures)

    def resume(self, state: HelperState) -> None:
        """Go on with the process that the primary before has started."""
        self._failures = state.failures
        if state.child is None or state.input is None:
            self._timer = self._loop.call_later(FIRST_BACKOFF, self._start_again)
            return
        self._child, self._input = Child.resume(state.child), state.input
        self._loop.add_reader(self._child.pidfd, self._exited)
        self._events = EventLog(self._input, self._loop)
        self._events.resume(state.waiting)

    def event(self, event: str, facts: dict[str, Any]) -> None:
        """Hand one event on."""
        self._events.emit(event, **facts)

    async def close(self) -> None:
        """Let the function see what it was sent, for a while, and end the process."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._child is None:
            return
        await self._events.drain(END_SECONDS)
        self._close_input()
        ended: asyncio.Future[None] = self._loop.create_future()
        self._loop.remove_reader(self._child.pidfd)
        self._loop.add_reader(self._child.pidfd, _set, ended)
        await asyncio.wait([ended], timeout=END_SECONDS)
        if not ended.done():
            logger.warning("--on-event %s did not return: its process is killed", self._function)
        self._kill()

    def _spawn(self) -> int:
        told, tell = os.pipe()
        reading, self._input = os.pipe2(os.O_CLOEXEC)
        ours = [reading, tell]
        try:
            said = self._output.pipes(None)
            ours += said
            popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "wscluster.workers.on_event", self._function, self._folder, str(tell)],
                stdin=reading,
                stdout=said[0],
                stderr=said[1],
                pass_fds=[tell],
            )
            self._child = Child.of(popen)
        except OSError:
            os.close(told)
            self._close_input()
            raise
        finally:
            for fd in ours:
                os.close(fd)
        self._loop.add_reader(self._child.pidfd, self._exited)
        self._events = EventLog(self._input, self._loop)
        return told

    def _exited(self) -> None:
        status = self._kill()
        if self._closed:
            return
        delay = min(MAX_BACKOFF, FIRST_BACKOFF * 2.0**self._failures)
        self._failures = min(self._failures + 1, 16)
        logger.error("the process of --on-event ended with status %d; starting it again in %.1f s", status, delay)
        self._timer = self._loop.call_later(delay, self._start_again)

    def _start_again(self) -> None:
        self._timer = None
        try:
            os.close(self._spawn())
        except OSError as exc:
            logger.error("the process of --on-event cannot be started: %s", exc)
            self._timer = self._loop.call_later(MAX_BACKOFF, self._start_again)

    def _close_input(self) -> None:
        self._events.close()
        if self._input >= 0:
            os.close(self._input)
            self._input = -1

    def _kill(self) -> int:
        assert self._child is not None
        child, self._child = self._child, None
        self._loop.remove_reader(child.pidfd)
        child.kill()
        self._close_input()
        status = child.reap()
        self._output.exited(ON_EVENT)
        return status


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def start_event_helper(
    config: Config, loop: asyncio.AbstractEventLoop, output: Output, state: HelperState | None
) -> EventHelper | None:
    """Start what ``--on-event`` asks for, or go on with it; None without it.

    Raises:
        StartError: The function cannot be imported.
    """
    if config.operate.on_event is None:
        return None
    helper = EventHelper(config.operate.on_event, config.operate.app_dir, loop, output)
    if state is None:
        await helper.start()
    else:
        helper.resume(state)
    return helper
