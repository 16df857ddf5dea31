"""Runs a primary in this process: signals, limits, sockets, and the loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from wscluster import logs
from wscluster.addresses import Address, Tcp, listen_addresses
from wscluster.config import Config
from wscluster.errors import ExitCode, StartError
from wscluster.gateway.binding import Bound, bind, take_inherited
from wscluster.gateway.cpus import count_cpus
from wscluster.gateway.event_helper import start_event_helper
from wscluster.gateway.events import claim_fd
from wscluster.gateway.orphans import OrphanReaper
from wscluster.gateway.output import Output
from wscluster.gateway.primary import Primary
from wscluster.gateway.state import State
from wscluster.gateway.systemd import take_listen_fds
from wscluster.gateway.upgrade import SIGNALS, Upgrade, take_handed
from wscluster.gateway.watch import watching
from wscluster.loops import new_event_loop
from wscluster.tls import make_context

logger = logging.getLogger("wscluster.primary")


def run(config: Config | None, read_config: Callable[[], Config]) -> int:
    """Serve until somebody stops it; returns the exit code (README, exit codes).

    Call it from the main thread: it installs signal handlers, and the workers die with the thread that started them.

    Args:
        config: None where this process goes on for another one, with the configuration of that.
        read_config: Reads the configuration again, at a reload; it raises `ConfigError`.

    Raises:
        StartError: It could not start; the text is one line for a person.
    """
    if sys.platform != "linux":
        raise StartError(f"wscluster needs Linux (SOCK_SEQPACKET links, pidfds), this is {sys.platform}")
    _open_standard_streams()
    handed = take_handed()
    state = None
    if handed is not None:
        state, config = handed.state, handed.config
    assert config is not None
    operate = config.operate
    if operate.ready_fd is not None:
        claim_fd(operate.ready_fd)
    output = Output(operate.log_file, operate.log_format, None if state is None else state.output)
    logs.set_up(operate.log_level, "primary", operate.log_format, stream=output, colour=output.colour)
    make_context(config.tls)  # the workers make their own; what is wrong is said before anything is bound
    if config.fleet.workers is None:
        config = replace(config, fleet=replace(config.fleet, workers=count_cpus()))
    # Before the loop opens descriptors of its own.
    addresses = () if state is not None else _addresses(config)
    inherited = take_inherited(addresses)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        try:
            return runner.run(_Life(config, addresses, inherited, read_config, output, state).live())
        finally:
            output.close()
            for bound in inherited.values():
                bound.close()


@dataclass(slots=True)
class _Life:
    """A primary from its first signal handler to its end.

    Args:
        state: What the process before has left.
    """

    config: Config
    addresses: Sequence[Address]
    inherited: dict[int, Bound]
    read_config: Callable[[], Config]
    output: Output
    state: State | None
    primary: Primary | None = None
    upgrade: Upgrade | None = None
    stop_asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def live(self) -> int:
        """Return the exit code."""
        loop = asyncio.get_running_loop()
        self.output.attach(loop)
        # First of all: as process 1 of a container a signal without a handler is ignored.
        self._take_signals(loop)
        _raise_fd_limit()
        config, state = self.config, self.state
        if config.bus.redis_url is not None and state is None:
            await _probe_bus(config.bus.redis_url, config.bus.bus_timeout, self.stop_asked)
        async with contextlib.AsyncExitStack() as at_fault:
            metrics = _bind_metrics(config, state)
            if metrics is not None:
                at_fault.callback(metrics.close)
            helper = await start_event_helper(config, loop, self.output, None if state is None else state.helper)
            if helper is not None:
                at_fault.push_async_callback(helper.close)
            await at_fault.enter_async_context(watching(config, self._reload))
            bound = bind(self.addresses, self.inherited)
            if self.stop_asked.is_set():
                for one in bound:
                    one.close()
                return ExitCode.OK
            self.primary = Primary(config, bound, loop, self.read_config, self.output, metrics, helper, state)
            self.upgrade = Upgrade(self.primary)
            at_fault.push_async_callback(self.upgrade.close)
            if state is not None:
                # They may have come while the process before gave way to this one.
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            if os.getpid() == 1:
                OrphanReaper(loop, self._child_pids)
            return await self.primary.run()

    def _take_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        loop.add_signal_handler(signal.SIGINT, self._stop)
        loop.add_signal_handler(signal.SIGQUIT, self._force)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        loop.add_signal_handler(signal.SIGTTIN, self._scale, "+1")
        loop.add_signal_handler(signal.SIGTTOU, self._scale, "-1")
        loop.add_signal_handler(signal.SIGUSR1, self.output.reopen)
        loop.add_signal_handler(signal.SIGUSR2, self._upgrade)

    def _child_pids(self) -> set[int]:
        assert self.primary is not None
        assert self.upgrade is not None
        return self.primary.child_pids() | {self.upgrade.trial_pid or 0}

    def _stop(self) -> None:
        self.stop_asked.set()
        if self.primary is not None:
            self.primary.stop()

    def _force(self) -> None:
        self.stop_asked.set()
        if self.primary is not None:
            self.primary.force()

    def _reload(self) -> None:
        if self.primary is not None:
            self.primary.operations.reload()

    def _scale(self, change: str) -> None:
        if self.primary is not None:
            self.primary.scale(change)

    def _upgrade(self) -> None:
        if self.upgrade is not None:
            self.upgrade.ask()


def _bind_metrics(config: Config, state: State | None) -> Bound | None:
    """Bind the metrics port before anything serves, or go on with it; None without ``--metrics``.

    Raises:
        StartError: It cannot be bound.
    """
    if state is not None:
        return None if state.metrics is None else Bound(socket.socket(fileno=state.metrics))
    if not config.operate.metrics:
        return None
    operate = config.operate
    (first, *others) = bind([Tcp(operate.metrics_address, operate.metrics_port)], {})
    for other in others:
        other.close()
    return first


def _addresses(config: Config) -> Sequence[Address]:
    """Return where to listen before any worker has started: a program says so itself, once it runs.

    What systemd has opened comes before ``--host`` and ``--port``, and after what is said more exactly.
    """
    handed = take_listen_fds()
    if config.run:
        return ()
    if handed and not config.listen.bind and config.listen.uds is None and config.listen.fd is None:
        return handed
    return listen_addresses(config.listen)


async def _probe_bus(url: str, timeout: float, stop_asked: asyncio.Event) -> None:
    """Check that the bus answers; a stop that is asked for meanwhile ends the wait.

    Raises:
        StartError: It does not.
    """
    # redis-py takes a tenth of a second to import: only who needs it pays.
    from wscluster.broker import probe

    probing = asyncio.ensure_future(probe(url, timeout))
    stopping = asyncio.ensure_future(stop_asked.wait())
    await asyncio.wait([probing, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if stop_asked.is_set():
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)
    else:
        await probing


def _open_standard_streams() -> None:
    """Open /dev/null for each standard stream that is closed: libuv aborts a process with a socket under its number."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
            os.set_inheritable(fd, True)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def _raise_fd_limit() -> None:
    """Take as many file descriptors as the system allows; the workers inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
