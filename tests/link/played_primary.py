"""A primary that a test plays: it starts one worker, binds what it asks for, and hands it what is accepted there."""

import os
import signal
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from wscluster.config import Config, Fleet, to_json
from wscluster.link import link_pair
from wscluster.packets import (
    Beat,
    Bind,
    BootFailed,
    BoundAt,
    Drain,
    Offer,
    Offered,
    Packet,
    Start,
    decode,
    encode,
)

SECONDS = 30

P = TypeVar("P")


class PlayedPrimary:
    """Runs one worker of ``run`` on ``program``, and answers it by what the test says.

    Attributes:
        listeners: What was bound for the worker, by the number of the listener.
    """

    def __init__(
        self,
        program: Sequence[str],
        *,
        cwd: Path | None = None,
        startup: float = 20,
        known: Sequence[Any] = (),
        pass_fds: Sequence[int] = (),
    ) -> None:
        config = replace(Config(""), run=tuple(program), fleet=Fleet(worker_startup_timeout=startup))
        self.listeners: list[socket.socket] = []
        self.known = list(known)
        self._offered = 0
        self.link, theirs = link_pair()
        self.link.settimeout(SECONDS)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "wscluster.workers", "--link-fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno(), *pass_fds],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            process_group=0,
        )
        theirs.close()
        self.send(Start(0, 1, 1, to_json(config)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        self.link.close()
        for sock in self.listeners:
            sock.close()

    def send(self, packet: Packet, fds: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        self.link.sendmsg([encode(packet)], rights)

    def receive(self) -> Packet | None:
        """Return the next packet of the worker, None at its end."""
        data = self.link.recv(300_000)
        return decode(data) if data else None

    def until(self, kind: type[P]) -> P:
        """Return the next packet of this kind; requests to bind are answered, beats are left out."""
        deadline = time.monotonic() + SECONDS
        while True:
            # Beats come for ever.
            assert time.monotonic() < deadline, f"no {kind.__name__} in {SECONDS} s"
            packet = self.receive()
            if isinstance(packet, kind):
                return packet
            match packet:
                case Bind():
                    self.answer(packet)
                case Beat():
                    pass
                case _:
                    raise AssertionError(f"{packet!r}, not {kind.__name__}; stderr: {self.output()[1]}")

    def answer(self, request: Bind) -> None:
        """Bind what is asked for, and say so."""
        family = socket.AF_UNIX if request.path else socket.AF_INET6 if ":" in request.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if family != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(request.path or (request.host or "0.0.0.0", request.port))
        except OSError as exc:
            sock.close()
            self.send(BoundAt(request.serial, [], [], [], exc.errno or 1, f"cannot listen: {exc.strerror}"))
            return
        sock.listen(request.backlog)
        self.listeners.append(sock)
        number = len(self.known)
        self.known.append(sock.getsockname())
        known = list(range(len(self.known)))
        self.send(BoundAt(request.serial, [number], [sock.getsockname()], known, known_addresses=self.known))

    def hand_over(self, listener: int = 0) -> tuple[socket.socket, int]:
        """Connect a client to a listener, and offer its connection; returns the client and the number."""
        ours = self.listeners[listener]
        client = socket.socket(ours.family, socket.SOCK_STREAM)
        client.settimeout(SECONDS)
        client.connect(ours.getsockname())
        accepted, address = ours.accept()
        self._offered += 1
        host, port = address[:2] if isinstance(address, tuple) else ("", 0)
        with accepted:
            self.send(Offer((Offered(self._offered, host, port, listener),)), [accepted.fileno()])
        return client, self._offered

    def drain(self, timeout: float = SECONDS) -> None:
        self.send(Drain(1001, "", timeout))

    def failure(self) -> BootFailed:
        """Return why the worker cannot become ready, once its process has ended with the same status."""
        packet = self.until(BootFailed)
        assert self.process.wait(SECONDS) == packet.exit_code
        return packet

    def output(self) -> tuple[str, str]:
        """Return what the program has written until its end."""
        return self.process.communicate(timeout=SECONDS)
