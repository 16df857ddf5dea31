"""No case of the Autobahn|Testsuite ends worse than with the library's own server."""

import asyncio
import subprocess

import pytest

from tests.conformance.autobahn import SETS, Unavailable, Verdict, Verdicts, find_worse, install, judge_both
from tests.support import cannot_run

BY_CHOICE = {"7.1.5"}
"""Cases that the library does not pass either, by its author's choice."""


@pytest.fixture(scope="module")
def verdicts() -> tuple[Verdicts, Verdicts]:
    """Ours and the library's for every case of `SETS`."""
    try:
        program = install()
    except Unavailable as exc:
        pytest.skip(str(exc))  # on every machine: hardly any has a Python 2.7
    except subprocess.CalledProcessError as exc:
        cannot_run(f"the Autobahn|Testsuite cannot be installed: {exc.stderr[-500:]}")
    return asyncio.run(asyncio.wait_for(judge_both(program, SETS), 300))


def test_no_case_is_worse_than_with_the_library(verdicts: tuple[Verdicts, Verdicts]) -> None:
    ours, theirs = verdicts
    assert len(theirs) == 301
    assert find_worse(ours, theirs) == {}


def test_every_case_is_passed_but_what_the_library_refuses_by_choice(verdicts: tuple[Verdicts, Verdicts]) -> None:
    ours, _ = verdicts
    assert {case for case, verdict in ours.items() if not verdict.passed} == BY_CHOICE


GOOD = Verdict("OK", "OK")


@pytest.mark.parametrize(
    ("our", "their", "worse"),
    [
        (GOOD, GOOD, False),
        (Verdict("FAILED", "OK"), GOOD, True),
        (Verdict("OK", "UNCLEAN"), GOOD, True),
        (Verdict("OK", "WRONG CODE"), Verdict("FAILED", "OK"), True),
        (GOOD, Verdict("FAILED", "FAILED"), False),
        (Verdict("FAILED", "FAILED"), Verdict("FAILED", "FAILED"), False),
        (Verdict("NON-STRICT", "OK"), GOOD, False),
        (None, GOOD, True),
    ],
)
def test_what_is_worse_is_found(our: Verdict | None, their: Verdict, worse: bool) -> None:
    found = find_worse({} if our is None else {"1.1": our}, {"1.1": their})
    assert found == ({"1.1": (our, their)} if worse else {})
