"""Numbers as a person reads them, in few characters: counts, sizes and times."""

from __future__ import annotations


def show_number(value: int | None) -> str:
    """Return ``value`` in full; ``-`` for what is not known."""
    return "-" if value is None else str(value)


def show_amount(value: float | None, exact_below: int = 100_000) -> str:
    """Return a count or size in five characters at most: ``99999``, ``100k``, ``1.2M``, ``35G``."""
    value = None if value is None else round(value)
    if value is None or value < exact_below:
        return show_number(value)
    scaled = float(value)
    for unit in "kMGTP":
        scaled /= 1000
        if scaled < 9.95:
            return f"{scaled:.1f}{unit}"
        if scaled < 999.5:
            return f"{scaled:.0f}{unit}"
    return f"{scaled / 1000:.0f}E"


def show_lag(seconds: float | None) -> str:
    """Return a short time, to the tenth of a millisecond where that is much of it."""
    if seconds is None:
        return "-"
    if seconds >= 10:
        return show_duration(seconds)
    if seconds >= 0.9995:
        return f"{seconds:.1f}s"
    return f"{seconds * 1000:.1f}ms" if seconds < 0.00995 else f"{seconds * 1000:.0f}ms"


def show_duration(seconds: float | None) -> str:
    """Return a time from tenths of a second to days: ``1.2s``, ``1m05s``, ``2h00m``, ``3d4h``, ``120d``."""
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
