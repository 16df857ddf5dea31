"""Validity of certificates and kind of a key, read from PEM text."""

import base64
from datetime import UTC, datetime

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from tests.certificate_support import DAY, NOW
from wscluster.certificates import Validity, find_private_key, read_validities

AUTHORITY = trustme.CA()


def pem(not_before: datetime, not_after: datetime) -> bytes:
    leaf = AUTHORITY.issue_cert("localhost", not_before=not_before, not_after=not_after)
    return leaf.cert_chain_pems[0].bytes()


@pytest.mark.parametrize("year", [1951, 1999, 2000, 2049, 2050, 9999], ids=str)
def test_both_forms_of_a_time_are_read(year: int) -> None:
    begin = datetime(year, 1, 2, 3, 4, 5, tzinfo=UTC)
    end = datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert read_validities(pem(begin, end)) == [Validity(begin, end)]


def test_every_certificate_of_a_file_is_read_whatever_stands_between() -> None:
    first, second = pem(NOW - DAY, NOW + DAY), pem(NOW - 2 * DAY, NOW + 2 * DAY)
    found = read_validities(b"subject=CN\n" + first + b"a comment\n" + second.replace(b"\n", b"\r\n"))
    assert [validity.not_after - validity.not_before for validity in found] == [2 * DAY, 4 * DAY]
    assert read_validities(b"no certificate") == []


def test_a_certificate_is_valid_from_its_first_to_its_last_second() -> None:
    validity = Validity(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 31, 12, tzinfo=UTC))
    assert validity.describe_fault(validity.not_before) is None
    assert validity.describe_fault(validity.not_after) is None
    expired = validity.describe_fault(datetime(2026, 1, 31, 12, 0, 1, tzinfo=UTC))
    assert expired == "expired on 2026-01-31 12:00 UTC"
    early = validity.describe_fault(datetime(2025, 12, 31, tzinfo=UTC))
    assert early == "is not valid before 2026-01-01 00:00 UTC; is the clock right?"


def test_a_certificate_of_version_1_says_no_version() -> None:
    """RFC 5280, 4.1.2.1: the field is left out; authorities of the nineties are like that."""
    times = element(0x17, b"960101000000Z") + element(0x18, b"20500131120000Z")
    body = element(0x02, b"\x07") + element(0x30, b"") + element(0x30, b"") + element(0x30, times)
    (found,) = read_validities(armour(element(0x30, element(0x30, body))))
    assert found == Validity(datetime(1996, 1, 1, tzinfo=UTC), datetime(2050, 1, 31, 12, tzinfo=UTC))


def element(tag: int, content: bytes) -> bytes:
    return bytes((tag, len(content))) + content


@given(st.binary(max_size=60))
def test_damage_is_a_value_error_and_nothing_else(noise: bytes) -> None:
    whole = pem_body()
    for damaged in (noise, whole[: len(noise) * 3], whole[:20] + noise + whole[20 + len(noise) :]):
        try:
            read_validities(armour(damaged))
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("der", "reason"),
    [
        (b"", "cut off"),
        (b"\x30", "cut off"),
        (b"\x30\x10\x30", "cut off"),
        (b"\x30\x82\x01", "cut off"),
        (b"\x02\x01\x00", "tag 0x2 where 0x30 is wanted"),
    ],
)
def test_damage_is_told(der: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_validities(armour(der))


def pem_body() -> bytes:
    text = AUTHORITY.cert_pem.bytes().split(b"-----")[2]
    return base64.b64decode(text)


def armour(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(der) + b"\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("head", "encrypted"),
    [
        (b"-----BEGIN PRIVATE KEY-----\nMIG", False),
        (b"-----BEGIN RSA PRIVATE KEY-----\nMIG", False),
        (b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIG", True),
        (b"-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES", True),
        (b"-----BEGIN EC PRIVATE KEY-----\r\nProc-Type: 4,ENCRYPTED\r\n", True),
        (b"-----BEGIN EC PARAMETERS-----\nBg\n-----END EC PARAMETERS-----\n-----BEGIN EC PRIVATE KEY-----\nM", False),
        (b"-----BEGIN PUBLIC KEY-----\nMIG", None),
        (b"", None),
    ],
)
def test_a_private_key_is_found_and_whether_it_is_encrypted(head: bytes, encrypted: bool | None) -> None:
    assert find_private_key(head) is encrypted
