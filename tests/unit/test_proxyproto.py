"""What the first bytes of a stream say about its client, at every split, and whatever they are."""

import ipaddress
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wscluster.gateway.proxyproto import (
    LOOK_BYTES,
    MAX_V1_BYTES,
    V2_SIGNATURE,
    Header,
    Invalid,
    NeedMore,
    parse,
)

LOCAL, PROXY = 0x20, 0x21
TCP4, TCP6, UDP4, UNIX = 0x11, 0x21, 0x12, 0x31
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
V4_BLOCK = bytes((192, 0, 2, 7, 10, 0, 0, 1)) + struct.pack("!HH", 40000, 443)
V6_BLOCK = ipaddress.IPv6Address("2001:db8::7").packed * 2 + struct.pack("!HH", 40000, 443)
UNIX_BLOCK = b"/run/client".ljust(108, b"\0") * 2
TLVS = b"\x03\x00\x04abcd" + b"\x04\x00\x00" + b"\x20\x00\x02??"


def v2(command: int, family: int, block: bytes, length: int | None = None) -> bytes:
    """Return a header of version 2; ``length`` is what it says of itself."""
    said = len(block) if length is None else length
    return V2_SIGNATURE + bytes((command, family)) + struct.pack("!H", said) + block


V1_GOOD = {
    b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 443\r\n": ("192.0.2.7", 40000),
    b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n": ("255.255.255.255", 65535),
    b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n": ("0.0.0.0", 0),
    b"PROXY TCP6 2001:DB8:0:0:0:0:0:7 ::1 40000 443\r\n": ("2001:db8::7", 40000),
    b"PROXY TCP6 ::ffff:192.0.2.7 ::1 40000 443\r\n": ("::ffff:192.0.2.7", 40000),
    b"PROXY TCP6 ::ffff:c000:207 ::1 40000 443\r\n": ("::ffff:192.0.2.7", 40000),
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN " + b" ".join([b"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] * 2) + b" 65535 65535\r\n": None,
    b"PROXY UNKNOWN whatever \0\xff it says\r\n": None,
}
V2_GOOD = {
    v2(PROXY, TCP4, V4_BLOCK): ("192.0.2.7", 40000),
    v2(PROXY, TCP4, V4_BLOCK + TLVS): ("192.0.2.7", 40000),
    v2(PROXY, TCP4, V4_BLOCK + b"\xff" * 300): ("192.0.2.7", 40000),
    v2(PROXY, TCP6, V6_BLOCK): ("2001:db8::7", 40000),
    v2(PROXY, TCP6, ipaddress.IPv6Address("::ffff:192.0.2.7").packed + V6_BLOCK[16:]): ("::ffff:192.0.2.7", 40000),
    v2(PROXY, UNIX, UNIX_BLOCK): ("", 0),
    v2(PROXY, UNIX, UNIX_BLOCK + TLVS): ("", 0),
    v2(PROXY, UDP4, V4_BLOCK): None,
    v2(PROXY, 0x00, b""): None,
    v2(PROXY, 0x00, b"\xff" * 40): None,
    v2(PROXY, 0x10, V4_BLOCK): None,
    v2(PROXY, 0x01, b""): None,
    v2(LOCAL, 0x00, b""): None,
    v2(LOCAL, TCP4, V4_BLOCK): None,
    v2(LOCAL, 0xFF, b"123"): None,
}
GOOD = V1_GOOD | V2_GOOD
FOREIGN = {
    "a request": REQUEST,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
    "lower case": b"proxy TCP4 192.0.2.7 10.0.0.1 40000 443\r\n",
    "a blank first": b" PROXY TCP4 192.0.2.7 10.0.0.1 40000 443\r\n",
    "a tab": b"PROXY\tTCP4 192.0.2.7 10.0.0.1 40000 443\r\n",
    "an empty line": b"\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "a broken signature": V2_SIGNATURE[:-1] + b"\r" + v2(PROXY, TCP4, V4_BLOCK)[12:],
    "zeros": bytes(300),
}
MALFORMED = {
    "two blanks": b"PROXY  TCP4 192.0.2.7 10.0.0.1 40000 443\r\n",
    "a family that is none": b"PROXY TCP5 192.0.2.7 10.0.0.1 40000 443\r\n",
    "UDP": b"PROXY UDP4 192.0.2.7 10.0.0.1 40000 443\r\n",
    "no family": b"PROXY \r\n",
    "lower case family": b"PROXY unknown\r\n",
    "a field too few": b"PROXY TCP4 192.0.2.7 10.0.0.1 40000\r\n",
    "a field too many": b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 443 1\r\n",
    "a blank at the end": b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 443 \r\n",
    "IPv6 as IPv4": b"PROXY TCP4 ::1 ::1 40000 443\r\n",
    "IPv4 as IPv6": b"PROXY TCP6 192.0.2.7 10.0.0.1 40000 443\r\n",
    "a scope": b"PROXY TCP6 fe80::1%eth0 ::1 40000 443\r\n",
    "brackets": b"PROXY TCP6 [::1] ::1 40000 443\r\n",
    "a name": b"PROXY TCP4 localhost 10.0.0.1 40000 443\r\n",
    "three octets": b"PROXY TCP4 192.0.2 10.0.0.1 40000 443\r\n",
    "an octet of 256": b"PROXY TCP4 192.0.2.256 10.0.0.1 40000 443\r\n",
    "an octet that looks octal": b"PROXY TCP4 192.0.2.07 10.0.0.1 40000 443\r\n",
    "a bad destination": b"PROXY TCP4 192.0.2.7 10.0.0 40000 443\r\n",
    "a port of 65536": b"PROXY TCP4 192.0.2.7 10.0.0.1 65536 443\r\n",
    "a long port": b"PROXY TCP4 192.0.2.7 10.0.0.1 " + b"9" * 40 + b" 443\r\n",
    "a port with a sign": b"PROXY TCP4 192.0.2.7 10.0.0.1 +1 443\r\n",
    "a negative port": b"PROXY TCP4 192.0.2.7 10.0.0.1 -1 443\r\n",
    "a port with a zero first": b"PROXY TCP4 192.0.2.7 10.0.0.1 080 443\r\n",
    "a port with an underscore": b"PROXY TCP4 192.0.2.7 10.0.0.1 4_0 443\r\n",
    "an empty port": b"PROXY TCP4 192.0.2.7 10.0.0.1  443\r\n",
    "digits of another script": "PROXY TCP4 192.0.2.7 10.0.0.1 ٤ 443\r\n".encode(),
    "a NUL": b"PROXY TCP4 192.0.2.7\0 10.0.0.1 40000 443\r\n",
    "a bad destination port": b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 x\r\n",
    "a lone LF": b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 443\n" + REQUEST,
    "a lone CR": b"PROXY UNKNOWN\rX\r\n",
    "two CR": b"PROXY UNKNOWN\r\r\n",
    "no end": b"PROXY UNKNOWN " + b"x" * 400,
    "a byte too long": b"PROXY UNKNOWN " + b"x" * (MAX_V1_BYTES + 1 - 16) + b"\r\n",
    "version 1 in binary": v2(0x11, TCP4, V4_BLOCK),
    "version 3": v2(0x31, TCP4, V4_BLOCK),
    "a command that is none": v2(0x22, TCP4, V4_BLOCK),
    "a family that is none in binary": v2(PROXY, 0x41, V4_BLOCK),
    "a transport that is none": v2(PROXY, 0x13, V4_BLOCK),
    "no room for IPv4": v2(PROXY, TCP4, V4_BLOCK[:-1]),
    "no room for IPv6": v2(PROXY, TCP6, V4_BLOCK),
    "no room for paths": v2(PROXY, UNIX, UNIX_BLOCK[:-1]),
    "no addresses": v2(PROXY, TCP4, b""),
}


def outcomes(stream: bytes, mode: str) -> list[Header | NeedMore | Invalid]:
    """Return what each beginning of ``stream`` is, the empty one first."""
    return [parse(stream[:size], mode) for size in range(len(stream) + 1)]


def assert_settled(stream: bytes, mode: str) -> None:
    """Check that a first verdict is the last one, however the stream is split."""
    found = outcomes(stream, mode)
    first = next((at for at, outcome in enumerate(found) if not isinstance(outcome, NeedMore)), len(found))
    assert all(outcome == found[-1] for outcome in found[first:])


@pytest.mark.parametrize("mode", ["v1", "v2", "auto"])
@pytest.mark.parametrize("stream", GOOD, ids=repr)
def test_a_good_header_is_read_once_what_decides_has_come(stream: bytes, mode: str) -> None:
    version = "v1" if stream in V1_GOOD else "v2"
    found = outcomes(stream + REQUEST, mode)
    assert_settled(stream + REQUEST, mode)
    if mode in (version, "auto"):
        assert found[len(stream)] == Header(len(stream), GOOD[stream])
        assert isinstance(found[15 if version == "v2" else len(stream) - 1], NeedMore)
    else:
        assert found[len(stream)] == Invalid(f"a PROXY header of {version} where {mode} is wanted")


@pytest.mark.parametrize("stream", GOOD, ids=repr)
def test_bytes_beyond_the_bound_are_not_needed(stream: bytes) -> None:
    assert parse((stream + REQUEST)[:LOOK_BYTES], "auto") == Header(len(stream), GOOD[stream])


@pytest.mark.parametrize("mode", ["v1", "v2", "auto"])
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_header_is_invalid_at_every_split(name: str, mode: str) -> None:
    assert_settled(MALFORMED[name], mode)
    assert isinstance(parse(MALFORMED[name], mode), Invalid)


@pytest.mark.parametrize("name", FOREIGN)
def test_another_protocol_is_invalid_where_a_header_is_demanded_and_itself_where_none_is(name: str) -> None:
    for mode in ("v1", "v2", "auto"):
        assert_settled(FOREIGN[name], mode)
    assert parse(FOREIGN[name], "v1") == parse(FOREIGN[name], "v2") == Invalid("no PROXY header")
    assert parse(FOREIGN[name], "auto") == Header(0, None)


@pytest.mark.parametrize("name", MALFORMED)
def test_a_reason_repeats_nothing_of_the_client(name: str) -> None:
    outcome = parse(MALFORMED[name], "auto")
    assert isinstance(outcome, Invalid)
    assert outcome.reason.isascii()
    assert outcome.reason.isprintable()


@pytest.mark.parametrize("mode", ["v1", "v2", "auto"])
@given(stream=st.binary(max_size=400))
@example(b"")
@example(b"PROXY ")
@example(V2_SIGNATURE)
def test_no_bytes_raise_and_a_verdict_stays(mode: str, stream: bytes) -> None:
    assert_settled(stream, mode)


@given(
    head=st.sampled_from(
        [b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN", V2_SIGNATURE, V2_SIGNATURE + b"\x21"]
    ),
    tail=st.binary(max_size=300),
)
def test_no_bytes_after_a_good_beginning_raise_and_a_verdict_stays(head: bytes, tail: bytes) -> None:
    assert_settled(head + tail, "auto")


@given(source=st.ip_addresses(), destination=st.ip_addresses(), ports=st.tuples(*[st.integers(0, 65535)] * 2))
def test_both_versions_tell_every_address(
    source: ipaddress.IPv4Address | ipaddress.IPv6Address,
    destination: ipaddress.IPv4Address | ipaddress.IPv6Address,
    ports: tuple[int, int],
) -> None:
    if source.version != destination.version:
        destination = source
    line = f"PROXY TCP{source.version} {source} {destination} {ports[0]} {ports[1]}\r\n".encode()
    family = TCP4 if source.version == 4 else TCP6
    block = v2(PROXY, family, source.packed + destination.packed + struct.pack("!HH", *ports))
    for stream in (line, block):
        outcome = parse(stream, "auto")
        assert isinstance(outcome, Header)
        assert outcome.length == len(stream)
        assert outcome.source is not None
        assert ipaddress.ip_address(outcome.source[0]) == source
        assert outcome.source[1] == ports[0]


def test_the_longest_header_is_known_from_its_beginning() -> None:
    stream = v2(PROXY, TCP4, V4_BLOCK, length=65535)
    assert parse(stream, "v2") == Header(16 + 65535, ("192.0.2.7", 40000))
