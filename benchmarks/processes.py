"""The servers of a comparison as processes, and what they cost: CPU of all their processes, private memory."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parent.parent


def descendants(pid: int) -> list[int]:
    """Return ``pid`` and the pids of all its descendants."""
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            found += descendants(int(child))
    return found


class Server:
    """A server process with its port; `cpu_seconds` and `private_bytes` speak of it and its descendants."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self.port = port

    def cpu_seconds(self) -> float:
        """CPU that all its processes have used so far, from the scheduler's own account in ns."""
        total = 0
        for pid in descendants(self._process.pid):
            for account in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                total += int(account.read_text().split()[0])
        return total / 1e9

    def private_bytes(self) -> int:
        """Memory that belongs to its processes alone, in user space."""
        total = 0
        for pid in descendants(self._process.pid):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Private_"):
                    total += int(line.split()[1]) * 1024
        return total

    def stop(self) -> None:
        """Terminate it and wait for its end."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)
        assert self._process.stdout is None or self._process.stdout.close() is None


def start_wscluster(target: str, *flags: str, workers: int = 1) -> Server:
    """Start ``wscluster serve TARGET`` and wait until all workers are ready."""
    read, write = os.pipe()
    command = [
        sys.executable, "-m", "wscluster", "serve", target, "--workers", str(workers),
        "--port", "0", "--ready-fd", str(write), "--log-level", "warning", *flags,
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    ready, port = 0, 0
    with os.fdopen(read) as events:
        for line in events:
            event = json.loads(line)
            ready += event["event"] == "worker_ready"
            port = event.get("port") or port
            if ready == workers and port:
                return Server(process, port)
    raise RuntimeError(f"{' '.join(command)} did not become ready: exit code {process.wait()}")


def start_peer(handler: str) -> Server:
    """Start the plain `websockets` server with a handler of `benchmarks.handlers`."""
    command = [sys.executable, "-m", "benchmarks.peer", handler]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return Server(process, int(process.stdout.readline()))


def start_uvicorn(target: str, *, workers: int = 1) -> Server:
    """Start uvicorn as it is, its parts chosen by itself (uvloop, httptools, websockets-sansio), without access log."""
    command = [
        sys.executable, "-m", "uvicorn", target, "--port", "0", "--workers", str(workers), "--no-access-log",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    ready, port = 0, 0
    for line in process.stdout:
        ready += b"Application startup complete" in line
        if found := re.search(rb"running on http://[\d.]+:(\d+)", line):
            port = int(found[1])
        if ready == workers and port:
            # It logs every WebSocket, and would stop at a full pipe.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return Server(process, port)
    raise RuntimeError(f"{' '.join(command)} did not become ready: exit code {process.wait()}")
