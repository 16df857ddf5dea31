"""`--workers auto`: the cgroup's quota, the affinity mask, and the smaller of the two."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from wscluster.gateway.cpus import cgroup_paths, count_cpus, parse_quota_v1, parse_quota_v2, quota


class Machine:
    """The cgroup files of a machine, below a folder of the test."""

    def __init__(self, folder: Path) -> None:
        self.membership = folder / "cgroup"
        self.root = folder / "fs"

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def write_v1(self, path: str, quota_us: int, period_us: int = 100_000) -> None:
        self.write(f"{path}/cpu.cfs_quota_us", str(quota_us))
        self.write(f"{path}/cpu.cfs_period_us", str(period_us))

    def quota(self) -> float | None:
        return quota(self.membership, self.root)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("max 100000", None), ("max", None), ("150000 100000", 1.5), ("50000 100000", 0.5), ("20000 10000", 2.0),
     ("300000", 3.0)],
)  # fmt: skip
def test_the_quota_of_cgroup_v2(text: str, cpus: float | None) -> None:
    assert parse_quota_v2(text) == cpus


@pytest.mark.parametrize(
    ("quota_us", "period_us", "cpus"),
    [("-1\n", "100000\n", None), ("0", "100000", None), ("250000\n", "100000\n", 2.5), ("50000", "200000", 0.25)],
)
def test_the_quota_of_cgroup_v1(quota_us: str, period_us: str, cpus: float | None) -> None:
    assert parse_quota_v1(quota_us, period_us) == cpus


@pytest.mark.parametrize(
    ("membership", "paths"),
    [
        ("", ("/", "/")),
        ("0::/\n", ("/", "/")),
        ("0::/system.slice/chat.service\n", ("/system.slice/chat.service", "/")),
        ("3:cpuset:/sets\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n0::/y\n", ("/y", "/docker/abc")),
        ("2:cpuacct,cpu:/a:b\n", ("/", "/a:b")),
    ],
)
def test_the_paths_of_a_membership(membership: str, paths: tuple[str, str]) -> None:
    assert cgroup_paths(membership) == paths


def test_a_limit_of_v2_is_found(machine: Machine) -> None:
    machine.membership.write_text("0::/a/b\n")
    machine.write("a/b/cpu.max", "150000 100000")
    assert machine.quota() == 1.5


@pytest.mark.parametrize("where", ["", "a/", "a/b/"])
def test_the_tightest_limit_of_all_folders_above_counts(machine: Machine, where: str) -> None:
    machine.membership.write_text("0::/a/b\n")
    for folder in ("", "a/", "a/b/"):
        machine.write(f"{folder}cpu.max", "400000 100000")
    machine.write(f"{where}cpu.max", "200000 100000")
    assert machine.quota() == 2.0


def test_a_limit_beside_the_own_path_does_not_count(machine: Machine) -> None:
    machine.membership.write_text("0::/a/b\n")
    machine.write("a/c/cpu.max", "100000 100000")
    machine.write("a/b/c/cpu.max", "100000 100000")
    machine.write("a/b/cpu.max", "max 100000")
    assert machine.quota() is None


def test_a_limit_of_v1_is_found_and_so_is_one_above_it(machine: Machine) -> None:
    machine.membership.write_text("4:cpu,cpuacct:/docker/abc\n0::/\n")
    machine.write_v1("cpu/docker/abc", 300_000)
    assert machine.quota() == 3.0
    machine.write_v1("cpu/docker", -1)
    machine.write_v1("cpu", 250_000)
    assert machine.quota() == 2.5


def test_a_container_that_sees_the_path_of_its_host_finds_its_limit_at_the_root(machine: Machine) -> None:
    machine.membership.write_text("4:cpu,cpuacct:/docker/abc\n")
    machine.write_v1("cpu", 100_000)
    assert machine.quota() == 1.0


def test_a_path_outside_of_the_namespace_is_harmless(machine: Machine) -> None:
    machine.membership.write_text("0::/../../other\n")
    machine.write("cpu.max", "200000 100000")
    assert machine.quota() == 2.0


@pytest.mark.parametrize("membership", [None, "", "garbage\n", "0::/\n"])
def test_without_a_cgroup_there_is_no_limit(machine: Machine, membership: str | None) -> None:
    if membership is not None:
        machine.membership.write_text(membership)
    assert machine.quota() is None


@pytest.mark.parametrize("text", ["", "banana", "100000 0", "1 2 3"])
def test_a_file_that_makes_no_sense_is_passed_over(machine: Machine, text: str) -> None:
    machine.membership.write_text("0::/a\n")
    machine.write("a/cpu.max", text)
    machine.write("cpu.max", "200000 100000")
    assert machine.quota() == 2.0


# The count


@pytest.fixture
def affinity() -> Iterator[set[int]]:
    """The CPUs of this process, set back after the test."""
    cpus = os.sched_getaffinity(0)
    yield cpus
    os.sched_setaffinity(0, cpus)


@pytest.mark.parametrize(
    ("limit", "count"), [("1000 100000", 1), ("100000 100000", 1), ("100001 100000", 2), ("200000 100000", 2)]
)
def test_a_part_of_a_cpu_counts_as_one(machine: Machine, affinity: set[int], limit: str, count: int) -> None:
    machine.membership.write_text("0::/\n")
    machine.write("cpu.max", limit)
    assert count_cpus(machine.membership, machine.root) == min(count, len(affinity))


def test_a_quota_above_the_affinity_mask_does_not_count(machine: Machine, affinity: set[int]) -> None:
    machine.membership.write_text("0::/\n")
    machine.write("cpu.max", "100000000 100000")
    assert count_cpus(machine.membership, machine.root) == len(affinity)
    os.sched_setaffinity(0, {min(affinity)})
    assert count_cpus(machine.membership, machine.root) == 1


def test_without_a_quota_the_affinity_mask_counts(machine: Machine, affinity: set[int]) -> None:
    assert count_cpus(machine.membership, machine.root) == len(affinity)
    assert 1 <= count_cpus() <= len(affinity)
