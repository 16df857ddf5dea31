"""Options of an ASGI app that cannot be meant are told before anything starts."""

import pytest

from wscluster.asgi_options import asgi_faults, parse_header
from wscluster.config import Asgi, Config, Operate, flag_of


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("X-Name:Value", ("X-Name", "Value")),
        ("x-name: a: b ", ("x-name", "a: b")),
        ("empty:", ("empty", "")),
        ("latin: \xe9\t\xff", ("latin", "\xe9\t\xff")),
    ],
)
def test_a_header_is_a_name_and_a_value(text: str, header: tuple[str, str]) -> None:
    assert not asgi_faults(Config("main:app", asgi=Asgi(header=(text,))), flag_of)
    assert parse_header(text) == header


@pytest.mark.parametrize("text", ["no-colon", ": value", "a b: c", "name: a\r\nb: c", "name: \x00", "name: \u20ac", ""])
def test_what_is_no_header_is_refused(text: str) -> None:
    (fault,) = asgi_faults(Config("main:app", asgi=Asgi(header=(text,))), flag_of)
    assert fault.startswith(f"--header {text!r}: Name:Value in Latin-1")


@pytest.mark.parametrize("path", ["/caf\xe9", "/a\nb"])
def test_a_root_path_is_printable_ascii(path: str) -> None:
    (fault,) = asgi_faults(Config("main:app", asgi=Asgi(root_path=path)), flag_of)
    assert fault == f"--root-path {path!r}: a path in printable ASCII is wanted"
    assert not asgi_faults(Config("main:app", asgi=Asgi(root_path="/api")), flag_of)


def test_a_factory_makes_no_handler() -> None:
    config = Config("main:make", asgi=Asgi(factory=True), operate=Operate(interface="handler"))
    assert asgi_faults(config, flag_of) == ["--factory: what it returns is an ASGI app, but --interface is handler"]
