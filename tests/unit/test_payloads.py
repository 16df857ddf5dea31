"""What a program may send becomes bytes, or is refused with the words of the library."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from wscluster.workers.payloads import BYTES_LIKE, chunk_payload, control_payload, each_chunk


async def later(*chunks: str) -> AsyncIterator[str]:
    for chunk in chunks:
        yield chunk


def chunks_of(message: object) -> list[object]:
    async def collect() -> list[object]:
        return [chunk async for chunk in each_chunk(message)]  # type: ignore[arg-type]

    return asyncio.run(collect())


def test_both_kinds_of_iterables_are_chunks() -> None:
    assert chunks_of(["a", "b"]) == ["a", "b"]
    assert chunks_of(chunk for chunk in (b"a", b"")) == [b"a", b""]
    assert chunks_of(later("a", "b")) == ["a", "b"]
    assert chunks_of([]) == chunks_of(later()) == []


def test_what_is_no_iterable_has_no_chunks() -> None:
    with pytest.raises(TypeError, match="data must be str, bytes, iterable, or async iterable"):
        chunks_of(5)


@pytest.mark.parametrize(
    ("chunk", "kind", "payload"),
    [
        ("ü", str, b"\xc3\xbc"),
        (b"a", BYTES_LIKE, b"a"),
        (bytearray(b"a"), BYTES_LIKE, b"a"),
        (memoryview(b"abcd")[::2], BYTES_LIKE, b"ac"),
    ],
)
def test_a_chunk_is_its_bytes(chunk: object, kind: type[str], payload: bytes) -> None:
    assert chunk_payload(chunk, kind) == payload


@pytest.mark.parametrize(("chunk", "kind"), [(b"a", str), ("a", BYTES_LIKE), (None, str), (5, BYTES_LIKE)])
def test_a_chunk_of_another_kind_than_the_first_is_refused(chunk: object, kind: type[str]) -> None:
    with pytest.raises(TypeError, match="iterable must contain uniform types"):
        chunk_payload(chunk, kind)


@pytest.mark.parametrize("data", ["ab", b"ab", bytearray(b"ab"), memoryview(b"ab")])
def test_a_ping_carries_text_or_bytes(data: object) -> None:
    assert control_payload(data) == b"ab"


@pytest.mark.parametrize("data", [None, 5, ["ab"]])
def test_a_ping_carries_nothing_else(data: object) -> None:
    with pytest.raises(TypeError, match="data must be str or bytes-like"):
        control_payload(data)
