"""Frames are built and measured as the library's own code builds and parses them."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.exceptions import ProtocolError
from websockets.extensions import Extension
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from wscluster.workers.frames import BINARY, TEXT, apply_mask, build_frame, measure_frame, refused_at_once


class SetsRsv1(Extension):
    def encode(self, frame: Frame) -> Frame:
        return replace(frame, rsv1=True)


sizes = st.sampled_from([0, 1, 125, 126, 127, 65535, 65536, 70_000]) | st.integers(0, 300)
opcodes = st.sampled_from([Opcode.CONT, Opcode.TEXT, Opcode.BINARY])


@given(st.booleans(), sizes, st.booleans())
@example(True, 125, False)
@example(True, 125, True)
@example(False, 126, False)
@example(False, 126, True)
@example(True, 65536, False)
@example(True, 65536, True)
def test_a_built_frame_is_the_librarys(text: bool, size: int, rsv1: bool) -> None:
    payload = bytes(index % 251 for index in range(size))
    frame = Frame(Opcode.TEXT if text else Opcode.BINARY, payload)
    expected = frame.serialize(mask=False, extensions=[SetsRsv1()] if rsv1 else [])
    assert build_frame(text, payload, rsv1=rsv1) == expected


@given(
    st.sampled_from([Opcode.CONT, Opcode.TEXT, Opcode.BINARY]),
    st.booleans(),
    st.booleans(),
    sizes,
    st.binary(max_size=20),
    st.binary(max_size=20),
)
@example(Opcode.TEXT, True, False, 125, b"", b"")
@example(Opcode.TEXT, True, True, 126, b"", b"")
@example(Opcode.BINARY, True, True, 65536, b"", b"")
def test_a_frame_is_measured_as_soon_as_its_length_is_there(
    opcode: Opcode, fin: bool, mask: bool, size: int, before: bytes, after: bytes
) -> None:
    payload = bytes(size)
    frame = Frame(opcode, payload, fin).serialize(mask=mask)
    length_is_at = 2 if size < 126 else 4 if size < 65536 else 10
    whole = (len(frame) - size, size)
    for end in range(min(len(frame), 16)):
        measured = measure_frame(before + frame[:end], len(before))
        assert measured == (whole if end >= length_is_at else (0, 0))
    assert measure_frame(before + frame + after, len(before)) == whole


@given(sizes)
def test_a_measured_frame_unmasks_to_its_payload(size: int) -> None:
    payload = bytes(index % 251 for index in range(size))
    frame = Frame(Opcode.BINARY, payload).serialize(mask=True)
    header, length = measure_frame(frame, 0)
    assert apply_mask(frame[header : header + length], frame[header - 4 : header]) == payload


def test_the_first_bytes_are_those_of_whole_frames() -> None:
    assert Frame(Opcode.TEXT, b"").serialize(mask=False)[0] == TEXT
    assert Frame(Opcode.BINARY, b"").serialize(mask=False)[0] == BINARY


@pytest.mark.parametrize("second", [0, 1, 125, 126, 127, 0x80, 0x80 | 126, 0xFF])
def test_what_is_refused_at_once_is_refused_by_the_parser_from_two_bytes(second: int) -> None:
    for first in range(256):
        protocol = ServerProtocol(state=OPEN)
        protocol.receive_data(bytes((first, second)))
        if refused_at_once(first, second):
            assert isinstance(protocol.parser_exc, ProtocolError), f"{first:#x} {second:#x}"


def test_a_good_frame_is_not_refused_at_once() -> None:
    for opcode in Opcode:
        frame = Frame(opcode, b"\x03\xe8" if opcode is Opcode.CLOSE else b"x").serialize(mask=True)
        assert not refused_at_once(frame[0], frame[1])


def test_an_unmasked_frame_and_a_reserved_opcode_are_refused_at_once() -> None:
    assert refused_at_once(TEXT, 5)
    assert refused_at_once(0x83, 0x85)
    assert refused_at_once(0x8F, 0x80)
