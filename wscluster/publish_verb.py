"""The verb ``publish``: one message from a shell."""

from __future__ import annotations

import os
import sys

from wscluster.publisher import SyncPublisher

STDIN = "-"


def publish_once(publisher: SyncPublisher, room: str, message: str, *, binary: bool) -> str:
    """Publish one message and return its position; ``-`` stands for what standard input has, to its end.

    Raises:
        ValueError: The room is none, or the message is no text.
        BusUnavailable, ControlError: As `SyncPublisher.publish` raises them.
    """
    data = _read_stdin() if message == STDIN else os.fsencode(message)
    with publisher:
        return publisher.publish(room, data if binary else _as_text(data))


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise ValueError("the message is - but there is no standard input")
    return sys.stdin.buffer.read()


def _as_text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise ValueError(f"the message is no UTF-8 ({exc.reason} at byte {exc.start}): send it with --binary") from exc
