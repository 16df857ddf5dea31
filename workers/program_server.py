"""What a program serves: all that its loops listen on, fed by the link."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from wscluster.config import Config, counts_open
from wscluster.workers.endings import Endings
from wscluster.workers.fed_server import FedServer, ProtocolFactory
from wscluster.workers.giving_back import GivingBack
from wscluster.workers.service import Figures

if TYPE_CHECKING:
    from wscluster.link import Link
    from wscluster.packets import Offered
    from wscluster.workers.described import Described
    from wscluster.workers.listening import Listening, Taken
    from wscluster.workers.worker import Worker

SAME_SECONDS = 5.0
"""So long after a worker has begun to serve it must serve all that other workers of the program serve."""


GO_ON_TURNS = 10
"""Turns of its loop that a program gets after it has begun to serve, to ask for the next address that it listens on."""


class ProgramServer:
    """Serves the connections of a program's worker.

    Args:
        listening: What the program listens on.
        on_ready: Called once, when it serves all that is known.
        on_unfit: Called where it does not within `SAME_SECONDS`, with the numbers of the listeners that it lacks.

    Attributes:
        connections: How many are open.
        on_idle: Called whenever the last one has ended.
    """

    def __init__(
        self,
        config: Config,
        listening: Listening,
        on_ready: Callable[[], None],
        on_unfit: Callable[[list[int]], None],
    ) -> None:
        self.draining = False
        self.connections = 0
        self.on_idle: Callable[[], None] | None = None
        self.is_ready = False
        self._config = config
        self._listening = listening
        self._on_ready = on_ready
        self._on_unfit = on_unfit
        self._taken: dict[FedServer, Taken] = {}
        self._serving: dict[int, FedServer] = {}
        self._adopted = 0
        self._worker_id = 0
        self._timer: asyncio.TimerHandle | None = None
        self._turns = 0
        listening.on_answer = self._goes_on

    # What the link asks

    def takes(self, offered: Offered) -> bool:
        """Say whether the program serves the listener of this connection."""
        return offered.listener in self._serving

    def adopt(self, fd: int, offered: Offered) -> None:
        """Make a connection of the socket ``fd``."""
        server = self._serving.get(offered.listener)
        if server is None:  # closed since it was taken
            os.close(fd)
            return
        self.connections += 1
        self._adopted += 1
        server.adopt(fd, offered)

    def figures(self) -> Figures:
        """Return the figures of now; what a message is, only the program knows."""
        return Figures(self.connections, self._adopted)

    def described(self) -> Iterable[Described]:
        """Return each connection; what it speaks, only the program knows."""
        return [one for server in self._taken for one in server.described(self._worker_id)]

    def kick(self, connection: str) -> bool:
        """Close the connection with this id when what is unsent has been sent."""
        for server in self._taken:
            found = server.find(self._worker_id, connection)
            if found is not None:
                found.close()
                return True
        return False

    def give_back(self, link: Link) -> None:
        """Give the connections back to the primary that nobody has read a byte of."""
        giving = GivingBack(link, lambda: None)
        for server in self._taken:
            giving.give(server.unread())

    async def abort(self) -> None:
        """Reset every connection."""
        self.draining = True
        for server in list(self._taken):
            server.abort_clients()
        await asyncio.sleep(0)

    # What the program asks

    def make(self, worker: Worker, factory: ProtocolFactory, taken: Taken, options: dict[str, Any]) -> FedServer:
        """Return a server for what was ``taken``, which is given back when it is closed."""
        self._worker_id = worker.this_worker.id
        proxied = self._config.listen.proxy_protocol != "off"
        server = FedServer(worker.loop, factory, taken.sockets, proxied=proxied, **options)
        tell = Endings(worker.link, worker.loop).tell if counts_open(self._config.listen) else None

        def ended(number: int) -> None:
            self.connections -= 1
            if tell is not None:
                tell(number)
            if not self.connections and self.on_idle is not None:
                self.on_idle()

        server.on_ended = ended
        server.on_serving = self._begins
        server.on_close = self._ends
        self._taken[server] = taken
        return server

    def loop_closes(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close what lives on ``loop``, while it still can be."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._turns = 0
        for server in [server for server in self._taken if server.get_loop() is loop]:
            server.close()
        # Nobody tells the end of what is open: its transports are left with the loop.
        self.connections = 0

    def _begins(self, server: FedServer) -> None:
        numbers = self._taken[server].numbers
        self._serving |= dict.fromkeys(numbers, server)
        self._listening.served |= numbers
        self._goes_on()

    def _goes_on(self) -> None:
        """Something has come: look whether it is ready as soon as the program has gone on and asks for nothing more.

        So what it listens on one after the other is all known when the worker is ready.
        """
        if self.is_ready or not self._serving:
            return
        if not self._turns:
            self._loop().call_soon(self._look)
        self._turns = GO_ON_TURNS

    def _look(self) -> None:
        self._turns -= 1
        if self.is_ready or not self._serving:
            self._turns = 0
        elif self._turns:
            self._loop().call_soon(self._look)
        elif self._listening.asks:
            return  # the answer comes back here
        elif not self._missing():
            self.is_ready = True
            if self._timer is not None:
                self._timer.cancel()
            self._on_ready()
        elif self._timer is None:
            self._timer = self._loop().call_later(SAME_SECONDS, self._judge)

    def _loop(self) -> asyncio.AbstractEventLoop:
        return next(iter(self._serving.values())).get_loop()

    def _ends(self, server: FedServer) -> None:
        taken = self._taken.pop(server)
        for number in taken.numbers:
            self._serving.pop(number, None)
        self._listening.release(taken)

    def _missing(self) -> list[int]:
        return [number for number in self._listening.known if number not in self._listening.served]

    def _judge(self) -> None:
        self._timer = None
        self._on_unfit(self._missing())
