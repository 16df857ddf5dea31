"""The access log: a line for each answer to an opening handshake, and one for each end of a connection."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from wscluster.escaping import escape_controls
from wscluster.workers.connection import Connection

if TYPE_CHECKING:
    from websockets.http11 import Request, Response

    from wscluster.workers.serve import HandlerServer
    from wscluster.workers.wire import Wire

MAX_PATH = 1024
"""Characters of a path that are logged."""

logger = logging.getLogger("wscluster.access")


class Access:
    """Writes the lines, at INFO."""

    def answered(self, connection: Connection, request: Request, response: Response) -> None:
        """The opening handshake was answered, with 101 or a refusal."""
        logger.info(
            '%s "%s %s" %d (connection %s)',
            name_client(connection.peer), escape_controls(request.method), cite_path(request.path),
            response.status_code, connection.id,
        )  # fmt: skip
        if isinstance(connection, CountingConnection) and response.status_code == 101:
            connection.opened_at = time.monotonic()

    def ended(self, connection: Wire) -> None:
        """The connection has ended; one that was never open has had its line, unless there was no request in it."""
        if connection.request is None:
            logger.info('%s "-" - no request (connection %s)', name_client(connection.peer), connection.protocol.id)
        elif isinstance(connection, CountingConnection) and connection.opened_at is not None:
            logger.info(
                '%s "%s" closed with %s after %.3f s, %d messages in, %d out (connection %s)',
                name_client(connection.peer), cite_path(connection.request.path), connection.close_code,
                time.monotonic() - connection.opened_at, connection.messages_in, connection.messages_out,
                connection.id,
            )  # fmt: skip


def name_client(peer: tuple[str, int] | None) -> str:
    """Return ``host:port``, ``[v6]:port``, or ``unix`` for a client on a Unix socket."""
    if peer is None:
        return "unix"
    host, port = peer
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def cite_path(path: str) -> str:
    """Return ``path`` with its control characters and quotes escaped, cut where it is longer than `MAX_PATH`."""
    cut = path if len(path) <= MAX_PATH else path[:MAX_PATH] + "..."
    return escape_controls(cut).replace('"', "%22")


class CountingConnection(Connection):
    """A `Connection` that counts its own messages; without an access log nothing is counted for each."""

    __slots__ = ("messages_in", "messages_out", "opened_at")

    def __init__(self, server: HandlerServer, peer: tuple[str, int] | None) -> None:
        super().__init__(server, peer)
        self.messages_in = 0
        self.messages_out = 0
        self.opened_at: float | None = None

    def _read_frames(self, data: bytes) -> None:
        mine, all_before = self.messages_in, self.server.messages_in
        super()._read_frames(data)
        # It may have called itself: then what that call counted is in the difference too.
        self.messages_in = mine + self.server.messages_in - all_before

    def deliver(self, data: bytes, count: int, compressed: bool, limit: int) -> bool:
        delivered = super().deliver(data, count, compressed, limit)
        if delivered:
            self.messages_out += count
        return delivered

    def write_message(self, is_text: bool, payload: bytes) -> None:
        if self._deflate is None:
            self.messages_out += 1
        super().write_message(is_text, payload)

    def write_fragment(self, is_text: bool | None, payload: bytes, *, fin: bool) -> None:
        if fin:
            self.messages_out += 1
        super().write_fragment(is_text, payload, fin=fin)
