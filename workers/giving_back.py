"""Connections that a draining worker has adopted and read nothing of go back to the primary, for its successor."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from wscluster.link import LinkFull
from wscluster.packets import Offered, Returned

if TYPE_CHECKING:
    from wscluster.link import Link

AT_ONCE = 32
"""Sockets in one packet."""
SIOCINQ = 0x541B
"""Bytes that wait in the receive queue (tcp(7))."""
RECEIVED_AT = 128
"""Where ``tcpi_bytes_received`` stands in Linux' ``struct tcp_info``."""
_NUMBER = struct.Struct("=Q")
_INT = struct.Struct("i")

logger = logging.getLogger("wscluster.worker")


def bytes_read(fd: int) -> int | None:
    """Return how many bytes of the TCP connection ``fd`` somebody has read: what has ever come less what waits.

    None where the kernel does not tell: on a Unix socket, on another system, in an old kernel.
    """
    if sys.platform != "linux":
        return None
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, RECEIVED_AT + _NUMBER.size)
        waiting: int = _INT.unpack(fcntl.ioctl(fd, SIOCINQ, bytes(_INT.size)))[0]
    except OSError:
        return None
    if len(info) < RECEIVED_AT + _NUMBER.size:
        return None
    received: int = _NUMBER.unpack_from(info, RECEIVED_AT)[0]
    return received - waiting


class GivingBack:
    """Sends sockets back; each has a duplicate of its own until the kernel has taken the packet.

    Args:
        on_sent: Called when nothing is left to be sent.
    """

    def __init__(self, link: Link, on_sent: Callable[[], None]) -> None:
        self._link = link
        self._on_sent = on_sent
        self.unsent = 0
        self.given = 0

    def give(self, connections: Sequence[tuple[Offered, int, Callable[[], None]]]) -> None:
        """Give these back: who each is, its descriptor, and what ends its transport here without a word to the client.

        What the link has no room for stays.
        """
        for at in range(0, len(connections), AT_ONCE):
            batch = connections[at : at + AT_ONCE]
            fds: list[int] = []
            try:
                for _, fd, _ in batch:
                    fds.append(os.dup(fd))
                self.unsent += len(fds)
                packet = Returned(tuple(offered for offered, _, _ in batch))
                self._link.send(packet, fds, functools.partial(self._sent, fds))
            except (LinkFull, OSError) as exc:
                logger.warning("%d connections that are not read yet stay here: %s", len(batch), exc)
                self._sent(fds)
                return
            self.given += len(batch)
            for _, _, let_go in batch:
                let_go()

    def _sent(self, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        self.unsent = max(0, self.unsent - len(fds))
        if not self.unsent:
            self._on_sent()
