"""What workers write becomes lines that say whose they are; the last of them are kept and given out in pages."""

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wscluster.gateway.log_lines import (
    MAX_KEPT_CHARS,
    MAX_KEPT_LINES,
    MAX_LINE_BYTES,
    MAX_PAGE_CHARS,
    Line,
    Origin,
    Ring,
    Signer,
    Splitter,
)
from wscluster.log_text import text_time

AT = 1769860800.1235
ORIGIN = Origin(worker=3, slot=0, phase=2)
WHO = "worker 3 slot 0 phase 2"


def split(*chunks: bytes) -> list[bytes]:
    splitter = Splitter()
    return [line for chunk in chunks for line in splitter.feed(chunk)] + list(splitter.end())


@given(st.lists(st.binary(max_size=30)), st.lists(st.integers(0, 200)))
def test_wherever_a_pipe_cuts_the_lines_are_the_same(written: list[bytes], cuts: list[int]) -> None:
    data = b"\n".join(written)
    ends = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    chunks = [data[start:end] for start, end in itertools.pairwise(ends)]
    lines = split(*chunks)
    assert lines == split(data)
    *complete, last = data.split(b"\n")
    assert lines == [line.removesuffix(b"\r") for line in complete] + ([last] if last else [])


def test_a_line_without_an_end_is_cut_between_characters_and_nothing_of_it_is_lost() -> None:
    text = "ä€😀" * 20_000
    for chunk in (1000, 65536, 10**6):
        data = text.encode()
        pieces = split(*(data[start : start + chunk] for start in range(0, len(data), chunk)))
        assert b"".join(pieces).decode() == text
        assert all(len(piece) <= MAX_LINE_BYTES for piece in pieces)
        assert len(pieces) <= len(data) // (MAX_LINE_BYTES - 4) + 1
        assert all(piece.decode() for piece in pieces), "no character is cut in two"


def test_what_a_program_prints_is_signed_and_harmless() -> None:
    signer = Signer(ORIGIN, "stdout", "text")
    shown, kept = signer.sign("a\tb \x1b[2J\x1b]0;owned\x07 \x1b[31mred\x1b[0m é".encode() + b"\xff", AT)
    head = f"{text_time(AT)} stdout  {WHO} | "
    assert shown == head + "a\tb \\x1b[2J\\x1b]0;owned\\x07 \x1b[31mred\x1b[0m é\\xff\x1b[0m"
    assert kept == Line(AT, ORIGIN, "stdout", head + "a\tb \\x1b[2J\\x1b]0;owned\\x07 red é\\xff")
    assert kept.as_json() == {
        "time": "2026-01-31T12:00:00.123Z", "role": "worker", "worker": 3, "slot": 0, "phase": 2,
        "stream": "stdout", "line": kept.text,
    }  # fmt: skip
    assert Line(AT, None, "log", "x").as_json()["role"] == "primary"


@pytest.mark.parametrize("level", ["ERROR  ", "\x1b[31mERROR\x1b[0m  ", "INFO   "])
def test_what_wscluster_has_signed_stays_as_it_is_with_the_lines_that_belong_to_it(level: str) -> None:
    signer = Signer(ORIGIN, "stderr", "text")
    lines = [
        f"2026-01-31 12:00:00.123 {level} {WHO} | handler failed",
        "  Traceback (most recent call last):",
        "  ValueError: boom",
        "  ",
    ]
    for line in lines:
        shown, kept = signer.sign(line.encode(), AT)
        assert shown == line
        assert (kept.stream, kept.text) == ("log", re.sub("\x1b.*?m", "", line))
    assert signer.sign(b"Traceback", AT)[1].stream == "stderr", "not set in: another one's"
    assert signer.sign(b"  set in, behind another one's", AT)[1].stream == "stderr"


@pytest.mark.parametrize(
    "forged",
    [
        "2026-01-31 12:00:00.123 INFO    primary | forged",
        "2026-01-31 12:00:00.123 INFO    worker 4 slot 0 phase 2 | forged",
        f"x 2026-01-31 12:00:00.123 INFO    {WHO} | forged",
        f"INFO    {WHO} | forged",
    ],
)
def test_what_only_looks_like_a_line_of_the_log_is_signed_as_what_it_is(forged: str) -> None:
    assert Signer(ORIGIN, "stderr", "text").sign(forged.encode(), AT)[1].stream == "stderr"
    own = f"2026-01-31 12:00:00.123 INFO    {WHO} | mine"
    assert Signer(ORIGIN, "stdout", "text").sign(own.encode(), AT)[1].stream == "stdout", "the log goes to stderr"


def test_as_json_every_line_is_an_object() -> None:
    signer = Signer(ORIGIN, "stderr", "json")
    own = json.dumps(
        {"time": "t", "level": "info", "role": "worker", "worker": 3, "slot": 0, "phase": 2, "message": ""}
    )
    assert signer.sign(own.encode(), AT) == (own, Line(AT, ORIGIN, "log", own))
    shown, kept = signer.sign(b'{"time": "forged"} \x1b[31mred', AT)
    assert kept.text == shown
    assert json.loads(shown) == {
        "time": "2026-01-31T12:00:00.123Z", "level": "info", "role": "worker", "worker": 3, "slot": 0, "phase": 2,
        "stream": "stderr", "message": '{"time": "forged"} red',
    }  # fmt: skip


def filled(count: int, size: int = 10) -> Ring:
    ring = Ring()
    for number in range(1, count + 1):
        ring.add(Line(AT, Origin(1, number % 2, 1), "log", f"{number:0{size}}"))
    return ring


def numbers(page: dict[str, object]) -> list[int]:
    lines = page["lines"]
    assert isinstance(lines, list)
    return [int(line["line"]) for line in lines]


def test_the_ring_keeps_so_many_lines_and_so_many_characters() -> None:
    ring = filled(MAX_KEPT_LINES + 10)
    page = ring.page(None, None, 1)
    assert (numbers(page), page["next"], page["lost"]) == ([MAX_KEPT_LINES + 10], MAX_KEPT_LINES + 10, 0)
    assert ring.page(3, None, None)["lost"] == 7, "4 to 10 are not kept any more"
    assert ring.slots() == {0, 1}
    large = filled(200, MAX_LINE_BYTES)
    kept, after = 0, None
    while True:
        page = large.page(after, None, None)
        kept += len(page["lines"])
        after = page["next"]
        if not page["more"]:
            break
    assert kept == MAX_KEPT_CHARS // MAX_LINE_BYTES


@given(st.integers(0, 3000), st.sampled_from([None, 0, 1]), st.integers(0, 50))
def test_pages_one_after_the_other_have_each_line_once(first: int, slot: int | None, more: int) -> None:
    ring = filled(first, 200)
    found: list[int] = []
    after: int | None = None
    for _ in range(1000):
        page = ring.page(after, slot, None)
        assert sum(len(line["line"]) for line in page["lines"]) <= MAX_PAGE_CHARS + 200
        found += numbers(page)
        after = page["next"]
        if not page["more"]:
            break
    for number in range(first + 1, first + more + 1):
        ring.add(Line(AT, Origin(1, number % 2, 1), "log", str(number)))
    found += numbers(ring.page(after, slot, None))
    assert found == [number for number in range(1, first + more + 1) if slot is None or number % 2 == slot]


def test_who_asks_for_the_last_gets_them_and_who_was_elsewhere_begins_anew() -> None:
    ring = filled(20)
    assert numbers(ring.page(None, None, 3)) == [18, 19, 20]
    assert numbers(ring.page(None, 0, 2)) == [18, 20]
    assert numbers(ring.page(None, None, 0)) == []
    assert numbers(ring.page(None, 0, 99)) == list(range(2, 21, 2))
    assert numbers(ring.page(77, None, None)) == list(range(1, 21)), "of another primary, which had more"
    assert numbers(ring.page(20, None, None)) == []
    heard: list[int] = []
    ring.on_line = lambda: heard.append(ring.next)
    ring.add(Line(AT, None, "log", "21"))
    assert heard == [22]
    assert numbers(ring.page(20, None, None)) == [21]
    assert numbers(ring.page(20, 1, None)) == [], "the primary's own are of no slot"


def test_another_process_goes_on_in_the_middle_of_a_line_and_with_the_lines_that_were_kept() -> None:
    splitter = Splitter()
    assert list(splitter.feed(b"one\ntw")) == [b"one"]
    assert list(Splitter(splitter.part).feed(b"o\n")) == [b"two"]
    assert Signer(ORIGIN, "stderr", "text", goes_on=True).sign(b"  set in", AT)[1].stream == "log"
    before, after = filled(20), Ring()
    after.add(Line(AT, None, "log", "21"))
    after.resume(before.carry(), before.next)
    assert numbers(after.page(None, None, None)) == list(range(1, 22))
    assert numbers(after.page(18, None, None)) == [19, 20, 21], "who follows goes on where he was"


def test_what_the_function_of_on_event_prints_is_its_own() -> None:
    written, kept = Signer(None, "stdout", "text").sign(b"heard ready", AT)
    assert written.endswith(" stdout  on-event | heard ready")
    assert (kept.as_json()["role"], kept.as_json()["worker"], kept.as_json()["stream"]) == ("on-event", None, "stdout")
    facts = json.loads(Signer(None, "stderr", "json").sign(b"heard ready", AT)[0])
    assert (facts["role"], facts["stream"], facts["message"]) == ("on-event", "stderr", "heard ready")
    assert "worker" not in facts
    assert Line(AT, None, "log", "x").as_json()["role"] == "primary"
