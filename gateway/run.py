"""Runs a primary in this process: signals, limits, sockets, and the loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

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
from wscluster.gateway.systemd import take_listen_fds
from wscluster.gateway.watch import watching
from wscluster.loops import new_event_loop
from wscluster.tls import make_context

logger = logging.getLogger("wscluster.primary")


def run(config: Config, read_config: Callable[[], Config]) -> int:
    """Serve until somebody stops it; returns the exit code (README, exit codes).

    Call it from the main thread: it installs signal handlers, and the workers die with the thread that started them.

    Args:
        read_config: Reads the configuration again, at a reload; it raises `ConfigError`.

    Raises:
        StartError: It could not start; the text is one line for a person.
    """
    if sys.platform != "linux":
        raise StartError(f"wscluster needs Linux (SOCK_SEQPACKET links, pidfds), this is {sys.platform}")
    _open_standard_streams()
    if config.operate.ready_fd is not None:
        claim_fd(config.operate.ready_fd)
    output = Output(config.operate.log_file, config.operate.log_format)
    logs.set_up(config.operate.log_level, "primary", config.operate.log_format, stream=output, colour=output.colour)
    make_context(config.tls)  # the workers make their own; what is wrong is said before anything is bound
    if config.fleet.workers is None:
        config = replace(config, fleet=replace(config.fleet, workers=count_cpus()))
    # Before the loop opens descriptors of its own.
    addresses = _addresses(config)
    inherited = take_inherited(addresses)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        try:
            return runner.run(_live(config, addresses, inherited, read_config, output))
        finally:
            output.close()
            for bound in inherited.values():
                bound.close()


async def _live(
    config: Config,
    addresses: Sequence[Address],
    inherited: dict[int, Bound],
    read_config: Callable[[], Config],
    output: Output,
) -> int:
    loop = asyncio.get_running_loop()
    output.attach(loop)
    primary: Primary | None = None
    stop_asked = asyncio.Event()

    def stop() -> None:
        stop_asked.set()
        if primary is not None:
            primary.stop()

    def force() -> None:
        stop_asked.set()
        if primary is not None:
            primary.force()

    # First of all: as process 1 of a container a signal without a handler is ignored.
    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
    loop.add_signal_handler(signal.SIGQUIT, force)
    loop.add_signal_handler(signal.SIGUSR1, output.reopen)
    loop.add_signal_handler(signal.SIGUSR2, _ignore, signal.SIGUSR2)

    def reload() -> None:
        if primary is not None:
            primary.operations.reload()

    def scale(change: str) -> None:
        if primary is not None:
            primary.scale(change)

    loop.add_signal_handler(signal.SIGHUP, reload)
    loop.add_signal_handler(signal.SIGTTIN, scale, "+1")
    loop.add_signal_handler(signal.SIGTTOU, scale, "-1")
    _raise_fd_limit()
    if config.bus.redis_url is not None:
        await _probe_bus(config.bus.redis_url, config.bus.bus_timeout, stop_asked)
    async with contextlib.AsyncExitStack() as at_fault:
        metrics = _bind_metrics(config)
        if metrics is not None:
            at_fault.callback(metrics.close)
        helper = await start_event_helper(config, loop)
        if helper is not None:
            at_fault.push_async_callback(helper.close)
        await at_fault.enter_async_context(watching(config, reload))
        bound = bind(addresses, inherited)
        if stop_asked.is_set():
            for one in bound:
                one.close()
            return ExitCode.OK
        primary = Primary(config, bound, loop, read_config, output, metrics, helper)
        if os.getpid() == 1:
            OrphanReaper(loop, primary.child_pids)
        return await primary.run()


def _bind_metrics(config: Config) -> Bound | None:
    """Bind the metrics port before anything serves; None without ``--metrics``.

    Raises:
        StartError: It cannot be bound.
    """
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


def _ignore(number: signal.Signals) -> None:
    logger.warning("%s ignored: this version cannot do what it asks for; TERM or INT stops it", number.name)


def _raise_fd_limit() -> None:
    """Take as many file descriptors as the system allows; the workers inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
