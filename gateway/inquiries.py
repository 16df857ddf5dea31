"""Questions to workers over their links, each answered by one packet or by silence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from wscluster.link import LinkFull
from wscluster.packets import Answer, Ask

ANSWER_SECONDS = 2.0
"""What a worker gets to answer: one whose loop is stuck is said to be silent."""


class Inquiries:
    """Asks workers and matches their answers.

    Args:
        send: Sends a packet to a worker.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[int, Ask], None]) -> None:
        self._loop = loop
        self._send = send
        self.last_serial = 0
        self._open: dict[int, tuple[int, asyncio.Future[Any]]] = {}

    async def ask(self, worker: int, question: str, **arguments: Any) -> Any:
        """Return the answer of ``worker``; None where it does not answer within `ANSWER_SECONDS`, or ends."""
        self.last_serial += 1
        serial = self.last_serial
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._open[serial] = (worker, answer)
        try:
            self._send(worker, Ask(serial, question, arguments))
            await asyncio.wait([answer], timeout=ANSWER_SECONDS)
            return answer.result() if answer.done() else None
        except LinkFull:  # it has not read for long
            return None
        finally:
            del self._open[serial]

    def answered(self, worker: int, packet: Answer) -> None:
        """``worker`` has answered."""
        asked, answer = self._open.get(packet.serial, (0, None))
        if answer is not None and asked == worker and not answer.done():
            answer.set_result(packet.value)

    def forget(self, worker: int) -> None:
        """``worker`` is gone: nobody waits for it."""
        for asked, answer in self._open.values():
            if asked == worker and not answer.done():
                answer.set_result(None)
