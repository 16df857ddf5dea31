"""Which peers a list of networks means."""

import pytest

from wscluster.config import ConfigError
from wscluster.networks import Networks, parse_network
from wscluster.sources import Sources, flag_values, resolve


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("127.0.0.1", True),
        ("127.255.255.255", True),
        ("128.0.0.1", False),
        ("::ffff:127.0.0.1", True),
        ("::ffff:128.0.0.1", False),
        ("::1", True),
        ("::2", False),
        ("10.0.0.7", True),
        ("10.0.0.8", False),
        ("fe80::1%eth0", True),
        ("2001:db8::1", False),
        ("", False),
        ("localhost", False),
        ("127.0.0.1\0", False),
    ],
)
def test_a_host_is_in_a_network_or_not(host: str, inside: bool) -> None:
    assert (host in Networks(["127.0.0.0/8", "::1/128", "10.0.0.7", "fe80::/10"])) is inside


def test_nobody_is_in_no_network() -> None:
    assert "127.0.0.1" not in Networks([])


@pytest.mark.parametrize("text", ["", "*", "localhost", "10.0.0.0/33", "10.0.0", "::1/129", "10.0.0.0/8/8"])
def test_what_is_no_network_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"a network such as 10\.0\.0\.0/8"):
        parse_network(text)


def test_bits_beyond_the_prefix_are_refused_with_what_was_meant() -> None:
    with pytest.raises(ValueError, match=r"it has bits beyond its prefix; 10\.0\.0\.0/8 is the network"):
        parse_network("10.0.0.1/8")


def test_every_bad_network_of_the_balancers_is_a_fault_of_the_configuration() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(Sources("handlers:chat", flag_values({"proxy_allow_from": "10.0.0.0/8, nowhere, 10.0.0.1/8"})))
    first, second = caught.value.problems
    assert first.startswith("--proxy-allow-from 'nowhere': a network")
    assert second.startswith("--proxy-allow-from '10.0.0.1/8': it has bits")
