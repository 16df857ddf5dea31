"""What is shown to a person on a terminal: the only door to rich, and the colours that a state has everywhere."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

__all__ = ["BarColumn", "Console", "Group", "Live", "Measurement", "Progress", "Table", "Text", "TextColumn"]

STYLES = {
    "ready": "green",
    "starting": "yellow",
    "candidate": "yellow",
    "draining": "yellow",
    "killed": "red",
    "exited": "red",
    "failed": "red",
}
"""Of each state of a worker."""


def make_bar() -> Progress:
    """Return a bar on standard error for what takes long; the caller starts and stops it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} of {task.total}"))
    return Progress(*columns, console=Console(stderr=True), transient=True)
