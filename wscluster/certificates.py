"""When certificates are valid, read from their PEM text (RFC 7468, RFC 5280 4.1.2.5).

Python's `ssl` tells this of a peer's certificate only, never of a file's.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from datetime import UTC, datetime

_PEM = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----(.*?)-----END (?:X509 |TRUSTED )?CERTIFICATE-----", re.DOTALL
)
_KEY = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----(?:\s*Proc-Type: 4,(ENCRYPTED))?")
_SEQUENCE = 0x30
_VERSION = 0xA0
_UTC_TIME = 0x17


@dataclass(frozen=True, slots=True)
class Validity:
    """The time in which a certificate may be used; both ends belong to it."""

    not_before: datetime
    not_after: datetime

    def describe_fault(self, now: datetime) -> str | None:
        """Return what is wrong with the certificate at ``now``; None where it is valid."""
        if now > self.not_after:
            return f"expired on {self.not_after:%Y-%m-%d %H:%M} UTC"
        if now < self.not_before:
            return f"is not valid before {self.not_before:%Y-%m-%d %H:%M} UTC; is the clock right?"
        return None


def read_validities(pem: bytes) -> list[Validity]:
    """Return the validity of each certificate in ``pem``, in their order; empty where there is none.

    Raises:
        ValueError: One of them is damaged.
    """
    return [_read_validity(base64.b64decode(match[1])) for match in _PEM.finditer(pem)]


def find_private_key(pem: bytes) -> bool | None:
    """Return whether the first private key in ``pem`` is encrypted; None where there is no key."""
    match = _KEY.search(pem)
    if match is None:
        return None
    return match[1] is not None or b"ENCRYPTED" in match[0]


def _read_validity(der: bytes) -> Validity:
    try:
        _, at, _ = _element(der, 0, _SEQUENCE)
        _, at, _ = _element(der, at, _SEQUENCE)
        if der[at] == _VERSION:
            at = _element(der, at)[2]
        for _ in ("serial number", "signature", "issuer"):
            at = _element(der, at)[2]
        _, at, _ = _element(der, at, _SEQUENCE)
        not_before, at = _time(der, at)
        not_after, _ = _time(der, at)
    except IndexError as exc:
        raise ValueError("the certificate is cut off") from exc
    return Validity(not_before, not_after)


def _element(der: bytes, at: int, tag: int | None = None) -> tuple[int, int, int]:
    """Return tag, begin and end of the content of the element at ``at`` (X.690, 8.1)."""
    found, length, begin = der[at], der[at + 1], at + 2
    if tag is not None and found != tag:
        raise ValueError(f"tag {found:#x} where {tag:#x} is wanted")
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(der[begin : begin + size], "big")
        begin += size
    if begin + length > len(der):
        raise ValueError("the certificate is cut off")
    return found, begin, begin + length


def _time(der: bytes, at: int) -> tuple[datetime, int]:
    """Return the time at ``at`` and where it ends: UTCTime (years 1950 to 2049) or GeneralizedTime."""
    tag, begin, end = _element(der, at)
    text = der[begin:end].decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC), end
