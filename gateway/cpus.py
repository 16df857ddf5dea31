"""How many CPUs this process may use: its affinity mask and its cgroup's quota, not the machine's count."""

from __future__ import annotations

import math
import os
from pathlib import Path

MEMBERSHIP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def parse_quota_v2(text: str) -> float | None:
    """Return the CPUs that ``cpu.max`` allows (``max 100000`` or ``150000 100000``); None: no limit."""
    quota, _, period = text.partition(" ")
    if quota == "max":
        return None
    return int(quota) / int(period or 100000)


def parse_quota_v1(quota: str, period: str) -> float | None:
    """Return the CPUs that ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us`` allow; None: no limit."""
    return int(quota) / int(period) if int(quota) > 0 else None


def cgroup_paths(membership: str) -> tuple[str, str]:
    """Return the path in the v2 hierarchy and in v1's cpu controller from the text of ``/proc/self/cgroup``."""
    unified = cpu = "/"
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            unified = path
        elif "cpu" in controllers.split(","):
            cpu = path
    return unified, cpu


def _upwards(root: Path, path: str) -> list[Path]:
    """Return the folder of ``path`` below ``root`` and all above it: a limit anywhere holds below."""
    folder = root / path.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def quota(membership: Path = MEMBERSHIP, root: Path = CGROUPS) -> float | None:
    """Return the CPUs that the cgroup allows; None where there is no limit or no cgroup."""
    try:
        unified, cpu = cgroup_paths(membership.read_text())
    except (OSError, ValueError):
        return None
    limits: list[float] = []
    for folder in _upwards(root, unified):
        try:
            found = parse_quota_v2((folder / "cpu.max").read_text().strip())
        except (OSError, ValueError, ZeroDivisionError):
            continue
        if found is not None:
            limits.append(found)
    for folder in _upwards(root / "cpu", cpu):
        try:
            found = parse_quota_v1(
                (folder / "cpu.cfs_quota_us").read_text(), (folder / "cpu.cfs_period_us").read_text()
            )
        except (OSError, ValueError, ZeroDivisionError):
            continue
        if found is not None:
            limits.append(found)
    return min(limits, default=None)


def count_cpus(membership: Path = MEMBERSHIP, root: Path = CGROUPS) -> int:
    """Return how many workers ``--workers auto`` means: usable CPUs, a part of one counted as one."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = quota(membership, root)
    return max(1, usable if allowed is None else min(usable, math.ceil(allowed)))
