"""What is wrong with an opening handshake that the library's parser lets pass."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from websockets.http11 import Request

_TARGET = re.compile(r"[!-\"$-~]+")
"""Visible ASCII without ``#``: a fragment is never sent (RFC 9112, 3.2), a control character has no place in it."""


def fault_of(request: Request) -> str | None:
    """Return why ``request`` is answered with 400, or None where nothing is wrong with it.

    A request that two readers may understand in two ways is refused before anybody looks at it.
    """
    if len(request.headers.get_all("Host")) != 1:
        return "one Host header is wanted (RFC 9112, 3.2)"
    if _TARGET.fullmatch(request.path) is None:
        return "the path has a character that must be percent-encoded (RFC 3986, 2)"
    return None
