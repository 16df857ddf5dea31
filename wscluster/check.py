"""Looks at everything that `wscluster serve` would need, and starts nothing."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from wscluster.addresses import listen_addresses, show_address
from wscluster.config import Config, to_json
from wscluster.errors import ExitCode, StartError
from wscluster.tls import find_tls_faults
from wscluster.urls import hide_password

_KINDS = {"handler": "a handler", "asgi": "an ASGI app"}

MAX_ANSWER = 65536
"""What a pipe of Linux holds: whoever answers need not be waited for with a reader."""
MAX_SECONDS = 86400.0
"""The kernel waits for 24 days at the most."""


@dataclass(slots=True)
class Report:
    """What was found.

    Attributes:
        kind: ``handler`` or ``asgi``; empty where the target could not be imported.
        functions: The name of each function beside the handler, by its role.
        faults: One line each; the first decides about ``exit_code``, in the order in which `serve` looks.
        traceback: The target's own, where it raised.
    """

    target: str
    listeners: list[str]
    tls: bool
    bus: str | None
    kind: str = ""
    functions: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    traceback: str = ""
    exit_code: ExitCode = ExitCode.OK

    def blame(self, fault: str, exit_code: ExitCode) -> None:
        """Add a fault."""
        self.faults.append(fault)
        self.exit_code = self.exit_code or exit_code

    def as_json(self) -> dict[str, Any]:
        """Return what ``wscluster check --json`` prints."""
        return {
            "ok": not self.faults,
            "target": self.target,
            "kind": self.kind or None,
            "functions": self.functions,
            "listeners": self.listeners,
            "tls": self.tls,
            "bus": self.bus,
            "faults": self.faults,
        }

    def as_text(self) -> str:
        """Return lines for a person who wants to know that all is well."""
        functions = "".join(f", {role} {name}" for role, name in self.functions.items())
        bus = "a private Valkey" if self.bus is None else f"{self.bus}, which answers"
        return (
            f"target: {self.target}, {_KINDS[self.kind]}{functions}\n"
            f"listens on: {', '.join(self.listeners)}{', with TLS' if self.tls else ''}\n"
            f"bus: {bus}\n"
        )


def check(config: Config) -> Report:
    """Look at certificates, bus and target of ``config``; nothing is bound and no worker starts.

    The target is imported in a process of its own, as in a worker, within ``--worker-startup-timeout``.
    """
    url = config.bus.redis_url
    report = Report(
        target=config.target,
        listeners=[show_address(address) for address in listen_addresses(config.listen)],
        tls=config.tls.ssl_certfile is not None,
        bus=None if url is None else hide_password(url),
    )
    for fault in find_tls_faults(config.tls):
        report.blame(fault, ExitCode.NOT_STARTED)
    if url is not None:
        from wscluster.broker import probe

        try:
            asyncio.run(probe(url, config.bus.bus_timeout))
        except StartError as exc:
            report.blame(str(exc), exc.exit_code)
    _import_target(config, report)
    return report


def _import_target(config: Config, report: Report) -> None:
    seconds = min(config.fleet.worker_startup_timeout, MAX_SECONDS)
    read, write = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "wscluster.workers", "--check-fd", str(write)],
            # What the target prints is no part of the report.
            input=to_json(config).encode(), stdout=2, pass_fds=[write], timeout=seconds, check=False,
        )  # fmt: skip
        os.set_blocking(read, False)
        text = os.read(read, MAX_ANSWER)
    except subprocess.TimeoutExpired:
        fault = f"target {config.target!r} was not imported within {seconds:g} s (--worker-startup-timeout)"
        report.blame(fault, ExitCode.NOT_STARTED)
        return
    except BlockingIOError:
        text = b""
    finally:
        os.close(write)
        os.close(read)
    # A target that forks while it is imported has its child answer too.
    line, end, _ = text.partition(b"\n")
    if not end:
        report.blame(
            f"target {config.target!r}: the process that imported it ended by itself, with status {done.returncode}",
            ExitCode.NOT_STARTED,
        )
        return
    said = json.loads(line)
    if "fault" in said:
        report.traceback = said["traceback"]
        report.blame(said["fault"], ExitCode.TARGET)
    else:
        report.kind = said["kind"]
        report.functions = said["functions"]
