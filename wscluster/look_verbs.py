"""The verbs ``top``, ``connections`` and ``logs``: what goes on, for a person or as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wscluster.amounts import show_amount, show_lag, show_number
from wscluster.control_client import ask
from wscluster.errors import ExitCode
from wscluster.status_table import all_workers
from wscluster.terminal import STYLES, Console, Group, Live, Table, Text

MIN_WIDTH = 80
LOG_SECONDS = 60.0
"""The primary says at least every 20 s that there is nothing new."""
PAGES = 10_000
"""More pages than this are no list but a mistake."""


def top(path: Path, interval: float, *, as_json: bool) -> None:
    """Show the workers of the primary at ``path`` every ``interval`` seconds, until it ends or Ctrl-C.

    Raises:
        ControlError: Nobody answers there, or the primary has ended.
    """
    looks = _looks(path, interval)
    if as_json:
        for status in looks:
            print(json.dumps(status), flush=True)
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(MIN_WIDTH, console.width)
        console.print(_show(next(looks)))
        return
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for status in looks:
                live.update(_show(status), refresh=True)
    except KeyboardInterrupt:
        return


def add_rates(status: dict[str, Any], before: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return ``status`` with what each worker has received and sent a second since ``before``; None is not known."""
    earlier = {worker["id"]: worker for worker in all_workers(before)}
    for worker in all_workers(status):
        old = earlier.get(worker["id"], {})
        for name in ("messages_in", "messages_out"):
            now, then = worker[name], old.get(name)
            known = now is not None and then is not None and seconds > 0
            worker[f"{name}_per_second"] = round((now - then) / seconds, 1) if known else None
    return status


def list_connections(path: Path, *, slot: int | None, ip: str | None, room: str | None, as_json: bool) -> ExitCode:
    """Print the connections that fit: a line each, or one JSON list; 1 where a worker did not answer.

    Raises:
        ControlError: Nobody answers there, or what was asked for makes no sense.
    """
    found: list[dict[str, Any]] = []
    silent: set[int] = set()
    after: Any = None
    for _ in range(PAGES):
        page = ask(path, "connections", slot=slot, ip=ip, room=room, after=after)
        silent.update(page["silent"])
        after = page["next"]
        if as_json:
            found += page["connections"]
        else:
            for connection in page["connections"]:
                print(_line(connection))
        if after is None:
            break
    if as_json:
        print(json.dumps(found))
    for worker in sorted(silent):
        sys.stderr.write(f"wscluster: worker {worker} does not answer: its connections are not listed\n")
    return ExitCode.FAILED if silent else ExitCode.OK


def show_logs(path: Path, *, follow: bool, slot: int | None, last: int | None, as_json: bool) -> None:
    """Print the lines of the log that are kept, ``last`` of them at most, and with ``follow`` those that come.

    Raises:
        ControlError: Nobody answers there, there is no such slot, or the primary has died.
    """
    after: int | None = None
    try:
        while True:
            page = ask(path, "logs", timeout=LOG_SECONDS, slot=slot, after=after, last=last, wait=follow)
            if page["lost"]:
                sys.stderr.write(f"wscluster: {page['lost']} lines are lost: they came faster than they were read\n")
            for line in page["lines"]:
                print(json.dumps(line) if as_json else line["line"])
            sys.stdout.flush()
            after, last = page["next"], None
            if page["ended"] or not (follow or page["more"]):
                return
    except KeyboardInterrupt:
        return


def _looks(path: Path, interval: float) -> Iterator[dict[str, Any]]:
    before, at = ask(path, "status"), time.monotonic()
    while True:
        time.sleep(interval)
        status, now = ask(path, "status"), time.monotonic()
        yield add_rates(status, before, now - at)
        before, at = status, now


def _show(status: dict[str, Any]) -> Group:
    primary, totals = status["primary"], status["totals"]
    head = Text.assemble(
        ("wscluster ", "bold"), " ".join(primary["listeners"][:1]), f"  phase {primary['phase']}  ",
        f"{totals['connections']} open  {totals['rejected']} rejected  {totals['workers_restarted']} restarts",
    )  # fmt: skip
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for name in ("slot", "pid", "state", "conns", "in/s", "out/s", "rooms", "lag", "cpu", "rss"):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for worker in all_workers(status):
        cpu = worker["cpu_cores"]
        table.add_row(
            show_number(worker["slot"]),
            show_number(worker["pid"]),
            Text(worker["state"], STYLES.get(worker["state"], "")),
            show_amount(worker["connections"]),
            show_amount(worker["messages_in_per_second"]),
            show_amount(worker["messages_out_per_second"]),
            show_amount(worker["rooms"]),
            show_lag(worker["loop_lag_seconds"]),
            "-" if cpu is None else f"{cpu:.0%}",
            show_amount(worker["rss_bytes"], exact_below=1000),
        )
    return Group(head, table)


def _line(connection: dict[str, Any]) -> str:
    client = "unix" if connection["client"] is None else f"{connection['client'][0]} {connection['client'][1]}"
    rooms = connection["rooms"]
    more = "" if not rooms or connection["rooms_count"] == len(rooms) else f",… ({connection['rooms_count']})"
    shown = "-" if rooms is None else ",".join(rooms) + more or "no room"
    path = "-" if connection["path"] is None else connection["path"]
    return f"{connection['id']}  slot {connection['slot']}  {client}  {path}  {shown}"
