"""Turning a client away that no worker can serve: 503 with Retry-After, then a bounded lingering close.

Closing a socket with unread bytes resets the connection, and the client may never see the answer; so what it still
sends is read and thrown away, for a while and for a few clients at a time. Where TLS is spoken, which the primary never
does, a client is reset: it could not read the answer.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from dataclasses import dataclass

HEAD = (
    "HTTP/1.1 503 Service Unavailable\r\nServer: wscluster\r\nRetry-After: 1\r\nConnection: close\r\n"
    "Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\r\n{}"
)
NO_WORKER = "No worker is ready. Try again in a second."
LINGER_BYTES = 16 * 1024
LINGER_SECONDS = 1.0
MAX_LINGERING = 256
COMPLAIN_SECONDS = 10.0

logger = logging.getLogger("wscluster.primary")

_RESET = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class _Complaint:
    at: float = float("-inf")
    count: int = 0


class Shedder:
    """Answers and closes sockets; at most `MAX_LINGERING` at a time, the others are reset.

    Args:
        tls: The clients speak TLS: all of them are reset.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, tls: bool = False) -> None:
        self._loop = loop
        self._tls = tls
        self._lingering: dict[socket.socket, tuple[asyncio.TimerHandle, int]] = {}
        self._complaints: dict[str, _Complaint] = {}

    def shed(self, sock: socket.socket, reason: str = "no worker can take them", text: str = NO_WORKER) -> None:
        """Turn the client on ``sock`` away; the socket is closed in the end.

        Args:
            reason: For the log; one of a few, each is counted.
            text: For the client, ASCII.
        """
        self._complain(self._complaints.setdefault(reason, _Complaint()), reason)
        if self._tls or len(self._lingering) >= MAX_LINGERING:
            self._reset(sock)
            return
        sock.setblocking(False)
        try:
            sock.send(HEAD.format(len(text), text).encode(), socket.MSG_NOSIGNAL)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._reset(sock)
            return
        timer = self._loop.call_later(LINGER_SECONDS, self._finish, sock)
        self._lingering[sock] = (timer, LINGER_BYTES)
        self._loop.add_reader(sock, self._read, sock)

    def close(self) -> None:
        """End every lingering close now."""
        for sock in list(self._lingering):
            self._finish(sock)

    def _complain(self, complaint: _Complaint, reason: str) -> None:
        """Say that clients are turned away, and how many since the last such line, but not for each of a crowd."""
        complaint.count += 1
        now = self._loop.time()
        if now - complaint.at >= COMPLAIN_SECONDS:
            logger.warning("connections turned away, %s: %d", reason, complaint.count)
            complaint.at, complaint.count = now, 0

    def _read(self, sock: socket.socket) -> None:
        timer, left = self._lingering[sock]
        try:
            received = len(sock.recv(left))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            received = 0
        self._lingering[sock] = (timer, left - received)
        if not received or received >= left:
            self._finish(sock)

    def _finish(self, sock: socket.socket) -> None:
        timer, _ = self._lingering.pop(sock)
        timer.cancel()
        self._loop.remove_reader(sock)
        sock.close()

    def _reset(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.close()
