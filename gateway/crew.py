"""The crew: the workers' processes, the links to them, and what each of them said last."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence

from wscluster.gateway.carried import Fd
from wscluster.gateway.child import Child
from wscluster.gateway.log_lines import Origin
from wscluster.gateway.output import Output
from wscluster.gateway.poller import Poller
from wscluster.gateway.spawner import Process, spawn_worker
from wscluster.gateway.state import WorkerState
from wscluster.gateway.status import Figures, Totals
from wscluster.link import Link, link_pair
from wscluster.packets import Beat, Packet, Start

logger = logging.getLogger("wscluster.primary")


class Crew:
    """Starts workers, talks to them, and notices their end; decides nothing.

    Args:
        loop: The primary's event loop.
        config: The configuration as JSON, for every worker that starts; it may be replaced.
        on_packet: Called with a worker's id, each packet of it and the descriptors that came with it, which are the
            callee's; the figures of a `Beat` are kept before.
        on_link_end: Called once when nothing more will come from a worker.
        on_exit: Called with a worker's id, its process id and its exit status (negative: a signal), after its last
            packet and the end of its link.
        output: Takes what the workers write.
        own_groups: Each worker gets a process group of its own.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: str,
        on_packet: Callable[[int, Packet, list[int]], None],
        on_link_end: Callable[[int], None],
        on_exit: Callable[[int, int, int], None],
        output: Output,
        *,
        own_groups: bool = False,
    ) -> None:
        self.totals = Totals()
        self.figures: dict[int, Figures] = {}
        self._loop = loop
        self.config = config
        self._on_packet = on_packet
        self._on_link_end = on_link_end
        self._on_exit = on_exit
        self._output = output
        self._own_groups = own_groups
        self._links: dict[int, Link] = {}
        self._processes: dict[int, Process] = {}
        self.poller = Poller(loop)

    def spawn(self, slot: int, worker: int, phase: int) -> None:
        """Start a worker.

        Raises:
            OSError: It cannot be started.
        """
        streams = self._output.pipes(Origin(worker, slot, phase))
        try:
            child, sock = spawn_worker(streams, own_group=self._own_groups)
        finally:
            for fd in streams:
                os.close(fd)
        logger.debug("worker %d started in slot %d, pid %d", worker, slot, child.pid)
        self._add(worker, child, sock, Figures(child.pid))
        self._links[worker].send(Start(slot, worker, phase, self.config, self._output.colour))

    def carry(self) -> dict[int, WorkerState]:
        """Return what the next process needs of each worker."""
        return {
            worker: WorkerState(
                process.child.carry(),
                None if link.closed else Fd(link.fileno()),
                link.waiting(),
                self.figures[worker],
            )
            for worker, process in self._processes.items()
            for link in [self._links[worker]]
        }

    def resume(self, workers: Mapping[int, WorkerState], totals: Totals) -> None:
        """Go on with the workers that the process before has started."""
        self.totals = totals
        for worker, state in workers.items():
            # Of one whose link has ended, only the end of its process is still to come.
            sock = link_pair()[0] if state.link is None else socket.socket(fileno=state.link)
            self._add(worker, Child.resume(state.child), sock, state.figures)
            if state.link is None:
                self._links[worker].close()
            self._links[worker].resume(state.outbox)

    def _add(self, worker: int, child: Child, sock: socket.socket, figures: Figures) -> None:
        self._processes[worker] = Process(
            child, self._loop, lambda status: self._exited(worker, status), own_group=self._own_groups
        )
        self.figures[worker] = figures
        self._links[worker] = Link(
            sock,
            self._loop,
            lambda packet, fds: self._received(worker, packet, fds),
            lambda: self._on_link_end(worker),
        )

    def send(self, worker: int, packet: Packet, fds: Sequence[int] = ()) -> None:
        """Send ``packet`` to ``worker``, with ``fds`` beside it: they stay open until the worker has answered."""
        self._links[worker].send(packet, fds)

    def kill(self, worker: int) -> None:
        """Kill the process of ``worker``, if it has not ended."""
        if worker in self._processes:
            self._processes[worker].kill()

    def receive_all(self) -> None:
        """Read what the workers have said until now."""
        for link in list(self._links.values()):
            link.receive_all()

    def pid(self, worker: int) -> int:
        """Return the process id of ``worker``, which has not ended."""
        return self._processes[worker].pid

    def pids(self) -> set[int]:
        """Return the process ids of all workers that have not ended."""
        return {process.pid for process in self._processes.values()}

    async def poll(self, workers: Iterable[int]) -> None:
        """Ask for figures of now, and wait for a short while until they have come."""
        await self.poller.poll({worker: self._links[worker] for worker in workers})

    def _received(self, worker: int, packet: Packet, fds: list[int]) -> None:
        if isinstance(packet, Beat):
            self.figures[worker].update(packet.stats, self._loop.time())
            self.poller.answered(worker, packet.serial)
        self._on_packet(worker, packet, fds)

    def _exited(self, worker: int, status: int) -> None:
        """The process has ended: read its last words, then forget it."""
        link = self._links[worker]
        link.receive_all()
        if not link.closed:  # a child of the worker holds the other end
            link.close()
            self._on_link_end(worker)
        pid = self._processes.pop(worker).pid
        self.totals.retire(self.figures.pop(worker).stats)
        del self._links[worker]
        self.poller.forget(worker)
        self._output.exited(worker)
        self._on_exit(worker, pid, status)


def describe_status(status: int) -> str:
    """Return how a process with this exit status ended, in words."""
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
