"""Answers what programs want to listen on: looks names up, binds, and tells the worker."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from wscluster.addresses import Tcp, show_address
from wscluster.gateway.asked import Address, Asked, Open
from wscluster.gateway.binding import Bound, CannotBind, bind_tcp, bind_unix, resolve
from wscluster.gateway.listening import Listening
from wscluster.packets import Bind, BoundAt

MAX_WAITING = 1024
"""Requests that wait while a name is looked up; one more is refused."""
CHOICES = 8
"""Ports of the kernel's choice that are tried for a host of both families: the first may be free for one of them."""

logger = logging.getLogger("wscluster.primary")


class Asking:
    """Takes one request after the other, so that two that mean the same address get one listener.

    Args:
        listening: Gets what is bound.
        answer: Called with a worker and what it is told.
        on_bound: Called with the name of each new listener.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listening: Listening,
        answer: Callable[[int, BoundAt], None],
        on_bound: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._listening = listening
        self._answer = answer
        self._on_bound = on_bound
        self.asked = Asked()
        self._waiting: deque[tuple[int, int, Bind]] = deque()
        self._task: asyncio.Task[None] | None = None

    def ask(self, worker: int, pid: int, request: Bind) -> None:
        """Answer ``request`` of ``worker``, whose process is ``pid``, as soon as those before it are answered."""
        if len(self._waiting) >= MAX_WAITING:
            reason = f"{MAX_WAITING} requests to listen wait already; try again"
            self._answer(worker, self.asked.failed(request, errno.EAGAIN, reason))
            return
        self._waiting.append((worker, pid, request))
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._work())

    @property
    def busy(self) -> bool:
        """Somebody waits for an answer."""
        return self._task is not None and not self._task.done()

    def close(self) -> None:
        """Answer nothing more."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    async def _work(self) -> None:
        while self._waiting:
            worker, pid, request = self._waiting.popleft()
            self._answer(worker, await self._decide(pid, request))

    async def _decide(self, pid: int, request: Bind) -> BoundAt:
        known = self.asked.ask(request)
        if known is not None:
            return known
        shown = f"unix:{request.path}" if request.path else show_address(Tcp(request.host, request.port))
        try:
            addresses = await self._resolve(request)
        except socket.gaierror as exc:
            return self.asked.failed(request, exc.errno or socket.EAI_FAIL, f"cannot listen on {shown}: {exc.strerror}")
        except (UnicodeError, OverflowError) as exc:
            return self.asked.failed(request, errno.EINVAL, f"cannot listen on {shown}: {exc}")
        step = self.asked.found(request, addresses)
        if not isinstance(step, Open):
            return step
        before = len(self._listening.names)
        try:
            bound = _bind(step, shown, pid)
            described = _describe(step, bound)
            self._listening.add(bound, request.backlog)
        except CannotBind as exc:
            return self.asked.failed(request, exc.errno, str(exc))
        for name in self._listening.names[before:]:
            self._on_bound(name)
        return self.asked.opened(request, addresses, described)

    async def _resolve(self, request: Bind) -> list[Address]:
        if request.path:
            return [(int(socket.AF_UNIX), (request.path,))]
        if not 0 <= request.port <= 65535:
            raise OverflowError("a port is a number from 0 to 65535")
        host, port, family = request.host, request.port, request.family
        try:
            return resolve(host, port, family, socket.AI_NUMERICHOST)
        except socket.gaierror:
            # A name: whoever knows it may take seconds to answer.
            return await self._loop.run_in_executor(None, resolve, host, port, family)


def _bind(step: Open, shown: str, pid: int) -> list[Bound]:
    if step.request.path:
        return [_bind_unix(step.request.path, pid)]
    for _ in range(CHOICES):
        try:
            return bind_tcp(step.addresses, shown)
        except CannotBind as exc:
            if exc.errno != errno.EADDRINUSE or step.request.port:
                raise
            fault = exc
    raise fault


def _bind_unix(path: str, pid: int) -> Bound:
    """Bind as the program would have done: the mode of the new file is what its umask leaves."""
    umask = None
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            umask = next((int(line.split()[1], 8) for line in file if line.startswith("Umask:")), None)
    except OSError as exc:
        logger.debug("the umask of process %d is not known: %s", pid, exc)
    before = os.umask(umask) if umask is not None else None
    try:
        return bind_unix(path, mode=None)
    finally:
        if before is not None:
            os.umask(before)


def _describe(step: Open, bound: list[Bound]) -> list[tuple[Address, Any]]:
    """Return the address of each new listener and what its ``getsockname()`` says, as JSON can say it."""
    if step.request.path:
        name = bound[0].sock.getsockname()
        return [(step.addresses[0], os.fsdecode(name))]
    names = [one.sock.getsockname() for one in bound]
    return [((int(one.sock.family), tuple(name)), list(name)) for one, name in zip(bound, names, strict=True)]
