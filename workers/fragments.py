"""A message of which not every fragment has come (RFC 6455, 5.4), and how much of it a client may leave unfinished."""

from __future__ import annotations

from array import array

MAX_FRAGMENTS = 4096
"""Fragments of one message, as in `websockets`; more close the connection with 1009. The variable
``WEBSOCKETS_MAX_FRAGMENTS`` gives another bound, as it does there."""
MIN_GROWTH_BYTES = 1024
"""An unfinished message that has grown by less in ``--ws-message-timeout`` is given up, and its connection closed."""


class Fragments:
    """The fragments of one unfinished message, oldest first.

    A fragment costs its bytes and four more: as objects of their own, 4,000 fragments of one byte would cost 200 KiB.

    Attributes:
        is_text: True for a text message, False for a binary one.
        data: Payload of all fragments that are here.
        ends: Where each of them ends in ``data``.
    """

    __slots__ = ("_judged", "data", "ends", "is_text")

    def __init__(self, is_text: bool, first: bytes | bytearray | memoryview) -> None:
        self.is_text = is_text
        self.data = bytearray(first)
        self.ends = array("I", (len(first),))
        self._judged = len(first)

    def __len__(self) -> int:
        return len(self.ends)

    def add(self, fragment: bytes | bytearray | memoryview) -> None:
        """Take the next fragment."""
        self.data += fragment
        self.ends.append(len(self.data))

    def whole(self) -> bytes:
        """Return the payload of the message, once its last fragment is here."""
        return bytes(self.data)

    def parts(self) -> list[bytes]:
        """Return the fragments as they came."""
        return cut_payload(bytes(self.data), self.ends)

    def has_grown(self) -> bool:
        """Say whether it has grown by `MIN_GROWTH_BYTES` since it began, or since this was asked last."""
        grown = len(self.data) - self._judged
        self._judged = len(self.data)
        return grown >= MIN_GROWTH_BYTES


def cut_payload(payload: bytes, ends: array[int]) -> list[bytes]:
    """Return the fragments of ``payload``, of which each ends where ``ends`` says."""
    return [payload[begin:end] for begin, end in zip((0, *ends[:-1]), ends, strict=True)]
