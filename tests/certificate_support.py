"""Certificates for tests: an authority of their own, what it signs, and files with every fault."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def write_server(
    folder: Path,
    authority: trustme.CA,
    name: str = "server",
    *,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
) -> tuple[Path, Path]:
    """Write a certificate for ``localhost`` and 127.0.0.1, and its key; returns both files."""
    leaf = authority.issue_cert("localhost", "127.0.0.1", not_before=not_before, not_after=not_after)
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    return certificate, key


def encrypt(key: Path, password: str, *, traditional: bool = False) -> Path:
    """Write ``key`` anew with a password, as PKCS #8 or in the traditional form of OpenSSL; returns the file."""
    secret = load_pem_private_key(key.read_bytes(), None)
    form = PrivateFormat.TraditionalOpenSSL if traditional else PrivateFormat.PKCS8
    encrypted = key.with_suffix(".encrypted")
    encrypted.write_bytes(secret.private_bytes(Encoding.PEM, form, BestAvailableEncryption(password.encode())))
    return encrypted


def write_weak(folder: Path) -> Path:
    """Write a certificate whose key is too short to be secure, and the key, into one file."""
    key = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "weak")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), NOW - DAY, NOW + DAY)
    file = folder / "weak.pem"
    file.write_bytes(
        builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
        + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return file
