"""Who the client is where a proxy stands in front and says so in ``X-Forwarded-For``."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from wscluster.handshake_options import EVERYBODY
from wscluster.networks import Networks

HEADER = "X-Forwarded-For"
MAX_PROXIES = 64
"""Entries of the header that are looked at, from the right."""

Client = tuple[str, int]


class Forwarded:
    """Finds the client behind proxies that are believed.

    Each proxy adds its own peer at the right end of the header. So it is read from the right, past the proxies that are
    believed, to the first address that is none of them; what stands further left is what that client claims. With ``*``
    it is the leftmost address. An entry that is no address ends the walk at the last one that is.

    Args:
        allow: Addresses and networks of proxies; ``*`` believes everybody, a peer on a Unix socket too.

    Raises:
        ValueError: One of ``allow`` is no network.
    """

    def __init__(self, allow: Sequence[str]) -> None:
        self._everybody = EVERYBODY in allow
        self._proxies = Networks(text for text in allow if text != EVERYBODY)

    def client(self, peer: Client | None, values: Sequence[str]) -> Client | None:
        """Return host and port of the client of ``peer``; port 0 where the proxy does not say it.

        Args:
            peer: Who is connected to us; None on a Unix socket.
            values: Values of the header ``X-Forwarded-For``, in their order.
        """
        if self._everybody:
            return _parse_entry(values[0].partition(",")[0]) or peer
        if peer is None or peer[0] not in self._proxies:
            return peer
        client = peer
        for entry in reversed(",".join(values).rsplit(",", MAX_PROXIES)[-MAX_PROXIES:]):
            found = _parse_entry(entry)
            if found is None:
                break
            client = found
            if found[0] not in self._proxies:
                break
        return client


def _parse_entry(text: str) -> Client | None:
    """Return the address and the port of ``1.2.3.4``, ``1.2.3.4:5``, ``::1`` or ``[::1]:5``, without spaces around."""
    text = text.strip(" \t")
    host, port = text, ""
    if text.startswith("["):
        host, closing, port = text[1:].partition("]")
        if not closing or (port and not port.startswith(":")):
            return None
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        port = ":" + port
    if port and not _is_port(port[1:]):
        return None
    if "%" in host:  # a zone means something only to the machine that wrote it
        return None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address), int(port[1:]) if port else 0


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535
