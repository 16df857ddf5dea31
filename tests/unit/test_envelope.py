"""A room's message as bytes: what is encoded comes back, and nothing that comes from the bus raises."""

import hashlib
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wscluster.envelope import (
    BEGIN_SCRIPT,
    MAX_LOGGED_BYTES,
    PUBLISH_SCRIPT,
    PUBLISH_SHA1,
    START,
    Envelope,
    Position,
    begin_arguments,
    check_room,
    decode_message,
    encode_message,
    key_of,
    parse_position,
    parse_since,
    publish_arguments,
    split_published,
)

TEXT = st.text(st.characters(codec="utf-8"))
IDS = st.none() | st.binary(min_size=16, max_size=16)
ID = bytes(range(16))


@given(TEXT, IDS)
def test_text_comes_back_as_text(text: str, excluded: bytes | None) -> None:
    assert decode_message(encode_message(text, excluded)) == Envelope(True, text.encode(), excluded)


@given(st.binary(), IDS, st.sampled_from([bytes, bytearray, memoryview]))
def test_bytes_come_back_as_bytes(data: bytes, excluded: bytes | None, kind: type) -> None:
    assert decode_message(encode_message(kind(data), excluded)) == Envelope(False, data, excluded)


def test_a_view_of_every_second_byte_or_of_numbers_is_its_bytes() -> None:
    assert decode_message(encode_message(memoryview(b"abcdef")[::2])) == Envelope(False, b"ace")
    numbers = memoryview(bytes(8)).cast("i")
    assert decode_message(encode_message(numbers)) == Envelope(False, bytes(8))


def test_a_later_change_of_a_bytearray_does_not_reach_its_envelope() -> None:
    data = bytearray(b"before")
    envelope = encode_message(data)
    data[:] = b"after!"
    assert decode_message(envelope) == Envelope(False, b"before")


def test_the_format_is_that_of_the_document() -> None:
    assert encode_message("ä") == b"\x01\x01\xc3\xa4"
    assert encode_message(b"\x00") == b"\x01\x00\x00"
    assert encode_message("", ID) == b"\x01\x03" + ID
    assert encode_message(b"", ID) == b"\x01\x02" + ID


@pytest.mark.parametrize("message", [None, 1, 1.5, ["a"], {"a": 1}, object(), True, iter("a")])
def test_a_message_of_another_type_is_a_type_error(message: object) -> None:
    with pytest.raises(TypeError, match=f"a message is str or bytes, not {type(message).__name__}"):
        encode_message(message)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_text_with_a_lone_surrogate_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        encode_message(text)
    with pytest.raises(ValueError, match="surrogates not allowed"):
        check_room(text)


@given(st.binary())
def test_bytes_that_come_from_the_bus_never_raise(data: bytes) -> None:
    envelope = decode_message(data)
    if envelope is not None:
        message = envelope.payload.decode() if envelope.text else envelope.payload
        assert encode_message(message, envelope.excluded) == data


@given(st.sampled_from([0, 1, 2, 255]), st.integers(0, 255), st.binary(max_size=40))
def test_what_begins_almost_like_an_envelope_never_raises(version: int, flags: int, rest: bytes) -> None:
    envelope = decode_message(bytes((version, flags)) + rest)
    if envelope is not None:
        assert version == 1
        assert flags <= 3


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x00\x01a",  # another version
        b"\x02\x01a",
        b"\x01\x04a",  # a flag that is unknown
        b"\x01\x80a",
        b"\x01\x02" + ID[:-1],  # an id that is cut off
        b"\x01\x03",
        b"\x01\x01\xff",  # text that is no UTF-8
        b"\x01\x01\xed\xa0\x80",  # an encoded surrogate
        b"\x01\x01\xc3",  # a character that is cut off
        pickle.dumps({"type": "message"}),
        b'{"text": "hello"}',
        b"hello",
    ],
)
def test_what_is_no_envelope_is_none(data: bytes) -> None:
    assert decode_message(data) is None


@pytest.mark.parametrize("room", ["a", "a" * 255, "ü" * 127, "\U0001f600" * 63 + "abc", " ", "\0", "{}", "a\nb", "a:b"])
def test_a_name_of_1_to_255_bytes_is_one_of_a_room(room: str) -> None:
    assert check_room(room) == room.encode()


@pytest.mark.parametrize(("room", "size"), [("", 0), ("a" * 256, 256), ("ü" * 128, 256), ("\U0001f600" * 64, 256)])
def test_a_name_that_is_empty_or_longer_is_none(room: str, size: int) -> None:
    with pytest.raises(ValueError, match=f"a room's name has 1 to 255 bytes of UTF-8, not {size}$"):
        check_room(room)


@pytest.mark.parametrize("room", [None, b"lobby", 1, ("a",)])
def test_a_name_that_is_no_str_is_a_type_error(room: object) -> None:
    with pytest.raises(TypeError, match=f"a room's name is a str, not {type(room).__name__}"):
        check_room(room)


@given(TEXT)
def test_every_name_is_accepted_by_its_bytes_alone(room: str) -> None:
    size = len(room.encode())
    try:
        assert check_room(room) == room.encode()
        assert 1 <= size <= 255
    except ValueError:
        assert not 1 <= size <= 255


@given(st.lists(st.tuples(TEXT.filter(lambda text: not set(text) & set("{}")), TEXT), max_size=5))
def test_two_rooms_never_share_a_key(rooms: list[tuple[str, str]]) -> None:
    keys = {key_of(prefix, room.encode()) for prefix, room in rooms}
    assert len(keys) == len(set(rooms))


def test_a_key_keeps_its_room_in_braces() -> None:
    assert key_of("wscluster", b"lobby") == b"wscluster:{lobby}"


@given(st.integers(0, 2**64 - 2), st.integers(0, 2**64 - 2))
def test_a_position_comes_back_from_its_text(epoch: int, seq: int) -> None:
    text = str(Position(epoch, seq))
    assert parse_position(text.encode()) == Position(epoch, seq)
    assert text.isascii()
    assert len(text) <= 64


@given(st.tuples(st.integers(0), st.integers(0)), st.tuples(st.integers(0), st.integers(0)))
def test_positions_are_ordered_by_epoch_and_then_by_count(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert (Position(*one) < Position(*other)) == (one < other)
    assert Position(*one) >= START


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"-",
        b"1",
        b"1-",
        b"-1",
        b"1-2-3",
        b" 1-2",
        b"1-2\n",
        b"+1-2",
        b"1--2",
        b"a-b",
        "\u0661-\u0662".encode(),
        b"9" * 21 + b"-1",
        b"18446744073709551615-1",  # the server cannot look for what comes after it
        b"1-18446744073709551615",
    ],
)
def test_what_is_no_position_is_none(data: bytes) -> None:
    assert parse_position(data) is None
    assert split_published(data + b" x") is None


@given(st.integers(0, 2**64 - 2), st.integers(0, 2**64 - 2))
def test_a_position_that_an_application_gives_back_is_the_one_that_it_was_given(epoch: int, seq: int) -> None:
    assert parse_since(str(Position(epoch, seq))) == Position(epoch, seq)


@pytest.mark.parametrize(
    ("since", "error", "reason"),
    [
        (None, TypeError, "a position is a str, not NoneType"),
        (b"1-2", TypeError, "a position is a str, not bytes"),
        ("1" * 65, ValueError, "at most 64 characters, not 65"),
        ("", ValueError, "'' is no position"),
        ("1-2 ", ValueError, "'1-2 ' is no position"),
        ("\u0661-\u0662", ValueError, "is no position"),
        ("\ud800", ValueError, "is no position"),
        ("1-18446744073709551615", ValueError, "is no position"),
    ],
)
def test_what_no_join_and_no_publish_gave_is_refused(since: object, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        parse_since(since)


@given(st.binary() | st.from_regex(rb"[0-9]*-?[0-9]* ?.*", fullmatch=True))
def test_what_comes_on_a_channel_never_raises(data: bytes) -> None:
    head, _, tail = data.partition(b" ")
    position = parse_position(head)
    assert split_published(data) == (None if position is None else (position, tail))


@given(st.binary())
def test_position_and_envelope_are_taken_apart(envelope: bytes) -> None:
    assert split_published(b"17-4 " + envelope) == (Position(17, 4), envelope)


def test_what_publishes_names_the_script_by_its_hash() -> None:
    assert hashlib.sha1(PUBLISH_SCRIPT.encode()).hexdigest() == PUBLISH_SHA1
    assert re.fullmatch("[0-9a-f]{40}", PUBLISH_SHA1)
    assert publish_arguments(b"k", b"e", 100, 60.0) == ("EVALSHA", PUBLISH_SHA1, 1, b"k", b"e", 100, 60_000, "1")


@pytest.mark.parametrize(("ttl", "milliseconds"), [(60.0, 60_000), (1.5, 1500), (0.0001, 1)])
def test_a_log_that_is_begun_lives_as_long_as_one_with_messages(ttl: float, milliseconds: int) -> None:
    assert begin_arguments(b"k", ttl) == ("EVAL", BEGIN_SCRIPT, 1, b"k", milliseconds)


@pytest.mark.parametrize(
    ("size", "log", "ttl", "arguments"),
    [
        (MAX_LOGGED_BYTES, 7, 1.5, (7, 1500, "1")),
        (MAX_LOGGED_BYTES + 1, 7, 1.5, (7, 1500, "0")),  # a position, and no payload in the log
        (0, 0, 60, (1, 60_000, "0")),  # no log: one empty entry, which counts
        (0, 1, 0.0001, (1, 1, "1")),
    ],
)
def test_what_is_kept_of_a_message(size: int, log: int, ttl: float, arguments: tuple[object, ...]) -> None:
    assert publish_arguments(b"k", bytes(size), log, ttl)[5:] == arguments
