"""What a person is told about a program that does not become ready."""

import pytest

from wscluster.workers.program_faults import (
    Seen,
    explain,
    explain_difference,
    explain_ended,
    explain_late,
    explain_taken,
    show_address,
)

BOUND = (("127.0.0.1", 8000),)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (Seen(frozenset({"gunicorn.arbiter"}), BOUND, 2), "gunicorn accepts by itself"),
        (Seen(frozenset({"granian", "uvicorn"}), (), 2), "granian accepts by itself"),
        (Seen(frozenset({"hypercorn.run"}), BOUND, 0), "hypercorn accepts by itself"),
        (Seen(frozenset({"uvicorn"}), BOUND, 2), "drop reload= and workers="),
        (Seen(frozenset({"uvicorn"}), BOUND, 0), "has bound 127.0.0.1:8000 by itself"),
        (Seen(bound=(("::1", 80, 0, 0),)), "has bound [::1]:80 by itself"),
    ],
)
def test_a_program_that_serves_by_itself_is_told_what_to_do_instead(seen: Seen, words: str) -> None:
    assert seen.serves_itself
    assert words in explain(seen)
    assert "wscluster serve module:app" in explain(seen)
    assert words in explain_late(seen, 60, [])


@pytest.mark.parametrize(
    "seen", [Seen(), Seen(frozenset({"gunicorn.arbiter", "granian"})), Seen(frozenset({"uvicorn"}), (), 3)]
)
def test_what_was_only_imported_or_only_started_is_no_server(seen: Seen) -> None:
    assert not seen.serves_itself
    assert "accepts by itself" not in explain(seen)


def test_a_late_program_is_told_what_it_did() -> None:
    assert explain_late(Seen(), 60, []).startswith("the program did not listen anywhere within 60 s (--worker-startup")
    assert "started processes of its own" in explain_late(Seen(processes=1), 60, [])
    assert "did not begin to serve 127.0.0.1:8000 within 2.5 s" in explain_late(Seen(), 2.5, [("127.0.0.1", 8000)])


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        (None, "", "the program ended (status 0) before it listened anywhere"),
        (3, "", "the program ended (status 3) before it listened anywhere"),
        ("no\nkey", "", "the program ended (status 1) before it listened anywhere: no key"),
        (1, "cannot listen on :80", "the program ended (status 1) before it listened anywhere: cannot listen on :80"),
    ],
)
def test_a_program_that_ended_is_told_its_status_and_the_last_fault(status: object, error: str, text: str) -> None:
    assert explain_ended(status, error) == text
    assert explain_ended(status, error, listened=True) == text.replace(
        "before it listened anywhere", "as soon as it listened"
    )


def test_a_worker_that_listens_elsewhere_is_told_where_the_others_do() -> None:
    own, known = [("127.0.0.1", 8001)], {0: ("127.0.0.1", 8000), 1: ("127.0.0.1", 8001)}
    assert "listens on 127.0.0.1:8001, another one on 127.0.0.1:8000:" in explain_difference(own, [0], known)
    assert "another one on 2 more" in explain_difference(own, [0, 2], {})


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (["::1", 80, 0, 0], "[::1]:80"),
        ("/run/app.sock", "unix:/run/app.sock"),
        ("\0app", "unix:@app"),
        (b"\0app", "unix:@app"),
        ("", "unix:"),
    ],
)
def test_an_address_is_shown_as_a_person_writes_it(address: object, shown: str) -> None:
    assert show_address(address) == shown


def test_a_port_that_the_program_cannot_bind_by_itself_is_named() -> None:
    told = explain_taken(("127.0.0.1", 80))
    assert told.startswith("the program binds 127.0.0.1:80 by itself, where something listens already")
    assert "wscluster serve module:app" in told
