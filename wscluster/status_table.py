"""`wscluster status` for a person: readable in 80 columns, and no digit is ever cut off."""

from __future__ import annotations

from typing import Any

from wscluster.amounts import show_amount, show_duration, show_lag, show_number
from wscluster.terminal import STYLES, Console, Measurement, Table, Text

MIN_WIDTH = 80


def print_status(status: dict[str, Any]) -> None:
    """Print ``status``, the JSON of `wscluster status --json`, as a table on standard output."""
    console = Console(highlight=False)
    width = max(MIN_WIDTH, console.width)
    primary = status["primary"]
    facts = [f"pid {primary['pid']}", f"up {show_duration(primary['uptime_seconds'])}", *primary["listeners"]]
    facts.append(f"sticky {' '.join(primary['sticky'])}")
    table = _make_table(all_workers(status))
    # A terminal that is too narrow breaks the lines; rich would cut the numbers.
    console.width = max(width, Measurement.get(console, console.options.update(width=1000), table).maximum)
    console.print(_wrap(Text(f"wscluster {primary['version']}", "bold"), facts, width), soft_wrap=True)
    console.print(table)
    console.print(_wrap(Text("bus"), _describe_bus(status["bus"]), width), soft_wrap=True)
    totals = [f"{name} {show_number(value)}" for name, value in status["totals"].items()]
    console.print(_wrap(Text("totals"), totals, width), soft_wrap=True)


def all_workers(status: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is said of each worker, in the order of slots; beside a slot's own those that come and go there."""
    # A primary of an earlier version names the slots' own only.
    return sorted([*status["workers"], *status.get("others", ())], key=lambda worker: int(worker["slot"]))


def _make_table(workers: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    # During a reload it matters who is of which phase, more than how many each has adopted.
    phases = len({worker["phase"] for worker in workers if worker["phase"] is not None}) > 1
    fourth = "phase" if phases else "adopt"
    for name in ("slot", "id", "pid", "state", "up", "conns", fourth, "in", "out", "rooms", "lag", "cpu", "rss"):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for worker in workers:
        table.add_row(*_cells(worker, phases))
    return table


def _cells(worker: dict[str, Any], phases: bool) -> list[str | Text]:
    cpu = worker["cpu_cores"]
    return [
        show_number(worker["slot"]),
        show_number(worker["id"]),
        show_number(worker["pid"]),
        Text(worker["state"], STYLES.get(worker["state"], "")),
        show_duration(worker["uptime_seconds"]),
        show_amount(worker["connections"]),
        show_amount(worker["phase" if phases else "adopted"]),
        *(show_amount(worker[name]) for name in ("messages_in", "messages_out", "rooms")),
        show_lag(worker["loop_lag_seconds"]),
        "-" if cpu is None else f"{cpu:.0%}",
        show_amount(worker["rss_bytes"], exact_below=1000),
    ]


def _describe_bus(bus: dict[str, Any]) -> list[str | Text]:
    if bus["url"] is None:
        return ["private, not used yet"]
    state = Text("connected", "green") if bus["connected"] else Text("not connected", "red")
    counted = ["published", "delivered", "gaps", *(["ignored"] if bus["ignored"] else [])]
    return [bus["url"], state, *(f"{name} {show_number(bus[name])}" for name in counted)]


def _wrap(label: Text, items: list[Any], width: int) -> Text:
    """Return ``label`` and ``items`` in lines of ``width``; an item is broken by the terminal only."""
    text = Text()
    text.append_text(label)
    text.pad_right(max(0, 6 - len(label)))
    column = len(text)
    for item in items:
        if column + 2 + len(item) > width and column > 8:
            text.append("\n" + " " * 6)
            column = 6
        text.append("  ").append(item)
        column += 2 + len(item)
    return text
