"""What systemd hands on and wants to hear: sockets (sd_listen_fds(3)), readiness and the watchdog (sd_notify(3))."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from typing import Any

from wscluster.addresses import Inherited

FIRST_FD = 3
MAX_FDS = 1024

logger = logging.getLogger("wscluster.primary")


def take_listen_fds() -> tuple[Inherited, ...]:
    """Return the sockets that systemd has opened for this process; the variables that name them go no further."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return ()
    return tuple(Inherited(fd) for fd in range(FIRST_FD, FIRST_FD + min(int(count), MAX_FDS)))


class Notifier:
    """Tells systemd of the events of this cluster, and that the loop turns; nothing where it is not asked for.

    ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` are taken out of the environment: systemd does not listen
    to workers.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._sock: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        self.environment = {name: os.environ.pop(name) for name in names if name in os.environ}
        """What the next process needs to go on."""
        address, watchdog, pid = (self.environment.get(name, "") for name in names)
        self._interval = 0.0
        if address[:1] not in ("/", "@"):
            return
        self._address = "\0" + address[1:] if address[0] == "@" else address
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        if watchdog.isdecimal() and int(watchdog) and pid in ("", str(os.getpid())):
            # systemd recommends half of its time.
            self._interval = int(watchdog) / 2e6
            self._beat()

    def event(self, event: str, facts: dict[str, Any]) -> None:
        """Translate one lifecycle event."""
        match event:
            case "ready":
                self._send("READY=1", f"STATUS=serving on {', '.join(facts['listeners'])}")
            case "reloading":
                now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
                self._send("RELOADING=1", f"MONOTONIC_USEC={now}", f"STATUS=reloading, phase {facts['phase']}")
            case "reloaded":
                self._send("READY=1", f"STATUS=reloaded, phase {facts['phase']}")
            case "reload_failed":
                self._send("READY=1", f"STATUS=the reload of phase {facts['phase']} has failed: {facts['reason']}")
            case "upgraded":
                self._send("READY=1", "STATUS=upgraded")
            case "stopping":
                self._send("STOPPING=1", "STATUS=draining")

    def close(self) -> None:
        """Say nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _beat(self) -> None:
        self._send("WATCHDOG=1")
        self._timer = self._loop.call_later(self._interval, self._beat)

    def _send(self, *lines: str) -> None:
        if self._sock is None:
            return
        text = "\n".join(" ".join(line.split()) for line in lines)
        try:
            with contextlib.suppress(BlockingIOError):
                self._sock.sendto(text.encode()[:4096], self._address)
        except OSError as exc:
            logger.warning("systemd does not hear us at NOTIFY_SOCKET: %s", exc.strerror)
            self.close()
