"""Requests that the library's parser lets pass and that are refused all the same."""

import pytest
from websockets.datastructures import Headers
from websockets.http11 import Request

from wscluster.workers.request_faults import fault_of


@pytest.mark.parametrize("path", ["/", "/chat?room=a&b=%00", "/~a!$&'()*+,;=:@", "http://example.com/chat", "*"])
def test_an_ordinary_request_has_no_fault(path: str) -> None:
    assert fault_of(Request(path, Headers(Host="example.com"))) is None


@pytest.mark.parametrize("path", ["/a\x00b", "/\x1b[31m", "/a b", "/a\tb", "/#a", "/\x7f", "/\xe9", ""])
def test_a_path_with_what_has_no_place_in_it_is_refused(path: str) -> None:
    assert "percent-encoded" in (fault_of(Request(path, Headers(Host="example.com"))) or "")


@pytest.mark.parametrize("hosts", [[], ["a", "b"], ["a", "a"]])
def test_not_exactly_one_host_is_refused(hosts: list[str]) -> None:
    headers = Headers()
    for host in hosts:
        headers["Host"] = host
    assert "one Host" in (fault_of(Request("/", headers)) or "")
