"""What a program may send, as bytes."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wscluster.api import DataLike

BYTES_LIKE = (bytes, bytearray, memoryview)


async def each_chunk(message: Iterable[DataLike] | AsyncIterable[DataLike]) -> AsyncIterator[DataLike]:
    """Yield the chunks of a message that is sent in fragments.

    Raises:
        TypeError: The message is neither text nor binary nor an iterable.
    """
    if isinstance(message, AsyncIterable):
        async for chunk in message:
            yield chunk
    elif isinstance(message, Iterable):
        for chunk in message:
            yield chunk
    else:
        raise TypeError("data must be str, bytes, iterable, or async iterable")


def chunk_payload(chunk: object, kind: type[str] | tuple[type[Any], ...]) -> bytes:
    """Return the bytes of a chunk; all chunks of a message are of one ``kind``, else `TypeError`."""
    if not isinstance(chunk, kind):
        raise TypeError("iterable must contain uniform types")
    return chunk.encode() if isinstance(chunk, str) else bytes(chunk)


def control_payload(data: object) -> bytes:
    """Return the bytes of what a ping or pong carries; `TypeError` where it is no text and not binary."""
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, BYTES_LIKE):
        return bytes(data)
    raise TypeError("data must be str or bytes-like")
