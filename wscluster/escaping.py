"""Control characters, which a client may put into a path or a header, never reach a log or a terminal raw."""

from __future__ import annotations


def escape_controls(text: str) -> str:
    """Return ``text`` in one line, with control characters (CR, LF, ESC, NUL, C1, lone surrogates) as ``\\xNN``."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def escape_lines(text: str) -> str:
    """As `escape_controls`, but line breaks stay."""
    return text if text.isprintable() else "\n".join(map(escape_controls, text.split("\n")))
