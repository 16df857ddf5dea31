"""Responses of the opening handshake that come from elsewhere: what may be sent of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from wscluster.escaping import escape_lines

if TYPE_CHECKING:
    from websockets.http11 import Response

_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


def fault_of_response(response: Response) -> str | None:
    """Return why ``response`` cannot be sent (RFC 9112, 4 and 5); None where nothing is wrong.

    A line break in its head would let a client write headers of its own.
    """
    status, phrase, body = response.status_code, response.reason_phrase, response.body
    if not isinstance(status, int) or not (status == 101 or 200 <= status <= 599):
        return f"its status is {status!r}"
    if not isinstance(phrase, str) or not _VALUE.fullmatch(phrase):
        return f"its reason phrase is {phrase!r}"
    if not isinstance(body, (bytes, bytearray)):
        return f"its body is {type(body).__name__!r}, not bytes"
    for name, value in response.headers.raw_items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            return f"it has a header named {name!r}"
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            return f"its header {name} is {value!r}"
    return None


def escape_body(response: Response) -> None:
    """Escape the control characters of a refusal that cites what the client sent."""
    text = bytes(response.body).decode(errors="replace")
    escaped = escape_lines(text)
    if escaped != text:
        response.body = escaped.encode()
        del response.headers["Content-Length"]
        response.headers["Content-Length"] = str(len(response.body))
