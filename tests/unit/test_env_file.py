"""A file of variables: what its lines mean, and the line of each fault."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wscluster.env_file import Variable, parse_env_file


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=b", "b"),
        ("A=", ""),
        ("  A =  b c  ", "b c"),
        ("export A=b", "b"),
        ("A=b # a comment", "b"),
        ("A=b#c", "b#c"),
        ("A=# all comment", ""),
        ("A='b # c' # d", "b # c"),
        ("A='$B \\n'", "$B \\n"),
        ('A="b\\nc\\td\\"e\\\\f\\x"', 'b\nc\td"e\\f\\x'),
        ('A=""', ""),
        ("A=redis://:a=b@h/0?c=d", "redis://:a=b@h/0?c=d"),
        ("A=it's", "it's"),
        ("A=$HOME", "$HOME"),
        ("A=größe", "größe"),
    ],
)
def test_the_value_of_a_line(line: str, value: str) -> None:
    assert parse_env_file(f"# first\n\n{line}\n") == ({"A": Variable(value, 3)}, [])


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("A", "NAME=VALUE is wanted"),
        ("=b", "NAME=VALUE is wanted"),
        ("1A=b", "NAME=VALUE is wanted"),
        ("A B=c", "NAME=VALUE is wanted"),
        ("A: b", "NAME=VALUE is wanted"),
        ("A='b", "the quotes of A do not end"),
        ('A="b\\"', "the quotes of A do not end"),
        ("A='b' c", "the quotes of A do not end, or something stands behind them"),
        ("A=b\0c", "A has a NUL"),
    ],
)
def test_a_line_that_is_none_is_a_fault_with_its_number(line: str, fault: str) -> None:
    variables, problems = parse_env_file(f"B=1\n{line}\nC=2")
    assert variables == {"B": Variable("1", 1), "C": Variable("2", 3)}
    ((number, told),) = problems
    assert (number, told[: len(fault)]) == (2, fault)


def test_of_a_name_that_comes_twice_the_last_value_counts() -> None:
    assert parse_env_file("A=1\nA=2")[0] == {"A": Variable("2", 2)}


@given(st.text(st.characters(exclude_characters="\n\r\0'")))
def test_any_value_in_single_quotes_comes_back(value: str) -> None:
    assert parse_env_file(f"A='{value}'")[0] == {"A": Variable(value, 1)}


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    variables, problems = parse_env_file(text)
    assert all(name.isidentifier() and "\0" not in variable.value for name, variable in variables.items())
    assert all(1 <= line <= text.count("\n") + 1 for line, _ in problems)
