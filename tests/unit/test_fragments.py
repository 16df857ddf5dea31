"""A message that is not whole yet."""

import sys

from wscluster.workers.fragments import MIN_GROWTH_BYTES, Fragments


def test_fragments_are_one_payload_and_are_given_back_as_they_came() -> None:
    fragments = Fragments(True, b"one ")
    for fragment in (b"", b"message", b"", b"!"):
        fragments.add(fragment)
    assert fragments.is_text
    assert len(fragments) == 5
    assert fragments.whole() == b"one message!"
    assert type(fragments.whole()) is bytes
    assert fragments.parts() == [b"one ", b"", b"message", b"", b"!"]


def test_a_message_of_one_fragment_and_of_nothing() -> None:
    fragments = Fragments(False, b"")
    assert (fragments.is_text, len(fragments), fragments.whole(), fragments.parts()) == (False, 1, b"", [b""])


def test_4000_fragments_of_one_byte_cost_few_bytes_each() -> None:
    fragments = Fragments(False, b"x")
    for _ in range(3999):
        fragments.add(b"x")
    held = sys.getsizeof(fragments.data) + sys.getsizeof(fragments.ends)
    assert held < 4000 * 6 + 200


def test_a_message_has_grown_when_enough_came_since_the_last_look() -> None:
    fragments = Fragments(False, b"x" * 5000)
    assert not fragments.has_grown()
    fragments.add(b"x" * (MIN_GROWTH_BYTES - 1))
    assert not fragments.has_grown()
    fragments.add(b"x")
    assert not fragments.has_grown(), "what had come before the last look is no growth"
    fragments.add(b"x" * MIN_GROWTH_BYTES)
    assert fragments.has_grown()
    assert not fragments.has_grown()
