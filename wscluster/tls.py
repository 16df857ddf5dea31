"""The TLS context of a server, made from the options and checked before a client could find out what is wrong.

The primary checks it before it binds, and each worker makes its own at boot: the handshake happens in the worker.
"""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime

from wscluster.certificates import Validity, find_private_key, read_validities
from wscluster.config import Tls
from wscluster.errors import StartError

Context = ssl.SSLContext


def make_context(tls: Tls) -> Context | None:
    """Return the context of the server; None without TLS.

    TLS 1.2 and 1.3, ALPN ``http/1.1`` (a WebSocket over HTTP/2 is not spoken), no renegotiation. With
    ``--ssl-ca-certs`` every client must show a certificate.

    Raises:
        StartError: Something is wrong with the files or options; one line that lists every fault.
    """
    context, faults = _make(tls, datetime.now(UTC))
    if faults:
        raise StartError("; ".join(faults))
    return context


def find_tls_faults(tls: Tls, now: datetime | None = None) -> list[str]:
    """Return one line for each thing that is wrong, with its flag; empty where `make_context` succeeds.

    Args:
        now: The time at which certificates must be valid, with a time zone; None is the present.
    """
    return _make(tls, now or datetime.now(UTC))[1]


def _make(tls: Tls, now: datetime) -> tuple[Context | None, list[str]]:
    if tls.ssl_certfile is None:
        return None, []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    faults = []
    try:
        _load_chain(context, tls, now)
    except ValueError as exc:
        faults.append(str(exc))
    if tls.ssl_ca_certs is not None:
        try:
            _load_authorities(context, tls.ssl_ca_certs, now)
        except ValueError as exc:
            faults.append(str(exc))
    return context, faults


def _load_chain(context: Context, tls: Tls, now: datetime) -> None:
    """Load certificate and key into ``context``.

    Raises:
        ValueError: They are of no use; the text names the flag.
    """
    assert tls.ssl_certfile is not None
    certificate = f"--ssl-certfile {tls.ssl_certfile}"
    pem = _read(certificate, tls.ssl_certfile)
    for number, validity in enumerate(_certificates(certificate, tls.ssl_certfile, pem), 1):
        fault = validity.describe_fault(now)
        if fault is not None:
            raise ValueError(
                f"{certificate}: the certificate {f'(number {number} in the file) ' * (number > 1)}{fault}"
            )
    if tls.ssl_keyfile is None:
        key, file = certificate, tls.ssl_certfile
    else:
        key, file = f"--ssl-keyfile {tls.ssl_keyfile}", tls.ssl_keyfile
        pem = _read(key, file)
    encrypted = find_private_key(pem)
    if encrypted is None:
        hint = "; give its file as --ssl-keyfile" if tls.ssl_keyfile is None else ""
        raise ValueError(f"{key}: there is no private key in PEM form in it{hint}")
    if encrypted and tls.ssl_keyfile_password is None:
        raise ValueError(f"{key}: the private key is encrypted; set its password in WSCLUSTER_SSL_KEYFILE_PASSWORD")
    # Never None: OpenSSL would ask on the terminal then.
    password = os.fsencode(tls.ssl_keyfile_password or "")
    try:
        context.load_cert_chain(tls.ssl_certfile, file, lambda: password)
    except ssl.SSLError as exc:
        raise ValueError(_describe(exc, certificate, key, encrypted)) from exc
    except ValueError as exc:
        raise ValueError(f"--ssl-keyfile-password: {exc}") from exc


def _describe(exc: ssl.SSLError, certificate: str, key: str, encrypted: bool) -> str:
    # A certificate that can be read at all was read before: what has no reason here concerns the key.
    reason = exc.reason or ""
    if reason.endswith("MISMATCH"):
        return f"{key}: the private key does not belong to the certificate of {certificate}"
    if reason:
        return f"{certificate}: OpenSSL refuses it: {reason.replace('_', ' ').lower()}"
    if encrypted:
        return f"{key}: the private key cannot be decrypted; is --ssl-keyfile-password right?"
    return f"{key}: the private key is damaged"


def _load_authorities(context: Context, file: str, now: datetime) -> None:
    """Demand a certificate of each client that one in ``file`` has signed.

    Raises:
        ValueError: There is none, or all of them are invalid at ``now``.
    """
    what = f"--ssl-ca-certs {file}"
    validities = _certificates(what, file, _read(what, file))
    faults = [validity.describe_fault(now) for validity in validities]
    # A bundle may well hold old ones beside the others.
    if all(faults):
        raise ValueError(f"{what}: the certificate {faults[0]}" + (", and so on" if len(faults) > 1 else ""))
    context.load_verify_locations(cafile=file)
    context.verify_mode = ssl.CERT_REQUIRED


def _read(what: str, file: str) -> bytes:
    try:
        if os.path.exists(file) and not os.path.isfile(file):
            raise ValueError(f"{what}: it is no regular file")
        with open(file, "rb") as opened:
            return opened.read()
    except OSError as exc:
        raise ValueError(f"{what}: it cannot be read: {os.strerror(exc.errno or 0)}") from exc


def _certificates(what: str, file: str, pem: bytes) -> list[Validity]:
    try:
        validities = read_validities(pem)
        if validities:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cafile=file)
    except ValueError as exc:
        raise ValueError(f"{what}: a certificate in it is damaged") from exc
    except ssl.SSLError as exc:
        raise ValueError(f"{what}: a certificate in it is damaged") from exc
    if not validities:
        raise ValueError(f"{what}: there is no certificate in PEM form in it")
    return validities
