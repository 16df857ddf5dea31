"""The control socket: one JSON object a line in, one a line out, for the same user only.

``{"verb": "status"}`` is answered with ``{"ok": true, "result": …}`` or ``{"ok": false, "error": "…"}``. What takes
longer may send lines ``{"progress": {…}}`` before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

from wscluster.control_paths import UnsafeFolder, default_path, make_folder
from wscluster.errors import StartError
from wscluster.gateway.carried import Fd
from wscluster.gateway.state import CallState, ControlState

MAX_LINE_BYTES = 64 * 1024
MAX_CONNECTIONS = 64
BACKLOG = 128
"""Callers that the kernel lets wait, such as while the primary executes itself anew."""
PAUSE_SECONDS = 1.0
"""When the next call is taken after one that found no descriptor left."""
MAX_UNREAD_BYTES = 256 * 1024
"""Progress that a caller has not read; beyond it no more is sent until it has."""
REQUEST_SECONDS = 10.0
"""What a caller gets for its next line; then it is hung up on."""
ANSWER_SECONDS = 1.0
"""What a caller gets, when the primary ends, to take its last answer."""

_CREDENTIALS = struct.Struct("3i")

Request = dict[str, Any]
Tell = Callable[[dict[str, Any]], bool]
"""Sends one line of progress; False where the caller does not read, and the line was dropped."""
logger = logging.getLogger("wscluster.primary")


class InvalidRequest(Exception):
    """What was asked makes no sense; the text goes back to the caller."""


class ControlServer:
    """Serves the control socket.

    Args:
        path: Where; None is the default path of this process.
        handle: Answers a request; what it raises as `InvalidRequest` is told to the caller. Its second argument sends
            progress before.
    """

    def __init__(self, path: str | None, handle: Callable[[Request, Tell], Awaitable[Any]]) -> None:
        self.path = default_path(os.getpid()) if path is None else Path(path)
        self._private = path is None
        self._handle = handle
        self._sock: socket.socket | None = None
        self._accepting = False
        self._calls: set[asyncio.Task[None]] = set()
        self._parking = asyncio.Event()
        self._parked: dict[asyncio.StreamWriter, bytes] = {}
        self._inode: tuple[int, int] | None = None

    async def start(self, state: ControlState | None = None) -> None:
        """Begin to serve, on the socket of the process before where there is one.

        Raises:
            StartError: Another primary serves there, or the path is no good.
        """
        if state is not None:
            self._sock, self._inode = socket.socket(fileno=state.fd), state.identity
            for call in state.calls:
                self._begin(socket.socket(fileno=call.fd), call.said)
        else:
            try:
                if self._private:
                    make_folder(self.path.parent)
                    _remove_stale(self.path.parent)
                self._sock = _bind(self.path)
            except (UnsafeFolder, OSError) as exc:
                raise StartError(f"control socket {self.path}: {exc}; choose another with --control-socket") from exc
            status = self.path.stat()
            self._inode = (status.st_dev, status.st_ino)
        self._sock.setblocking(False)
        self.go_on()

    def carry(self) -> ControlState:
        """Return what the next process needs to serve here."""
        assert self._sock is not None
        assert self._inode is not None
        calls = [CallState(Fd(writer.get_extra_info("socket").fileno()), said) for writer, said in self._parked.items()]
        return ControlState(Fd(self._sock.fileno()), self._inode, calls)

    async def park(self) -> None:
        """Take no more calls, and let those under way be answered; who has not asked anything waits.

        So does who calls meanwhile, in the kernel's queue: until `go_on`, which hangs up on the former, or for the next
        process, which has them all.
        """
        self._parking.set()
        await self._end_calls()

    def go_on(self) -> None:
        """Take calls again."""
        self._parking.clear()
        for writer in self._parked:
            writer.close()
        self._parked.clear()
        if self._sock is not None and not self._accepting:
            self._accepting = True
            asyncio.get_running_loop().add_reader(self._sock, self._readable, self._sock)

    async def _end_calls(self) -> None:
        if self._sock is not None and self._accepting:
            self._accepting = False
            asyncio.get_running_loop().remove_reader(self._sock)
        if self._calls:
            _, late = await asyncio.wait(self._calls, timeout=ANSWER_SECONDS)
            for call in late:
                call.cancel()

    async def close(self) -> None:
        """Let the calls that are under way be answered, then remove the socket."""
        if self._sock is None:
            return
        await self._end_calls()
        self._sock.close()
        self._sock = None
        try:
            status = self.path.stat()
            if (status.st_dev, status.st_ino) == self._inode:
                self.path.unlink()
        except FileNotFoundError:
            return

    def _readable(self, listening: socket.socket) -> None:
        for _ in range(MAX_CONNECTIONS):
            try:
                sock, _ = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as exc:
                logger.warning("a call to the control socket was not taken: %s", exc.strerror)
                # Who waits would wake this process again and again.
                loop = asyncio.get_running_loop()
                loop.remove_reader(listening)
                loop.call_later(PAUSE_SECONDS, self._look_again, listening)
                return
            self._take(sock)

    def _look_again(self, listening: socket.socket) -> None:
        if self._accepting and self._sock is listening:
            asyncio.get_running_loop().add_reader(listening, self._readable, listening)

    def _take(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        uid = _peer_uid(sock)
        if uid not in (0, os.getuid()) or len(self._calls) >= MAX_CONNECTIONS:
            logger.warning("a call to the control socket was refused: user %d, %d calls", uid, len(self._calls))
            sock.close()
            return
        self._begin(sock)

    def _begin(self, sock: socket.socket, said: bytes = b"") -> None:
        call = asyncio.get_running_loop().create_task(self._serve(sock, said))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _serve(self, sock: socket.socket, said: bytes) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=MAX_LINE_BYTES, loop=loop)
        reader.feed_data(said)  # before the socket is read
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.create_unix_connection(lambda: protocol, sock=sock)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            while line := await self._read_line(reader, writer):
                writer.write(_line(await self._answer(line, writer)))
                await writer.drain()
        except (ConnectionError, ValueError) as exc:
            # ValueError: a line longer than the limit.
            logger.debug("a call to the control socket ended: %s", exc)
        finally:
            if writer not in self._parked:
                writer.close()

    async def _read_line(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """Return the next request; empty at the end, of a caller who takes too long for one, and who is parked."""
        if not self._accepting and not self._parking.is_set():
            return b""
        reading, parking = asyncio.ensure_future(reader.readline()), asyncio.ensure_future(self._parking.wait())
        try:
            await asyncio.wait([reading, parking], timeout=REQUEST_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return reading.result()
            if self._parking.is_set() and not writer.transport.is_closing():
                await self._park(reader, writer, reading)
            return b""
        finally:
            reading.cancel()
            parking.cancel()

    async def _park(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reading: asyncio.Future[bytes]
    ) -> None:
        cast("asyncio.ReadTransport", writer.transport).pause_reading()
        reading.cancel()
        await asyncio.wait([reading])
        reader.feed_eof()  # what it has is then all that there is
        self._parked[writer] = await reader.read()

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> dict[str, Any]:
        def tell(progress: dict[str, Any]) -> bool:
            if writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
                return False
            writer.write(_line({"progress": progress}))
            return True

        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise InvalidRequest("a JSON object is wanted")
            return {"ok": True, "result": await self._handle(request, tell)}
        except (InvalidRequest, ValueError, RecursionError) as exc:
            return {"ok": False, "error": str(exc)}


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _bind(path: Path) -> socket.socket:
    """Return a socket that listens at ``path``, mode 0600; one that nobody serves any more is replaced."""
    if _is_served(path):
        raise FileExistsError("another primary serves there")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        sock.bind(str(path))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(umask)
    return sock


def _remove_stale(folder: Path) -> None:
    """Remove the sockets that primaries of this user left behind when they were killed."""
    for path in folder.glob("*.sock"):
        # A primary that has bound its socket and does not listen yet refuses too: its process is there.
        if path.stem.isdigit() and not Path(f"/proc/{path.stem}").exists():
            with contextlib.suppress(OSError):  # whatever it is, it is in nobody's way
                _is_served(path)


def _is_served(path: Path) -> bool:
    """Say whether somebody listens at ``path``, and remove a socket that was left behind."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError("this is a file or a link, not a socket")
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return False
    return True


def _peer_uid(sock: socket.socket) -> int:
    """Return the user at the other end, as the kernel knows it (SO_PEERCRED)."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])
