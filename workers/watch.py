"""Sees what a program does by itself while it is not ready: binds TCP sockets, starts processes, or nothing at all."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wscluster.workers.program_faults import Seen, explain

PATIENCE_SECONDS = 5.0
"""So long after a program has begun to serve by itself it may still turn to the event loop."""

_STARTS = frozenset({"os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen"})


class Watch:
    """Watches the program of this process until it is ready, from threads: no loop may run, and it may be blocked.

    Args:
        seconds: Until the program is late.
        has_asked: Says whether the program has asked the loop to listen.
        hopeless: Called, in a thread, with one line that says why the program will not be served.
        late: Called, in a thread, with what was seen when the time is over.
    """

    def __init__(
        self,
        seconds: float,
        has_asked: Callable[[], bool],
        hopeless: Callable[[str], None],
        late: Callable[[Seen], None],
    ) -> None:
        self._seconds = seconds
        self._has_asked = has_asked
        self._hopeless = hopeless
        self._late = late
        self._over = False
        self._settled = threading.Event()
        self._suspected = False
        self._bound: list[weakref.ref[socket.socket]] = []
        self.last_bind: Any = None
        """Address that the program wanted to bind a TCP socket to, the last time that it did so by itself."""

    def begin(self) -> None:
        """Watch from now on."""
        sys.addaudithook(self._noticed)
        # Not of the module threading: a program may count its threads, or wait for all of them.
        _thread.start_new_thread(self._wait, ())

    def end(self) -> None:
        """The program is ready, or over: watch no more."""
        self._over = True
        self._settled.set()

    def forget(self) -> None:
        """Watch no more, in a child after a fork: what the threads held is held for ever."""
        self._over = True

    def seen(self) -> Seen:
        """Return what the program has done that is still so."""
        bound = [sock for ref in list(self._bound) if (sock := ref()) is not None]
        addresses = tuple(address for sock in bound if (address := _listens_on(sock)) is not None)
        return Seen(frozenset(sys.modules), addresses, len(children()))

    def _noticed(self, event: str, args: tuple[Any, ...]) -> None:
        if self._over:
            return
        if event == "socket.bind":
            sock = args[0]
            if sock.family != socket.AF_UNIX and sock.type == socket.SOCK_STREAM and isinstance(sock, socket.socket):
                self._bound.append(weakref.ref(sock))
                self.last_bind = args[1]
                self._suspect()
        elif event in _STARTS or (event == "import" and args[0].startswith("multiprocessing.popen_")):
            self._suspect()

    def _suspect(self) -> None:
        if not self._suspected and not self._has_asked():
            self._suspected = True
            _thread.start_new_thread(self._judge, ())

    def _judge(self) -> None:
        if self._settled.wait(PATIENCE_SECONDS):
            return
        self._suspected = False
        seen = self.seen()
        if seen.serves_itself and not self._has_asked():
            self._hopeless(explain(seen))

    def _wait(self) -> None:
        if not self._settled.wait(self._seconds):
            self._late(self.seen())


def _listens_on(sock: socket.socket) -> Any:
    """Return the address of a TCP socket that is bound and not a client's; None where it is none."""
    try:
        address = sock.getsockname()
    except OSError:  # closed
        return None
    try:
        sock.getpeername()
    except OSError:
        return address if address[1] else None
    return None


def children() -> set[int]:
    """Return the process ids of this process's children that have not been waited for; empty without procfs."""
    found: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            found.update(map(int, path.read_text().split()))
    return found


def end_children() -> None:
    """Send SIGTERM to every child of this process."""
    for pid in children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
