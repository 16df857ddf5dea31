"""What the options of the opening handshake may be."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from wscluster.networks import parse_network

if TYPE_CHECKING:
    from wscluster.config import Handshake

FUNCTIONS = ("process_request", "process_response", "select_subprotocol", "basic_auth")
"""Fields that name a function, which a decorator of the same name marks otherwise."""

NO_ORIGIN = "none"
"""In ``--allowed-origins``: a client that sends no ``Origin`` may connect."""
EVERYBODY = "*"
"""In ``--forwarded-allow-ips``: every peer is believed, one on a Unix socket too."""

_TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_ORIGIN = re.compile(r"[a-z][-+.a-z0-9]*://(?:[-.a-z0-9_]+|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443", "ws": ":80", "wss": ":443"}


def handshake_faults(handshake: Handshake, place: Callable[[str], str]) -> list[str]:
    """Return one line for each value that cannot be meant; ``place`` says where a field's value stands."""
    faults = []
    for name in FUNCTIONS:
        text = getattr(handshake, name)
        if text is not None and not is_path(text):
            faults.append(f"{place(name)} {text!r}: module:function is wanted")
    faults += [
        f"{place('subprotocols')} {name!r}: letters, digits and -!#$%&'*+.^_`|~ are wanted (RFC 6455, 4.1)"
        for name in handshake.subprotocols
        if not _TOKEN.fullmatch(name)
    ]
    faults += [
        f"{place('allowed_origins')} {origin!r}: scheme://host or scheme://host:port is wanted as browsers send "
        "it, in lower case, without a path and without the scheme's own port; or null, or none"
        for origin in handshake.allowed_origins
        if not _is_origin(origin)
    ]
    for text in handshake.forwarded_allow_ips:
        if text != EVERYBODY:
            try:
                parse_network(text)
            except ValueError as exc:
                faults.append(f"{place('forwarded_allow_ips')} {text!r}: {exc}")
    return faults


def is_path(text: str) -> bool:
    """Say whether ``text`` is ``module:attribute``."""
    module, colon, attribute = text.partition(":")
    return bool(colon) and all(name.isidentifier() for name in [*module.split("."), *attribute.split(".")])


def _is_origin(text: str) -> bool:
    """Say whether a browser may send ``text`` as its ``Origin`` (RFC 6454, 6.2): anything else would never match."""
    if text in ("null", NO_ORIGIN):
        return True
    scheme = text.partition("://")[0]
    own_port = _DEFAULT_PORTS.get(scheme)
    return _ORIGIN.fullmatch(text) is not None and not (own_port and text.endswith(own_port))
