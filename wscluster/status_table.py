"""`wscluster status` for a person: readable in 80 columns, and no digit is ever cut off."""

from __future__ import annotations

from typing import Any

from wscluster.terminal import STYLES, Console, Measurement, Table, Text

MIN_WIDTH = 80


def print_status(status: dict[str, Any]) -> None:
    """Print ``status``, the JSON of `wscluster status --json`, as a table on standard output."""
    console = Console(highlight=False)
    width = max(MIN_WIDTH, console.width)
    primary = status["primary"]
    facts = [f"pid {primary['pid']}", f"up {_duration(primary['uptime_seconds'])}", *primary["listeners"]]
    facts.append(f"sticky {' '.join(primary['sticky'])}")
    table = _make_table(status["workers"])
    # A terminal that is too narrow breaks the lines; rich would cut the numbers.
    console.width = max(width, Measurement.get(console, console.options.update(width=1000), table).maximum)
    console.print(_wrap(Text(f"wscluster {primary['version']}", "bold"), facts, width), soft_wrap=True)
    console.print(table)
    console.print(_wrap(Text("bus"), _describe_bus(status["bus"]), width), soft_wrap=True)
    totals = [f"{name} {_number(value)}" for name, value in status["totals"].items()]
    console.print(_wrap(Text("totals"), totals, width), soft_wrap=True)


def _make_table(workers: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for name in ("slot", "id", "pid", "state", "up", "conns", "adopt", "in", "out", "rooms", "lag", "cpu", "rss"):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for worker in workers:
        table.add_row(*_cells(worker))
    return table


def _cells(worker: dict[str, Any]) -> list[str | Text]:
    lag, cpu, rss = worker["loop_lag_seconds"], worker["cpu_cores"], worker["rss_bytes"]
    return [
        _number(worker["slot"]),
        _number(worker["id"]),
        _number(worker["pid"]),
        Text(worker["state"], STYLES.get(worker["state"], "")),
        _duration(worker["uptime_seconds"]),
        *(_amount(worker[name]) for name in ("connections", "adopted", "messages_in", "messages_out", "rooms")),
        "-" if lag is None else _duration(lag) if lag >= 10 else f"{lag:.1f}s" if lag >= 0.9995 else _milliseconds(lag),
        "-" if cpu is None else f"{cpu:.0%}",
        _amount(rss, exact_below=1000),
    ]


def _describe_bus(bus: dict[str, Any]) -> list[str | Text]:
    if bus["url"] is None:
        return ["private, not used yet"]
    state = Text("connected", "green") if bus["connected"] else Text("not connected", "red")
    counted = ["published", "delivered", "gaps", *(["ignored"] if bus["ignored"] else [])]
    return [bus["url"], state, *(f"{name} {_number(bus[name])}" for name in counted)]


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


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _amount(value: int | None, exact_below: int = 100_000) -> str:
    """Return a count or size in five characters at most: ``99999``, ``100k``, ``1.2M``, ``35G``."""
    if value is None or value < exact_below:
        return _number(value)
    scaled = float(value)
    for unit in "kMGTPE":
        scaled /= 1000
        if scaled < 9.95:
            return f"{scaled:.1f}{unit}"
        if scaled < 999.5 or unit == "E":
            return f"{scaled:.0f}{unit}"
    raise AssertionError("the last unit takes everything")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f}ms" if seconds < 0.00995 else f"{seconds * 1000:.0f}ms"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days >= 100:
        return f"{days}d"
    return f"{days}d{hours}h" if days else f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"
