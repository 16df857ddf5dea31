"""URLs of servers as they may be shown: without their passwords, and with what is wrong with their form."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus, urlsplit

_QUERY_VALUE = re.compile(r"([?&]([^=&]*)=)(.*?)(?=&[^=&]+=|$)", re.DOTALL)


def hide_password(url: str) -> str:
    """Return ``url`` with ``***`` in place of a password, wherever it stands.

    It hides too much rather than too little: a URL that nobody can read may hold a password that was not escaped.
    """
    scheme, separator, rest = re.sub("[\t\r\n]", "", url).partition("://")
    if not separator:
        scheme, rest = "", scheme
    user, at, place = rest.rpartition("@")
    name, colon, password = user.partition(":")
    if not (at and colon and password):
        return scheme + separator + _hide_in_query(rest)
    # An @ may also be one of a password in the query, which then goes on behind it.
    place = "" if _hide_in_query(user) != user else at + _hide_in_query(place)
    return f"{scheme}{separator}{_hide_in_query(name)}:***{place}"


def _hide_in_query(text: str) -> str:
    def hide(match: re.Match[str]) -> str:
        return match[1] + ("***" if "pass" in unquote_plus(match[2]).lower() else match[3])

    return _QUERY_VALUE.sub(hide, text)


def find_url_fault(url: str) -> str | None:
    """Return what is wrong with the form of a server's URL, in words that hold nothing of it; None where it is well."""
    fault = "it cannot be read; is the port a number up to 65535, are a password's special characters written as %XX?"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return fault
    beyond = url.partition("://")[2].removeprefix(parts.netloc)
    if parts.scheme != "unix" and "@" in beyond and "=" not in beyond.partition("@")[0]:
        return fault
    return None
