"""`wscluster status` for a person."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

STYLES = {
    "ready": "green",
    "starting": "yellow",
    "draining": "yellow",
    "killed": "red",
    "exited": "red",
    "failed": "red",
}


def print_status(status: dict[str, Any]) -> None:
    """Print ``status``, the JSON of API.md, as a table on standard output."""
    console = Console(highlight=False)
    primary, bus, totals = status["primary"], status["bus"], status["totals"]
    console.print(
        f"[bold]wscluster {primary['version']}[/bold]  pid {primary['pid']}  up {_duration(primary['uptime_seconds'])}"
        f"  {' '.join(primary['listeners'])}  sticky {' '.join(primary['sticky'])}",
        soft_wrap=True,
    )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("slot", "id", "pid"):
        table.add_column(name, justify="right")
    table.add_column("state")
    for name in ("up", "connections", "adopted", "in", "out", "rooms", "lag ms", "cpu", "rss MB"):
        table.add_column(name, justify="right")
    for worker in status["workers"]:
        table.add_row(*_cells(worker))
    console.print(table)
    console.print(_describe_bus(bus), soft_wrap=True)
    console.print("totals  " + "  ".join(f"{name} {_number(value)}" for name, value in totals.items()), soft_wrap=True)


def _cells(worker: dict[str, Any]) -> list[str]:
    lag, cpu, rss = worker["loop_lag_seconds"], worker["cpu_cores"], worker["rss_bytes"]
    return [
        _number(worker["slot"]),
        _number(worker["id"]),
        _number(worker["pid"]),
        f"[{STYLES[worker['state']]}]{worker['state']}[/]",
        _duration(worker["uptime_seconds"]),
        *(_number(worker[name]) for name in ("connections", "adopted", "messages_in", "messages_out", "rooms")),
        "-" if lag is None else f"{lag * 1000:.1f}",
        "-" if cpu is None else f"{cpu:.0%}",
        "-" if rss is None else f"{rss / 1e6:.0f}",
    ]


def _describe_bus(bus: dict[str, Any]) -> str:
    if bus["url"] is None:
        return "bus     private, not used yet"
    state = "[green]connected[/]" if bus["connected"] else "[red]not connected[/]"
    return (
        f"bus     {bus['url']}  {state}  published {bus['published']}  delivered {bus['delivered']}  gaps {bus['gaps']}"
    )


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d{hours}h" if days else f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"
