"""Which changed files count, and what is said of them."""

from pathlib import PurePosixPath

import pytest

from wscluster.gateway.watch_rules import describe_changes, make_rules, outermost

HOME = PurePosixPath("/home/app")


def counts(name: str, *, include: tuple[str, ...] = (), exclude: tuple[str, ...] = (), folders: str = "") -> bool:
    return make_rules(include, exclude, [HOME / folder for folder in folders.split()]).counts(HOME / name)


@pytest.mark.parametrize("name", ["app.py", "deep/in/a/package.py", ".venv/lib/module.py", "x.py.py"])
def test_a_python_file_counts(name: str) -> None:
    assert counts(name)


@pytest.mark.parametrize("name", ["app.pyc", "app.html", ".app.py", ".app.py.swp", "~app.py", "app.py~", "py", "deep"])
def test_what_is_no_python_file_or_looks_like_an_editors_own_does_not_count(name: str) -> None:
    assert not counts(name)


def test_patterns_are_matched_from_the_right_and_a_slash_stands_for_a_folder() -> None:
    assert counts("page.html", include=("*.html",))
    assert counts("templates/page.html", include=("templates/*.html",))
    assert not counts("static/page.html", include=("templates/*.html",))
    assert not counts("generated/schema.py", exclude=("generated/*",))
    assert counts("generated/deep/schema.py", exclude=("generated/*",))
    assert not counts("test_app.py", exclude=("test_*.py",))


def test_an_excluded_folder_is_excluded_with_all_that_is_in_it() -> None:
    assert not counts("generated/deep/schema.py", folders="other generated")
    assert counts("generated.py", folders="generated")


def test_a_default_that_is_given_for_the_other_side_falls() -> None:
    assert not counts("app.py", exclude=("*.py",))
    assert counts("app.html", exclude=("*.py",), include=("*.html",))
    assert counts(".app.py", include=(".*",))
    assert counts(".env", include=(".*",))


def test_a_file_that_is_included_by_its_very_name_counts_over_every_exclusion() -> None:
    assert counts(".env", include=(".env",))
    assert counts("generated/schema.py", include=("schema.py",), exclude=("schema.*",), folders="generated")
    assert not counts("generated/schema.py", include=("s*.py",), exclude=("schema.*",))


def test_a_folder_within_another_is_watched_once() -> None:
    folders = [HOME / "src", HOME, PurePosixPath("/srv"), HOME / "src" / "deep", HOME]
    assert outermost(folders) == [HOME, PurePosixPath("/srv")]
    assert outermost([PurePosixPath("/home/app2"), HOME]) == [HOME, PurePosixPath("/home/app2")]
    assert outermost([]) == []


def test_the_first_of_the_changed_files_is_named_and_the_others_counted() -> None:
    assert describe_changes([HOME / "b.py"], HOME) == "b.py"
    assert describe_changes([HOME / "b.py", HOME / "deep" / "c.py", HOME / "a.py"], HOME) == "a.py and 2 more"
    assert describe_changes([PurePosixPath("/srv/x.py")], HOME) == "/srv/x.py"
