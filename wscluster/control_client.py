"""Finds a running primary and talks to it over its control socket."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wscluster.control_paths import UnsafeFolder, check_folder, default_folder
from wscluster.errors import ExitCode, WsclusterError

CONNECT_SECONDS = 5.0


class ControlError(WsclusterError):
    """The primary cannot be found or did not do what it was asked; ``exit_code`` is that of the verb."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Running:
    """A primary that answers at ``path``."""

    path: Path
    pid: int
    listeners: tuple[str, ...]

    @property
    def ports(self) -> set[int]:
        """The TCP ports that it listens on."""
        return {int(name.rpartition(":")[2]) for name in self.listeners if not name.startswith("unix:")}


def ask(
    path: Path,
    verb: str,
    *,
    timeout: float | None = 10.0,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    **arguments: Any,
) -> Any:
    """Send one request to the primary at ``path`` and return the result.

    Args:
        timeout: Seconds between two lines of the answer; None waits for ever.
        on_progress: Called with each line of progress that comes before the result.

    Raises:
        ControlError: Nobody answers there, or the primary refuses.
    """
    with _connect(path) as sock:
        return _exchange(sock, path, {"verb": verb, **arguments}, timeout, on_progress)


def stop(path: Path, *, force: bool = False, on_progress: Callable[[dict[str, Any]], None] | None = None) -> int:
    """Stop the primary at ``path``, wait until its process has ended, and return its exit code.

    Raises:
        ControlError: Nobody answers there, or the primary died while it was stopping.
    """
    request = {"verb": "stop", "force": force}
    with _connect(path) as sock:
        pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        if not pid:  # it is in another pid namespace: its answer is all that can be waited for
            return int(_exchange(sock, path, request, None, on_progress)["exit_code"])
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                result = _exchange(sock, path, request, None, on_progress)
                ended = select.poll()
                ended.register(pidfd, select.POLLIN)
                ended.poll(CONNECT_SECONDS * 1000)
            finally:
                os.close(pidfd)
            return int(result["exit_code"])
    raise ControlError(f"the primary at {path} is gone")


def find(control_socket: str | None, pid: int | None, port: int | None) -> Path:
    """Return the control socket of the primary that is meant: the named one, else the only one that runs.

    Raises:
        ControlError: There is none, or there are several.
    """
    if control_socket is not None:
        return Path(control_socket)
    running = list_running()
    if pid is not None:
        running = [primary for primary in running if primary.pid == pid]
    if port is not None:
        running = [primary for primary in running if port in primary.ports]
    if not running:
        wanted = f" with pid {pid}" if pid is not None else f" on port {port}" if port is not None else ""
        raise ControlError(f"no running primary{wanted} was found; one with its own --control-socket must be named")
    if len(running) > 1:
        shown = ", ".join(f"--pid {primary.pid} ({' '.join(primary.listeners)})" for primary in running)
        raise ControlError(f"{len(running)} primaries run, choose one: {shown}", ExitCode.USAGE)
    return running[0].path


def list_running() -> list[Running]:
    """Return the primaries that answer in the default folder.

    Raises:
        ControlError: The folder is not safe to read from.
    """
    folder = default_folder()
    try:
        check_folder(folder)
    except FileNotFoundError:
        return []
    except UnsafeFolder as exc:
        raise ControlError(str(exc)) from exc
    found = []
    for path in sorted(folder.glob("*.sock")):
        try:
            primary = ask(path, "status")["primary"]
        except ControlError:
            continue  # left behind by a primary that was killed
        found.append(Running(path, primary["pid"], tuple(primary["listeners"])))
    return found


def _connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(CONNECT_SECONDS)
    try:
        sock.connect(str(path))
    except OSError as exc:
        sock.close()
        raise ControlError(f"no primary answers at {path}: {exc.strerror or exc}") from exc
    return sock


def _exchange(
    sock: socket.socket,
    path: Path,
    request: dict[str, Any],
    timeout: float | None,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> Any:
    sock.settimeout(timeout)
    try:
        sock.sendall(json.dumps(request).encode() + b"\n")
        with sock.makefile("rb") as answers:
            for line in answers:
                answer = _parse(line, path)
                if "progress" not in answer:
                    break
                if on_progress is not None:
                    on_progress(answer["progress"])
            else:
                raise ControlError(f"the primary at {path} ended without an answer")
    except TimeoutError as exc:
        raise ControlError(f"the primary at {path} did not answer within {timeout:g} s") from exc
    except OSError as exc:
        raise ControlError(f"the primary at {path} hung up: {exc.strerror or exc}") from exc
    if not answer["ok"]:
        raise ControlError(f"the primary at {path} refused: {answer['error']}")
    return answer["result"]


def _parse(line: bytes, path: Path) -> dict[str, Any]:
    try:
        answer = json.loads(line)
        if "progress" in answer or answer["ok"] or answer["error"]:
            return dict(answer)
    except (ValueError, TypeError, KeyError):
        pass
    raise ControlError(f"what answers at {path} is no primary of wscluster")
