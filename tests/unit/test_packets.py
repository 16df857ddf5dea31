"""Every packet survives the wire, and no bytes from the wire survive as anything but a packet or `InvalidPacket`."""

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wscluster.packets import (
    MAX_PACKET_BYTES,
    MAX_TRACEBACK_BYTES,
    Adopted,
    Beat,
    BootFailed,
    BusAt,
    Drain,
    Ended,
    InvalidPacket,
    Offer,
    Offered,
    Packet,
    Poll,
    Ready,
    Refused,
    Start,
    Stats,
    WantBus,
    decode,
    encode,
)

counts = st.integers(0, 2**63)
seconds = st.floats(0, 1e9)
maybe_counts = st.none() | counts
texts = st.text(max_size=300)
numbers = st.lists(st.integers(0, 2**64 - 1), max_size=300).map(tuple)
printable = st.text(st.characters(exclude_categories=["Cc", "Cs"], include_characters="\n\t"), max_size=300)
hosts = st.ip_addresses().map(str) | st.text(st.characters(exclude_categories=["Cs"]), max_size=63)
offered = st.builds(Offered, number=st.integers(0, 2**64 - 1), host=hosts, port=st.integers(0, 65535))
stats = st.builds(
    Stats,
    connections=counts,
    adopted=counts,
    messages_in=maybe_counts,
    messages_out=maybe_counts,
    rooms=maybe_counts,
    loop_lag_seconds=seconds,
    cpu_seconds=seconds,
    rss_bytes=counts,
    published=counts,
    delivered=counts,
    gaps=counts,
    ignored=counts,
    slow_closed=counts,
    bus_connected=st.booleans(),
)
packets: st.SearchStrategy[Packet] = st.one_of(
    st.builds(Start, slot=counts, worker=counts, phase=counts, config=texts),
    st.builds(Offer, st.lists(offered, max_size=253).map(tuple)),
    st.builds(Drain, code=counts, reason=texts, timeout=seconds),
    st.builds(Poll, counts),
    st.builds(BusAt, url=st.none() | texts, reason=texts),
    st.just(Ready()),
    st.builds(BootFailed, exit_code=counts, reason=texts, traceback=printable),
    st.builds(Adopted, numbers),
    st.builds(Refused, numbers),
    st.builds(Ended, numbers),
    st.just(WantBus()),
    st.builds(Beat, serial=counts, stats=stats),
)


@given(packets)
@example(Offer((Offered(1, "192.0.2.1", 80),)))
@example(Adopted((1, 2)))
@example(Beat(1, Stats()))
def test_every_packet_survives_the_wire(packet: Packet) -> None:
    assert decode(encode(packet)) == packet


@given(st.binary(max_size=400))
@example(b"")
@example(b"\0")
@example(b"\xff")
@example(b"\x01" + b"[" * 100_000)
@example(b"\x0b" + b"[" * 100_000)
@example(b'\x0b{"serial":1,"stats":[]}')
@example(b"\x04" + b'{"serial":' + b"9" * 5000 + b"}")
def test_any_bytes_are_a_packet_or_invalid(data: bytes) -> None:
    with contextlib.suppress(InvalidPacket):
        assert isinstance(decode(data), Packet)


@given(st.integers(1, 12), st.binary(max_size=400))
def test_any_body_of_a_known_kind_is_a_packet_or_invalid(kind: int, body: bytes) -> None:
    with contextlib.suppress(InvalidPacket):
        assert isinstance(decode(bytes((kind,)) + body), Packet)


@given(packets)
def test_every_truncation_is_a_packet_or_invalid(packet: Packet) -> None:
    data = encode(packet)
    for end in range(len(data)):
        with contextlib.suppress(InvalidPacket):
            assert decode(data[:end]) != packet


def test_253_offers_of_the_longest_address_fit_in_one_packet() -> None:
    longest = "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255%interface0000000"
    packet = Offer(tuple(Offered(2**64 - 1, longest, 65535) for _ in range(253)))
    assert decode(encode(packet)) == packet


def test_an_offer_that_ends_within_an_address_is_invalid() -> None:
    with pytest.raises(InvalidPacket, match="middle of an address"):
        decode(encode(Offer((Offered(1, "192.0.2.1", 80),)))[:-1])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes that are no packet"),
        (b"\x00", "unknown kind of packet: 0"),
        (b"\xff", "1 bytes that are no packet"),
        (encode(Adopted((7,)))[:-1], "8 bytes that are no packet"),
        (encode(Poll(1))[:1] + b"[]", "3 bytes that are no packet"),
    ],
)
def test_what_is_no_packet_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidPacket, match=reason):
        decode(data)


@pytest.mark.parametrize("packet", [Start(0, 0, 0, "x" * MAX_PACKET_BYTES), Adopted(tuple(range(25_000)))])
def test_a_packet_that_is_too_long_is_not_encoded(packet: Packet) -> None:
    with pytest.raises(InvalidPacket, match=f"{type(packet).__name__} of 200... bytes: more than 200000"):
        encode(packet)


def test_the_longest_packet_measures_what_may_be_received() -> None:
    spare = MAX_PACKET_BYTES - len(encode(Start(0, 0, 0, "")))
    assert len(encode(Start(0, 0, 0, "x" * spare))) == MAX_PACKET_BYTES
    with pytest.raises(InvalidPacket):
        encode(Start(0, 0, 0, "x" * (spare + 1)))


@pytest.mark.parametrize("char", ["x", "é", "€", "\N{GRINNING FACE}", "\0", "\x1b", "\n", '"', "\ud800"])
def test_of_a_long_traceback_the_end_is_kept(char: str) -> None:
    packet = decode(encode(BootFailed(4, "why", char * 300_000 + "the end")))
    assert isinstance(packet, BootFailed)
    assert packet.traceback.endswith("the end")
    assert MAX_TRACEBACK_BYTES // 8 < len(packet.traceback.encode()) <= MAX_TRACEBACK_BYTES


def test_a_failed_boot_is_told_however_long_its_reason_is() -> None:
    packet = decode(encode(BootFailed(4, "why " + "x" * 300_000, "é" * 300_000)))
    assert isinstance(packet, BootFailed)
    assert packet.reason.startswith("why xxx")
    assert packet.traceback.endswith("éé")


def test_surrogates_in_a_reason_survive_and_in_a_traceback_become_question_marks() -> None:
    packet = decode(encode(BootFailed(4, "caf\udce9", "caf\udce9")))
    assert packet == BootFailed(4, "caf\udce9", "caf?")


def test_a_connection_of_a_unix_socket_has_no_client() -> None:
    assert Offered(1, "192.0.2.1", 5).client == ("192.0.2.1", 5)
    assert Offered(1, "", 0).client is None
