"""The intake: accepts connections, admits them, and hands each to its slot's worker, as the ledger decides."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable, Sequence

from wscluster.config import Config, flag_of
from wscluster.gateway import handoff
from wscluster.gateway.admission import make_admission
from wscluster.gateway.binding import Bound
from wscluster.gateway.carried import Fd
from wscluster.gateway.durations import Durations
from wscluster.gateway.listener import Accepted
from wscluster.gateway.listening import Listening
from wscluster.gateway.peek import make_peeker
from wscluster.gateway.placement import make_chooser
from wscluster.gateway.shed import Shedder
from wscluster.gateway.state import IntakeState
from wscluster.packets import Offer, Offered

logger = logging.getLogger("wscluster.primary")


class Intake:
    """Owns the listeners, and every socket that was accepted and is not adopted yet.

    Args:
        config: Where to accept, whom to admit, how to place; ``fleet.workers`` is a number here.
        bound: Sockets to accept from; a program asks for its own later.
        send: Sends an `Offer` with its sockets to a worker; they stay open until the worker has answered.
        arm: Called when `next_deadline` may have become earlier.
    """

    def __init__(
        self,
        config: Config,
        bound: list[Bound],
        loop: asyncio.AbstractEventLoop,
        send: Callable[[int, Offer, Sequence[int]], None],
        arm: Callable[[], None],
    ) -> None:
        workers = config.fleet.workers
        assert workers is not None
        self._loop = loop
        self._send = send
        self._arm = arm
        self._placement = (config.placement.sticky, config.placement.balance)
        chooser = make_chooser(*self._placement, workers)
        self.ledger = handoff.Ledger(workers, chooser, config.placement.slot_wait, loop.time())
        header_seconds = config.websocket.ws_open_timeout
        self._peeker = make_peeker(config.listen, header_seconds, loop, self._accepted, self._shed_unseen)
        self._admission = make_admission(config.listen)
        on_batch = self._accepted if self._peeker is None else self._peeker.accept
        self.listening = Listening(config.listen.backlog, loop, on_batch, self._shed_unseen)
        self.listening.add(bound)
        self._shedder = Shedder(loop, tls=config.tls.ssl_certfile is not None)
        self._sockets: dict[int, socket.socket] = {}
        self._accepted_at: dict[int, float] = {}
        self.handoff_seconds = Durations()
        self._last_number = 0

    # What a worker says

    def adopt(self, worker: int, numbers: Iterable[int]) -> None:
        """``worker`` has adopted these connections."""
        if self._admission is not None:
            self._admission.adopt(worker, numbers)
        self._hand(self.ledger.adopt(worker, numbers))
        now = time.perf_counter()
        for number in numbers:
            begun = self._accepted_at.pop(number, None)
            if begun is not None:
                self.handoff_seconds.add(now - begun)

    def refuse(self, worker: int, numbers: Iterable[int]) -> None:
        """``worker`` gives these connections back, unread."""
        self._hand(self.ledger.refuse(worker, numbers, self._loop.time()))
        self._arm()

    def take_back(self, worker: int, connections: Sequence[Offered], fds: Sequence[int]) -> None:
        """``worker`` had adopted these and has read nothing of them: place them again; ``fds`` are their sockets."""
        if len(fds) < len(connections):
            logger.error("%d connections lost: no file descriptor left for them", len(connections) - len(fds))
        offers = []
        for offered, fd in zip(connections, fds, strict=False):
            self._last_number += 1
            if self._admission is not None:
                self._admission.readmit(self._last_number, offered.host)
            self._sockets[self._last_number] = socket.socket(fileno=fd)
            offers.append(Offered(self._last_number, offered.host, offered.port, offered.listener))
        self._hand(self.ledger.give_back(worker, offers, self._loop.time()))
        self._arm()

    def end(self, worker: int, numbers: Iterable[int]) -> None:
        """These connections, which ``worker`` had adopted, are over."""
        if self._admission is not None:
            self._admission.end(worker, numbers)

    def lose(self, worker: int) -> None:
        """Nothing more will come from ``worker``: what it was offered and has not adopted is placed again."""
        if self._admission is not None:
            self._admission.lose(worker)
        self._hand(self.ledger.end(worker, self._loop.time()))
        self._arm()

    # What the fleet decides

    def route(self, slot: int, worker: int) -> None:
        """New connections of ``slot`` go to ``worker``."""
        self._hand(self.ledger.route(slot, worker))

    def unroute(self, slot: int, worker: int) -> None:
        """``worker`` gets no new connections."""
        self._hand(self.ledger.unroute(slot, worker, self._loop.time()))

    def fail_slot(self, slot: int) -> None:
        """The slot was given up: nobody waits for it any more."""
        self._hand(self.ledger.fail_slot(slot, self._loop.time()))

    def resize(self, slots: int) -> None:
        """There are ``slots`` slots from now on."""
        chooser = make_chooser(*self._placement, slots)
        self._hand(self.ledger.resize(slots, chooser, self._loop.time()))

    def start(self) -> None:
        """Begin to accept.

        Raises:
            StartError: Another server has taken one of the addresses.
        """
        self.listening.start()

    def stop(self) -> None:
        """Accept and place nothing any more: who waits is turned away."""
        self._hand(self.ledger.stop(self._loop.time()))
        self.stop_accepting()

    def stop_accepting(self) -> None:
        """Close the listeners, and whoever has not said who he is. Does nothing the second time."""
        self.listening.close()
        if self._peeker is not None:
            self._peeker.close()

    def close(self) -> None:
        """End every lingering close now."""
        self._shedder.close()

    # The next process

    def carry(self) -> IntakeState:
        """Return the listeners and what is not adopted yet. Clients that are being turned away have been told."""
        return IntakeState(
            listeners=self.listening.carry(),
            accepting=self.listening.started,
            books=self.ledger.books,
            sockets={number: Fd(sock.fileno()) for number, sock in self._sockets.items()},
            accepted_at=self._accepted_at,
            last_number=self._last_number,
            handoff_seconds=self.handoff_seconds,
            admission=None if self._admission is None else self._admission.carry(),
            peeking=[] if self._peeker is None else self._peeker.carry(),
        )

    def resume(self, state: IntakeState) -> None:
        """Go on where the process before has stopped.

        Raises:
            CannotBind: One of them cannot be listened on any more.
        """
        self.ledger.resume(state.books, make_chooser(*self._placement, len(state.books.slots)))
        self._sockets = {number: socket.socket(fileno=fd) for number, fd in state.sockets.items()}
        self._accepted_at, self._last_number = state.accepted_at, state.last_number
        self.handoff_seconds = state.handoff_seconds
        if self._admission is not None and state.admission is not None:
            self._admission.resume(state.admission)
        if self._peeker is not None:
            self._peeker.resume(state.peeking)
        self.listening.resume(state.listeners)
        if state.accepting:
            self.listening.start()

    # Time

    def tick(self) -> None:
        """Place anew what has waited long enough for a slot without a worker."""
        self._hand(self.ledger.tick(self._loop.time()))

    def next_deadline(self) -> float | None:
        """When `tick` has something to do, on the loop's clock; None where nothing waits."""
        return self.ledger.next_deadline()

    # Connections

    def _accepted(self, batch: list[Accepted]) -> None:
        offers = []
        now = self._loop.time()
        begun = time.perf_counter()  # uvloop's own clock counts milliseconds
        for sock, host, port, listener in batch:
            self._last_number += 1
            if self._admission is not None:
                limit = self._admission.admit(self._last_number, host, now)
                if limit is not None:
                    self._turn_away(sock, limit)
                    continue
            self._sockets[self._last_number] = sock
            self._accepted_at[self._last_number] = begun
            offers.append(Offered(self._last_number, host, port, listener))
        self._hand(self.ledger.accept(offers, now))
        if self.ledger.next_deadline() is not None:
            self._arm()

    def _turn_away(self, sock: socket.socket, limit: str) -> None:
        self._shed_unseen()
        self._shedder.shed(sock, f"over {flag_of(limit)}", "Too many connections. Try again in a second.")

    def _shed_unseen(self) -> None:
        self.ledger.books.accepted += 1
        self.ledger.books.rejected += 1

    def _hand(self, commands: list[handoff.Command]) -> None:
        for command in commands:
            match command:
                case handoff.HandOff(worker, connections):
                    fds = [self._sockets[offered.number].fileno() for offered in connections]
                    self._send(worker, Offer(connections), fds)
                case handoff.Release(numbers):
                    for number in numbers:
                        self._sockets.pop(number).close()
                case handoff.Reject(numbers):
                    if self._admission is not None:
                        self._admission.reject(numbers)
                    for number in numbers:
                        self._accepted_at.pop(number, None)
                        self._shedder.shed(self._sockets.pop(number))
