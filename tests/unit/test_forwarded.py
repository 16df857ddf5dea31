"""The client behind proxies is whom the last believed proxy saw, whatever a client writes into the header."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wscluster.workers.forwarded import MAX_PROXIES, Forwarded

PEER = ("127.0.0.1", 4711)
PROXIES = ("127.0.0.1", "10.0.0.0/8", "fd00::/8")


@pytest.mark.parametrize(
    ("values", "client"),
    [
        (["203.0.113.7"], ("203.0.113.7", 0)),
        ([" 203.0.113.7\t"], ("203.0.113.7", 0)),
        (["6.6.6.6, 203.0.113.7"], ("203.0.113.7", 0)),
        (["6.6.6.6,203.0.113.7,10.1.2.3, 127.0.0.1"], ("203.0.113.7", 0)),
        (["6.6.6.6", "203.0.113.7", "10.1.2.3"], ("203.0.113.7", 0)),
        (["6.6.6.6, 203.0.113.7", "10.1.2.3"], ("203.0.113.7", 0)),
        (["10.0.0.1, 10.0.0.2"], ("10.0.0.1", 0)),
        (["203.0.113.7:8080"], ("203.0.113.7", 8080)),
        (["[2001:db8::7]:8080"], ("2001:db8::7", 8080)),
        (["[2001:db8::7]"], ("2001:db8::7", 0)),
        (["2001:DB8:0::7"], ("2001:db8::7", 0)),
        (["2001:db8::7, fd00::1"], ("2001:db8::7", 0)),
        (["::ffff:203.0.113.7"], ("203.0.113.7", 0)),
        (["203.0.113.7, ::ffff:10.0.0.1"], ("203.0.113.7", 0)),
    ],
)
def test_the_walk_ends_at_the_first_that_is_no_proxy(values: list[str], client: tuple[str, int]) -> None:
    assert Forwarded(PROXIES).client(PEER, values) == client


@pytest.mark.parametrize(
    "nonsense",
    [
        "", " ", ",", "unknown", "_hidden", "example.com", "1.2.3", "1.2.3.4.5", "256.1.1.1", "01.2.3.4", "1.2.3.4:",
        "1.2.3.4:x", "1.2.3.4:65536", "1.2.3.4:-1", "1.2.3.4:\u0661", "[::1", "::1]", "[::1]x", "[::1]:", "[1.2.3.4",
        "fe80::1%eth0", "\x1b[2J", "1.2.3.4\x00", "\ud800", "1.2.3.4/32", "'1.2.3.4'", "0x7f.1", "1.2.3.4 5.6.7.8",
    ],
)  # fmt: skip
def test_an_entry_that_is_no_address_ends_the_walk_before_it(nonsense: str) -> None:
    forwarded = Forwarded(PROXIES)
    assert forwarded.client(PEER, [nonsense]) == PEER
    assert forwarded.client(PEER, [f"6.6.6.6, {nonsense}, 10.0.0.9"]) == ("10.0.0.9", 0)
    assert Forwarded(["*"]).client(PEER, [f"{nonsense}, 6.6.6.6"]) == PEER


def test_a_peer_that_is_not_believed_is_the_client() -> None:
    assert Forwarded(PROXIES).client(("203.0.113.9", 5), ["6.6.6.6"]) == ("203.0.113.9", 5)
    assert Forwarded([]).client(PEER, ["6.6.6.6"]) == PEER
    assert Forwarded(PROXIES).client(("::ffff:10.0.0.5", 5), ["6.6.6.6"]) == ("6.6.6.6", 0)


def test_a_peer_on_a_unix_socket_is_believed_only_where_everybody_is() -> None:
    assert Forwarded(PROXIES).client(None, ["6.6.6.6"]) is None
    assert Forwarded(["*"]).client(None, ["6.6.6.6, 7.7.7.7"]) == ("6.6.6.6", 0)
    assert Forwarded(["*"]).client(None, ["nonsense"]) is None


def test_everybody_takes_the_leftmost_whatever_stands_beside_it() -> None:
    assert Forwarded(["10.0.0.1", "*"]).client(("9.9.9.9", 5), ["6.6.6.6, 7.7.7.7", "8.8.8.8"]) == ("6.6.6.6", 0)


def test_the_walk_is_bounded() -> None:
    values = [",".join(f"10.0.{number // 256}.{number % 256}" for number in range(10_000))]
    last = ".".join(map(str, divmod(10_000 - MAX_PROXIES, 256)))
    assert Forwarded(PROXIES).client(PEER, values) == (f"10.0.{last}", 0)


ADDRESSES = st.ip_addresses().map(str)
ENTRIES = st.one_of(st.text(st.characters()), ADDRESSES, st.from_regex(r"[0-9a-f:.\[\], %]{0,20}", fullmatch=True))


@given(st.lists(ENTRIES.map(lambda text: text.replace("\n", "")), min_size=1, max_size=5), ADDRESSES)
def test_nothing_that_a_client_sends_is_believed_over_what_the_proxy_saw(hostile: list[str], seen: str) -> None:
    forwarded = Forwarded(["127.0.0.1"])
    expected = ipaddress.ip_address(seen)
    mapped = getattr(expected, "ipv4_mapped", None)
    if str(mapped or expected) == "127.0.0.1":
        return
    assert forwarded.client(PEER, [*hostile, seen]) == (str(mapped or expected), 0)
    assert forwarded.client(PEER, [", ".join([*hostile, seen])]) == (str(mapped or expected), 0)


@given(st.lists(ENTRIES, min_size=1, max_size=5), st.sampled_from([PROXIES, ("*",), ()]))
def test_whatever_comes_the_client_is_the_peer_or_an_address(values: list[str], allow: tuple[str, ...]) -> None:
    client = Forwarded(allow).client(PEER, values)
    assert client is not None
    host, port = client
    assert str(ipaddress.ip_address(host)) == host
    assert 0 <= port <= 65535
