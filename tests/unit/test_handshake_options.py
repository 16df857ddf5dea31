"""Options of the opening handshake that cannot be meant are faults, each told with its place."""

from typing import Any

import pytest

from wscluster.config import Handshake, flag_of
from wscluster.handshake_options import FUNCTIONS, handshake_faults


def faults(**options: Any) -> list[str]:
    return handshake_faults(Handshake(**options), flag_of)


def test_the_default_has_no_fault() -> None:
    assert faults() == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_named_by_module_and_attribute(name: str) -> None:
    assert faults(**{name: "auth:look"}) == []
    assert faults(**{name: "a.b:Class.method"}) == []
    for text in ("auth", "auth:", ":look", "a b:c", "auth:look()", "auth.py:look:x", ""):
        assert faults(**{name: text}) == [f"{flag_of(name)} {text!r}: module:function is wanted"]


@pytest.mark.parametrize(
    "origin",
    [
        "https://example.com", "http://localhost:3000", "https://xn--bcher-kva.example", "http://[::1]:8080", "null",
        "none", "app://obsidian.md", "chrome-extension://abcdef", "http://example.com:443", "https://a_b.example:8443",
    ],
)  # fmt: skip
def test_what_a_browser_sends_is_an_origin(origin: str) -> None:
    assert faults(allowed_origins=(origin,)) == []


@pytest.mark.parametrize(
    "origin",
    [
        "example.com", "https://Example.com", "HTTPS://example.com", "https://example.com/", "https://example.com:443",
        "http://example.com:80", "*", "https://*.example.com", "https://example.com:0443", "https://a b", "https://",
        "Null", "None", "https://user@example.com", "https://example.com?x", "https://b\u00fccher.example",
        "https://example.com\n",
    ],
)  # fmt: skip
def test_an_origin_that_no_browser_sends_is_a_fault(origin: str) -> None:
    (fault,) = faults(allowed_origins=("https://good.example", origin))
    assert fault.startswith(f"--allowed-origins {origin!r}: scheme://host or scheme://host:port is wanted")


def test_a_subprotocol_is_a_token() -> None:
    assert faults(subprotocols=("chat", "v1.chat+json")) == []
    (fault,) = faults(subprotocols=("chat", "a b"))
    assert fault.startswith("--subprotocols 'a b': ")


@pytest.mark.parametrize("text", ["10.0.0.0/33", "localhost", "10.0.0.1/8", "**", "unix:"])
def test_a_proxy_is_an_address_or_a_network(text: str) -> None:
    assert faults(forwarded_allow_ips=("127.0.0.1", "::1", "10.0.0.0/8", "*")) == []
    (fault,) = faults(forwarded_allow_ips=("127.0.0.1", text))
    assert fault.startswith(f"--forwarded-allow-ips {text!r}: ")


def test_every_fault_is_told_at_once() -> None:
    assert (
        len(faults(basic_auth="x", subprotocols=("a b",), allowed_origins=("x", "y"), forwarded_allow_ips=("z",))) == 5
    )
