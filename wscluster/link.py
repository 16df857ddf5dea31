"""One link between the primary and one worker: an ``AF_UNIX SOCK_SEQPACKET`` socket that carries packets and sockets.

The link belongs to one event loop. Packets arrive through ``on_packet``; the end of the link, that is the death of the
peer, comes through ``on_end`` once, after every packet that the peer had written.
"""

from __future__ import annotations

import array
import asyncio
import errno
import logging
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from wscluster.packets import MAX_PACKET_BYTES, InvalidPacket, Offer, Packet, Returned, Start, decode, encode

MAX_FDS = 253
"""SCM_MAX_FD of Linux: 254 file descriptors in one packet are refused with EINVAL."""

_CONTROL_BYTES = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
_RECEIVES_PER_WAKE = 64
_RETRY_SECONDS = 0.01
_RECEIVE_FLAGS = getattr(socket, "MSG_CMSG_CLOEXEC", 0)

# One for all links: a packet is decoded before the next is received.
_buffer = memoryview(bytearray(MAX_PACKET_BYTES + 1))

logger = logging.getLogger("wscluster.link")


class LinkFull(Exception):
    """The link's outbox is at its bound; the packet was not taken."""


class Link:
    """Sends and receives packets on one end of a socket pair.

    Args:
        sock: A connected SOCK_SEQPACKET socket; the link owns it and closes it.
        loop: The event loop that the link belongs to.
        on_packet: Called with each packet and the file descriptors that came with it, which then belong to the callee:
            at most one for each connection of an `Offer`, and none with any other packet.
        on_end: Called once when the peer has closed its end or died.
        max_outbox: Packets that may wait while the peer does not read.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        on_packet: Callable[[Packet, list[int]], None],
        on_end: Callable[[], None],
        *,
        max_outbox: int = 1024,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = loop
        self._on_packet = on_packet
        self._on_end = on_end
        self._max_outbox = max_outbox
        self._outbox: deque[tuple[bytes, Sequence[int], Callable[[], None] | None]] = deque()
        self._retry: asyncio.TimerHandle | None = None
        self._writing = False
        self._ended = False
        self.fds_lost = 0
        """Packets of whose file descriptors the kernel dropped some, this process being at its limit (MSG_CTRUNC)."""
        self.dropped = 0
        """Packets that were none, and were thrown away with their file descriptors."""
        loop.add_reader(self._fd, self._readable)

    @property
    def outbox(self) -> int:
        """Number of packets that wait for the peer to read."""
        return len(self._outbox)

    @property
    def closed(self) -> bool:
        """True once the link has ended or was closed."""
        return self._ended

    def send(self, packet: Packet, fds: Sequence[int] = (), sent: Callable[[], None] | None = None) -> None:
        """Send ``packet``, with ``fds`` beside it; they stay the caller's and must stay open until ``sent``.

        ``sent`` is called once the kernel has taken the packet: before `send` returns where the link has room. On a
        link that has ended nothing is sent and ``sent`` is never called.

        Raises:
            LinkFull: ``max_outbox`` packets wait already.
            ValueError: More than `MAX_FDS` file descriptors, or a packet that is too long.
        """
        if self._ended:
            return
        if len(fds) > MAX_FDS:  # the kernel would refuse it at the head of the outbox, again and again
            raise ValueError(f"{len(fds)} file descriptors with one packet: more than {MAX_FDS}")
        if len(self._outbox) >= self._max_outbox:
            raise LinkFull(f"{len(self._outbox)} packets wait")
        self._outbox.append((encode(packet), fds, sent))
        if len(self._outbox) == 1:
            self._flush()

    def fileno(self) -> int:
        """Return the number of the socket."""
        return self._fd

    def waiting(self) -> list[tuple[bytes, list[int]]]:
        """Return what waits to be sent, each with its descriptors."""
        return [(data, list(fds)) for data, fds, _ in self._outbox]

    def resume(self, outbox: Iterable[tuple[bytes, Sequence[int]]]) -> None:
        """Send what has waited in a link of the process before."""
        self._outbox.extend((data, fds, None) for data, fds in outbox)
        self._flush()

    def receive_all(self) -> None:
        """Deliver every packet that waits in the link now, and its end if that is there too."""
        while not self._ended and self._receive():
            pass

    def close(self) -> None:
        """Close this end. What waits in the outbox is dropped; neither callback is called any more."""
        self._ended = True
        self._release()

    def _release(self) -> None:
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        self._stop_writing()
        self._outbox.clear()
        self._fd = -1
        self._sock.close()

    def _readable(self) -> None:
        for _ in range(_RECEIVES_PER_WAKE):
            if self._ended or not self._receive():
                return

    def _receive(self) -> bool:
        """Receive one packet; False when there is nothing more for now."""
        try:
            size, ancillary, flags, _ = self._sock.recvmsg_into([_buffer], _CONTROL_BYTES, _RECEIVE_FLAGS)
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionResetError:
            # The kernel reports a peer that died with unread packets once, before the packets it had written: they
            # are still in the queue, so read on until b"". At once, because libuv no longer polls a socket after that.
            self.receive_all()
            return False
        fds = _file_descriptors(ancillary)
        if flags & socket.MSG_CTRUNC:
            self.fds_lost += 1
        if not size:
            self._end()
            return False
        try:
            if flags & socket.MSG_TRUNC:
                raise InvalidPacket(f"more than {MAX_PACKET_BYTES} bytes")
            packet = decode(bytes(_buffer[:size]))
        except InvalidPacket as exc:
            self.dropped += 1
            _close_all(fds)
            logger.error("packet dropped: %s", exc)
            return True
        wanted = len(packet.connections) if isinstance(packet, Offer | Returned) else 0
        if len(fds) > wanted:
            logger.error("%d file descriptors closed: nothing goes with them", len(fds) - wanted)
            _close_all(fds[wanted:])
            del fds[wanted:]
        self._on_packet(packet, fds)
        return True

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._release()
            self._on_end()

    def _flush(self) -> None:
        """Write what waits, in order, until the link is full."""
        while self._outbox and not self._ended:
            data, fds, sent = self._outbox[0]
            try:
                if fds:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                    self._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
                else:
                    self._sock.send(data, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                self._start_writing()
                return
            except (BrokenPipeError, ConnectionResetError, ConnectionRefusedError):
                # The end comes after the packets that are still in the queue. The reader may not be called for it:
                # this was the report of the error that it waits for.
                self._outbox.clear()
                self._loop.call_soon(self.receive_all)
                break
            except OSError as exc:
                if exc.errno not in (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM):
                    raise
                # Too many descriptors of this user are in flight: the socket counts as writable, so only time helps.
                self._stop_writing()
                self._retry = self._loop.call_later(_RETRY_SECONDS, self._flush)
                return
            self._outbox.popleft()
            if sent is not None:
                sent()
        self._stop_writing()

    def _start_writing(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self._flush)

    def _stop_writing(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)


def link_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new link, both close-on-exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def receive_first(sock: socket.socket) -> Start | None:
    """Wait, without an event loop, for the first packet of a new link; None where its other end has gone by then.

    Raises:
        InvalidPacket: It is another one, or none: the two ends are of different versions.
    """
    data = sock.recv(MAX_PACKET_BYTES)
    ended = select.poll()
    ended.register(sock, select.POLLRDHUP)
    if not data or ended.poll(0):
        return None
    packet = decode(data)
    if not isinstance(packet, Start):
        raise InvalidPacket(f"the first packet is {type(packet).__name__}")
    return packet


def _file_descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
