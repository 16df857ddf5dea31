"""Networks that a person names: `10.0.0.0/8`, `2001:db8::/32` or one address; and whether a peer is in one of them."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_network(text: str) -> Network:
    """Return the network that ``text`` names; an address alone is a network of one.

    Raises:
        ValueError: It names none, or has bits set beyond its prefix; the message says what is wanted.
    """
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        try:
            meant = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError("a network such as 10.0.0.0/8 or 2001:db8::/32 is wanted") from None
        raise ValueError(f"it has bits beyond its prefix; {meant} is the network") from None


class Networks:
    """A set of networks; ``host in networks`` is answered for text as the kernel gives it.

    An IPv4 address mapped into IPv6 (``::ffff:10.0.0.7``, from a socket that takes both) is looked up as IPv4.

    Raises:
        ValueError: One of ``texts`` is no network.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._networks = [parse_network(text) for text in texts]
        self._known = functools.lru_cache(maxsize=4096)(self._look_up)

    def __contains__(self, host: str) -> bool:
        return self._known(host)

    def _look_up(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:  # empty: a Unix socket has no address
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)
