"""Waits until a descriptor that others have too takes more, without making it non-blocking."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

MAX_WRITE_BYTES = 4096
"""PIPE_BUF of Linux: a pipe, terminal or socket that is writable takes this much without blocking."""


class Writable:
    """Asks whether ``fd`` is writable, and calls back when it is.

    O_NONBLOCK belongs to the open file, which a shell, a parent or a child may share, and libuv sets it on what it
    polls. So the loop polls an epoll instance that polls ``fd``.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._epoll: select.epoll | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def waiting(self) -> bool:
        """A callback is to come."""
        return self._epoll is not None

    def wait(self, seconds: float) -> bool:
        """Say whether it is writable, within ``seconds``; an error counts, because a write tells it."""
        asked = select.poll()
        asked.register(self._fd, select.POLLOUT)
        return bool(asked.poll(seconds * 1000))

    def call(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        """Call ``callback`` each time that it is writable, until `stop`."""
        if self._epoll is None:
            self._epoll = select.epoll(1)
            self._epoll.register(self._fd, select.EPOLLOUT)
            self._loop = loop
            loop.add_reader(self._epoll.fileno(), callback)

    def stop(self) -> None:
        """Call no more."""
        if self._epoll is not None and self._loop is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
