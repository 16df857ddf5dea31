"""Every fault of TLS options is one line that names its flag."""

import ssl
from pathlib import Path

import pytest
import trustme

from tests.certificate_support import DAY, NOW, encrypt, write_server, write_weak
from wscluster.config import Tls
from wscluster.errors import ExitCode, StartError
from wscluster.tls import find_tls_faults, make_context

AUTHORITY = trustme.CA()


def options(certificate: object = None, key: object = None, password: str | None = None, ca: object = None) -> Tls:
    files = [None if file is None else str(file) for file in (certificate, key, ca)]
    return Tls(ssl_certfile=files[0], ssl_keyfile=files[1], ssl_keyfile_password=password, ssl_ca_certs=files[2])


def only_fault(tls: Tls) -> str:
    (fault,) = find_tls_faults(tls)
    assert "\n" not in fault
    with pytest.raises(StartError) as caught:
        make_context(tls)
    assert str(caught.value) == fault
    assert caught.value.exit_code == ExitCode.NOT_STARTED
    return fault


def test_without_a_certificate_there_is_no_tls() -> None:
    assert make_context(Tls()) is None


def test_what_a_server_needs_is_set(tmp_path: Path) -> None:
    certificate, key = write_server(tmp_path, AUTHORITY)
    context = make_context(options(certificate, key))
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_the_key_may_stand_in_the_file_of_the_certificate(tmp_path: Path) -> None:
    certificate, key = write_server(tmp_path, AUTHORITY)
    certificate.write_bytes(key.read_bytes() + certificate.read_bytes())
    assert find_tls_faults(options(certificate)) == []


@pytest.mark.parametrize("traditional", [False, True])
def test_an_encrypted_key_needs_its_password(tmp_path: Path, traditional: bool) -> None:
    certificate, key = write_server(tmp_path, AUTHORITY)
    encrypted = encrypt(key, "secret ü", traditional=traditional)
    assert find_tls_faults(options(certificate, encrypted, "secret ü")) == []
    missing = only_fault(options(certificate, encrypted))
    assert missing == (
        f"--ssl-keyfile {encrypted}: the private key is encrypted; set its password in WSCLUSTER_SSL_KEYFILE_PASSWORD"
    )
    for password in ("wrong", ""):
        wrong = only_fault(options(certificate, encrypted, password))
        assert wrong == (
            f"--ssl-keyfile {encrypted}: the private key cannot be decrypted; is --ssl-keyfile-password right?"
        )
    long = only_fault(options(certificate, encrypted, "p" * 2000))
    assert long == "--ssl-keyfile-password: password cannot be longer than 1024 bytes"


def test_a_password_that_is_not_needed_does_no_harm(tmp_path: Path) -> None:
    certificate, key = write_server(tmp_path, AUTHORITY)
    assert find_tls_faults(options(certificate, key, "unneeded")) == []


def test_a_key_of_another_certificate_is_found(tmp_path: Path) -> None:
    certificate, _ = write_server(tmp_path, AUTHORITY)
    _, other = write_server(tmp_path, AUTHORITY, "other")
    assert only_fault(options(certificate, other)) == (
        f"--ssl-keyfile {other}: the private key does not belong to the certificate of --ssl-certfile {certificate}"
    )


def test_an_expired_certificate_is_found(tmp_path: Path) -> None:
    files = write_server(tmp_path, AUTHORITY, not_before=NOW - 2 * DAY, not_after=NOW - DAY)
    assert only_fault(options(*files)) == (
        f"--ssl-certfile {files[0]}: the certificate expired on {NOW - DAY:%Y-%m-%d %H:%M} UTC"
    )


def test_a_certificate_of_tomorrow_is_found(tmp_path: Path) -> None:
    files = write_server(tmp_path, AUTHORITY, not_before=NOW + DAY, not_after=NOW + 2 * DAY)
    assert only_fault(options(*files)) == (
        f"--ssl-certfile {files[0]}: the certificate is not valid before {NOW + DAY:%Y-%m-%d %H:%M} UTC; "
        "is the clock right?"
    )


def test_an_expired_certificate_further_down_in_the_chain_is_found(tmp_path: Path) -> None:
    certificate, key = write_server(tmp_path, AUTHORITY)
    old, _ = write_server(tmp_path, AUTHORITY, "old", not_before=NOW - 2 * DAY, not_after=NOW - DAY)
    certificate.write_bytes(certificate.read_bytes() + old.read_bytes())
    assert "the certificate (number 2 in the file) expired on" in only_fault(options(certificate, key))


@pytest.mark.parametrize("flag", ["--ssl-certfile", "--ssl-keyfile", "--ssl-ca-certs"])
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "it cannot be read: No such file or directory"),
        ("folder", "it is no regular file"),
        ("", "in PEM form in it"),
        ("no PEM at all\0", "in PEM form in it"),
        ("-----BEGIN {}-----\nAAAA\n-----END {}-----\n", "damaged"),
        ("-----BEGIN {}-----\nnot base64\n-----END {}-----\n", "damaged"),
    ],
)
def test_files_that_are_no_certificate_and_no_key_are_found(
    tmp_path: Path, flag: str, content: str | None, fault: str
) -> None:
    certificate, key = write_server(tmp_path, AUTHORITY)
    wrong = tmp_path / "wrong file"
    if content == "folder":
        wrong.mkdir()
    elif content is not None:
        wrong.write_text(content.replace("{}", "PRIVATE KEY" if flag == "--ssl-keyfile" else "CERTIFICATE"))
    tls = {
        "--ssl-certfile": options(wrong, key),
        "--ssl-keyfile": options(certificate, wrong),
        "--ssl-ca-certs": options(certificate, key, ca=wrong),
    }[flag]
    found = only_fault(tls)
    assert found.startswith(f"{flag} {wrong}: ")
    assert fault in found


def test_a_certificate_without_its_key_says_where_the_key_goes(tmp_path: Path) -> None:
    certificate, _ = write_server(tmp_path, AUTHORITY)
    assert only_fault(options(certificate)) == (
        f"--ssl-certfile {certificate}: there is no private key in PEM form in it; give its file as --ssl-keyfile"
    )


def test_faults_of_certificate_and_authorities_are_told_at_once(tmp_path: Path) -> None:
    faults = find_tls_faults(options(tmp_path / "a", tmp_path / "b", ca=tmp_path / "c"))
    assert [fault.split()[0] for fault in faults] == ["--ssl-certfile", "--ssl-ca-certs"]


def test_authorities_are_invalid_only_where_all_of_them_are(tmp_path: Path) -> None:
    certificate, key = write_server(tmp_path, AUTHORITY)
    old, _ = write_server(tmp_path, AUTHORITY, "old", not_before=NOW - 2 * DAY, not_after=NOW - DAY)
    found = only_fault(options(certificate, key, ca=old))
    assert found.startswith(f"--ssl-ca-certs {old}: the certificate expired on ")
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(old.read_bytes() + AUTHORITY.cert_pem.bytes())
    context = make_context(options(certificate, key, ca=bundle))
    assert context is not None
    assert context.verify_mode == ssl.CERT_REQUIRED


def test_a_key_that_is_too_weak_is_refused_with_the_word_of_openssl(tmp_path: Path) -> None:
    certificate = write_weak(tmp_path)
    assert only_fault(options(certificate)) == f"--ssl-certfile {certificate}: OpenSSL refuses it: ee key too small"
