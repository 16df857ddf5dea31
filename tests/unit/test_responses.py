"""A response is sent only where no line of it can be taken for another."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.datastructures import Headers
from websockets.http11 import Response

from wscluster.workers.responses import escape_body, fault_of_response


def response(**parts: Any) -> Response:
    return Response(**{"status_code": 200, "reason_phrase": "OK", "headers": Headers(), "body": b"", **parts})


def test_a_plain_response_has_no_fault() -> None:
    headers = Headers({"Content-Type": "text/html", "X-Name": "J\u00f6rg\t1"})
    assert fault_of_response(response(headers=headers, body=bytearray(b"\x00\r\n"))) is None
    assert fault_of_response(response(status_code=101, reason_phrase="Switching Protocols")) is None


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ({"status_code": "200"}, "its status is '200'"),
        ({"status_code": 100}, "its status is 100"),
        ({"status_code": 600}, "its status is 600"),
        ({"reason_phrase": None}, "its reason phrase is None"),
        ({"reason_phrase": "\u20ac"}, "its reason phrase is '\u20ac'"),
        ({"body": None}, "its body is 'NoneType', not bytes"),
        ({"headers": Headers({"A\r\nB": "c"})}, r"it has a header named 'A\r\nB'"),
        ({"headers": Headers({"": "c"})}, "it has a header named ''"),
    ],
)
def test_what_cannot_be_sent_is_told(parts: dict[str, Any], fault: str) -> None:
    assert fault_of_response(response(**parts)) == fault


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\x1b[2J", "\x00", "\u20ac", 5])
def test_a_header_with_control_characters_is_not_sent(value: Any) -> None:
    headers = Headers()
    headers._list.append(("X", value))  # past the library's own check
    assert fault_of_response(response(headers=headers)) == f"its header X is {value!r}"


@given(st.text(st.characters(codec="latin-1")), st.text(st.characters(codec="latin-1")))
def test_what_has_no_fault_is_serialized_in_as_many_lines_as_it_has(phrase: str, name: str) -> None:
    headers = Headers()
    headers._list.append((name, "value"))
    made = response(reason_phrase=phrase, headers=headers)
    if fault_of_response(made) is None:
        lines = made.serialize().split(b"\r\n")
        assert lines == [b"HTTP/1.1 200 " + phrase.encode("latin-1"), name.encode() + b": value", b"", b""]
        assert b"\n" not in b"".join(lines)


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("plain\n")
@example("\x1b[2J\n")
def test_an_escaped_body_is_printable_lines_of_the_length_that_is_told(text: str) -> None:
    made = response(body=text.encode(), headers=Headers({"Content-Length": str(len(text.encode()))}))
    escape_body(made)
    found = bytes(made.body).decode()
    assert all(line.isprintable() for line in found.split("\n"))
    assert made.headers["Content-Length"] == str(len(made.body))
    assert (found == text) == all(line.isprintable() for line in text.split("\n"))
