"""`wscluster status` in a terminal of 80 columns: everything in its place, and no digit cut off."""

from typing import Any

import pytest

from wscluster.status_table import print_status

HEADERS = ["slot", "id", "pid", "state", "up", "conns", "adopt", "in", "out", "rooms", "lag", "cpu", "rss"]


def worker(slot: int = 0, **others: Any) -> dict[str, Any]:
    known = {
        "slot": slot, "id": 3, "pid": 123456, "state": "ready", "phase": 1, "uptime_seconds": 1.25, "connections": 5,
        "adopted": 9, "messages_in": 10, "messages_out": 20, "rooms": 1, "loop_lag_seconds": 0.0003, "cpu_cores": 0.02,
        "rss_bytes": 41_000_000,
    }  # fmt: skip
    return known | others


def unknown(slot: int, state: str) -> dict[str, Any]:
    return dict.fromkeys(worker()) | {"slot": slot, "state": state}


def status_of(*workers: dict[str, Any], url: str | None = "unix:///tmp/wscluster-bus-1-x/bus.sock") -> dict[str, Any]:
    return {
        "primary": {
            "pid": 123450, "version": "0.1.0", "uptime_seconds": 3725.5, "listeners": ["127.0.0.1:8000", "[::1]:8000"],
            "sticky": ["ip"], "phase": 1,
        },
        "workers": list(workers),
        "bus": {"url": url, "private": True, "connected": True, "published": 7, "delivered": 8, "gaps": 0,
                "ignored": 0},
        "totals": {
            "connections": 5, "accepted": 9, "rejected": 0, "adopted": 9, "placed_again": 0, "moved": None,
            "slow_closed": 0, "workers_restarted": 0,
        },
    }  # fmt: skip


def shown(capsys: pytest.CaptureFixture[str], status: dict[str, Any]) -> list[str]:
    print_status(status)
    lines = capsys.readouterr().out.splitlines()
    assert not any("…" in line or "\x1b" in line for line in lines)
    return lines


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


def test_the_whole_page(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, status_of(worker(0), unknown(1, "failed")))
    assert [line.rstrip() for line in lines] == [
        "wscluster 0.1.0  pid 123450  up 1h02m  127.0.0.1:8000  [::1]:8000  sticky ip",
        "slot id    pid state    up conns adopt in out rooms   lag cpu rss",
        "   0  3 123456 ready  1.2s     5     9 10  20     1 0.3ms  2% 41M",
        "   1  -      - failed    -     -     -  -   -     -     -   -   -",
        "bus     unix:///tmp/wscluster-bus-1-x/bus.sock  connected  published 7",
        "        delivered 8  gaps 0",
        "totals  connections 5  accepted 9  rejected 0  adopted 9  placed_again 0",
        "        moved -  slow_closed 0  workers_restarted 0",
    ]


def test_a_busy_cluster_of_a_thousand_slots_fits(capsys: pytest.CaptureFixture[str]) -> None:
    large = worker(
        1023, id=99999, pid=999999, state="draining", uptime_seconds=99 * 86400 + 82800, connections=99_999,
        adopted=123_456_789, messages_in=98_765_432_109, messages_out=999_499_999, rooms=65_000,
        loop_lag_seconds=0.9994, cpu_cores=1.004, rss_bytes=9_940_000_000,
    )  # fmt: skip
    lines = shown(capsys, status_of(large, worker(0)))
    assert max(len(line) for line in lines) <= 80
    assert lines[1].split() == HEADERS
    assert lines[3].split() == [
        "1023", "99999", "999999", "draining", "99d23h", "99999", "123M", "99G", "999M", "65000", "999ms",
        "100%", "9.9G",
    ]  # fmt: skip


@pytest.mark.parametrize("state", ["starting", "ready", "draining", "killed", "exited", "failed", "of a later version"])
def test_every_state_is_shown_and_what_is_not_known_is_a_dash(capsys: pytest.CaptureFixture[str], state: str) -> None:
    row = shown(capsys, status_of(unknown(2, state)))[2]
    assert row.split() == ["2", "-", "-", *state.split(), *["-"] * 9]


def test_a_worker_that_is_killed_keeps_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    row = shown(capsys, status_of(worker(1, state="killed", loop_lag_seconds=31.0, cpu_cores=None)))[2]
    assert row.split() == ["1", "3", "123456", "killed", "1.2s", "5", "9", "10", "20", "1", "31.0s", "-", "41M"]


@pytest.mark.parametrize("columns", ["20", "40", "79"])
def test_a_narrow_terminal_breaks_lines_and_cuts_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    wide = shown(capsys, status_of(worker(pid=4194304)))
    monkeypatch.setenv("COLUMNS", columns)
    assert shown(capsys, status_of(worker(pid=4194304))) == wide


def test_a_wide_terminal_is_used(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert shown(capsys, status_of(worker()))[-1].endswith("workers_restarted 0")
    assert len(shown(capsys, status_of(worker()))) == 5


def test_an_unused_bus_and_a_lost_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, status_of(url=None))[-3] == "bus     private, not used yet"
    lost = status_of(url="redis://user:***@h:6379/0")
    lost["bus"]["connected"] = False
    assert [line.strip() for line in shown(capsys, lost)[-4:-2]] == [
        "bus     redis://user:***@h:6379/0  not connected  published 7  delivered 8",
        "gaps 0",
    ]


def test_what_looks_like_markup_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    status = status_of(url="unix:///tmp/[red]/[/]x.sock")
    status["primary"]["listeners"] = ["unix:/tmp/[bold]a.sock"]
    lines = shown(capsys, status)
    assert "unix:/tmp/[bold]a.sock" in lines[0]
    assert any("unix:///tmp/[red]/[/]x.sock" in line for line in lines)


def test_a_long_url_is_broken_by_the_terminal_alone(capsys: pytest.CaptureFixture[str]) -> None:
    url = "unix:///" + "x" * 100
    assert any(line.endswith(url) for line in shown(capsys, status_of(url=url)))


def test_states_have_their_colours_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_status(status_of(worker(), unknown(1, "failed")))
    out = capsys.readouterr().out
    assert "\x1b[32mready" in out
    assert "\x1b[31mfailed" in out
