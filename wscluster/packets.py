"""The wire format between the primary and one worker: one packet is one datagram of an ``AF_UNIX SOCK_SEQPACKET`` link.

The first byte names the kind. `Offer`, `Adopted`, `Refused` and `Ended` travel once for every few connections and are
packed by hand; the others are rare and travel as JSON. Sockets (SCM_RIGHTS) go beside an `Offer` and a `Returned`, one
for each connection, in the same order. Nothing here does I/O.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import asdict, dataclass, field, fields
from typing import Any

MAX_PACKET_BYTES = 200_000
"""What an encoded packet may measure: the kernel refuses more than 212,951 bytes (EMSGSIZE)."""

MAX_TRACEBACK_BYTES = 64 * 1024
MAX_REASON_CHARS = 4096
_CONTROLS = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f]")


@dataclass(frozen=True, slots=True)
class Offered:
    """One connection of an `Offer`: ``number`` is the primary's name for it, host and port are the true client's.

    ``host`` is empty and ``port`` 0 for a client on a Unix socket. ``listener`` is the number of the listener that
    has accepted it, as in `BoundAt`; it counts from 0.
    """

    number: int
    host: str
    port: int
    listener: int = 0

    @property
    def client(self) -> tuple[str, int] | None:
        """Host and port; None on a Unix socket."""
        return (self.host, self.port) if self.host else None


@dataclass(frozen=True, slots=True)
class Start:
    """Primary to worker, the first packet: who the worker is, and the configuration (`config.to_json`).

    ``colour`` says that the log ends on a terminal that shows colours.
    """

    slot: int
    worker: int
    phase: int
    config: str
    colour: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """Primary to worker: these connections are yours if you take them; their sockets come with the packet."""

    connections: tuple[Offered, ...]


@dataclass(frozen=True, slots=True)
class Drain:
    """Primary to worker: take nothing new, close what is open with ``code``, exit within ``timeout`` seconds.

    ``rate`` is how many connections a second are closed, 0 for all at once.
    """

    code: int
    reason: str
    timeout: float
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Poll:
    """Primary to worker: send a `Beat` now, with this ``serial``."""

    serial: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Primary to worker: answer ``question`` with an `Answer` of the same ``serial``.

    ``connections`` (with ``begin``, ``count``, ``room``, ``host``) is answered by a page of them, ``kick`` (with
    ``id``) by whether there was such a connection.
    """

    serial: int
    question: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """Worker to primary: what was asked for with `Ask`; JSON."""

    serial: int
    value: Any


@dataclass(frozen=True, slots=True)
class BusAt:
    """Primary to worker: where the private bus is. ``url`` is None where there is none, and ``reason`` says why."""

    url: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Ready:
    """Worker to primary: the target is imported, its lifespan has begun, connections are welcome."""


@dataclass(frozen=True, slots=True)
class BootFailed:
    """Worker to primary, its last packet: it cannot become ready.

    ``exit_code`` is 4 where the target is at fault (`errors.ExitCode.TARGET`), else 3. ``reason`` is one line,
    ``traceback`` the user's own traceback or empty. ``hopeless`` says that the next worker would fare no better.
    """

    exit_code: int
    reason: str
    traceback: str
    hopeless: bool = False


@dataclass(frozen=True, slots=True)
class Adopted:
    """Worker to primary: these are mine; written before the first byte of any of them is read."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """Worker to primary: place these elsewhere; no byte of them was read."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Returned:
    """Worker to primary: these, which it had adopted, are nobody's again; no byte of them was read.

    Their sockets come with the packet. ``number`` is 0: the primary gives each a new one.
    """

    connections: tuple[Offered, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """Worker to primary: these connections, which it had adopted, are over; sent where open connections are limited."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Bind:
    """Worker to primary: the program wants to listen there. `BoundAt` with the same ``serial`` answers.

    ``path`` names a Unix socket; it is empty for TCP, where ``host`` is empty for every interface, ``port`` 0 lets the
    kernel choose, and ``family`` is an address family or 0 for any. The ``nth`` request of a worker for the same
    address (counted from 0) is the same listener in every worker.
    """

    serial: int
    host: str
    port: int
    path: str
    family: int
    backlog: int
    nth: int


@dataclass(frozen=True, slots=True)
class BoundAt:
    """Primary to worker, the answer to a `Bind`: the primary accepts there.

    Attributes:
        listeners: Number of each listener, one or several (a host may have addresses of both families).
        addresses: What ``getsockname()`` says of each.
        known: Numbers of all listeners that programs of this cluster have asked for.
        known_addresses: What ``getsockname()`` says of each of those.
        errno: Why it cannot be bound, else 0; ``reason`` is then one line for a person. Below 0 it is one of
            `socket.gaierror`.
    """

    serial: int
    listeners: list[int]
    addresses: list[Any]
    known: list[int]
    errno: int = 0
    reason: str = ""
    known_addresses: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class WantBus:
    """Worker to primary: a room was used for the first time, start the private bus and say where it is."""


@dataclass(frozen=True, slots=True)
class Stats:
    """A worker's figures. Counters count since the worker began; None is what this kind of target cannot know."""

    connections: int = 0
    adopted: int = 0
    messages_in: int | None = 0
    messages_out: int | None = 0
    rooms: int | None = 0
    loop_lag_seconds: float = 0.0
    cpu_seconds: float = 0.0
    rss_bytes: int = 0
    published: int = 0
    delivered: int = 0
    gaps: int = 0
    ignored: int = 0
    slow_closed: int = 0
    bus_connected: bool | None = None
    bus_losses: int = 0
    bus_probe_seconds: float | None = None
    """What the last PING took that the bus has answered; none is sent while messages come."""
    sizes_in: list[int] = field(default_factory=list)
    """How many messages have a size of so many bits: at 3 those of 4 to 7 bytes. Of the wire's, not of rooms'."""
    sizes_out: list[int] = field(default_factory=list)
    bytes_in: int = 0
    bytes_out: int = 0
    application: list[Any] = field(default_factory=list)
    """What `metrics.Registry.snapshot` says."""


@dataclass(frozen=True, slots=True)
class Beat:
    """Worker to primary: the event loop turns. ``serial`` is that of the `Poll` it answers, else 0."""

    serial: int = 0
    stats: Stats = field(default_factory=Stats)


Packet = (
    Start
    | Offer
    | Drain
    | Poll
    | BusAt
    | Ready
    | BootFailed
    | Adopted
    | Refused
    | WantBus
    | Beat
    | Ended
    | Bind
    | BoundAt
    | Returned
    | Ask
    | Answer
)

_KINDS: tuple[type[Any], ...] = (
    Start, Offer, Drain, Poll, BusAt, Ready, BootFailed, Adopted, Refused, WantBus, Beat, Ended, Bind, BoundAt,
    Returned, Ask, Answer,
)  # fmt: skip
_KIND_OF = {kind: number for number, kind in enumerate(_KINDS, start=1)}
_STATS = tuple(one.name for one in fields(Stats))
_OFFERED = struct.Struct("!QHHB")


PROTOCOL = 1
"""Of a link. It grows with every change after which a primary and a worker of the version before do not fit."""


class InvalidPacket(ValueError):
    """Bytes on a link that are no packet: the peer is another version, or broken."""


def encode(packet: Packet) -> bytes:
    """Return the bytes of ``packet``.

    Raises:
        InvalidPacket: It would be longer than `MAX_PACKET_BYTES`.
    """
    head = bytes((_KIND_OF[type(packet)],))
    match packet:
        case Offer(connections) | Returned(connections):
            body = b"".join(map(_encode_offered, connections))
        case Adopted(numbers) | Refused(numbers) | Ended(numbers):
            body = struct.pack(f"!{len(numbers)}Q", *numbers)
        case BootFailed(exit_code, reason, traceback, hopeless):
            # JSON makes six bytes of a control character.
            kept = _CONTROLS.sub("?", traceback).encode(errors="replace")[-MAX_TRACEBACK_BYTES:]
            body = _json(
                asdict(BootFailed(exit_code, reason[:MAX_REASON_CHARS], kept.decode(errors="ignore"), hopeless))
            )
        case Beat(serial, stats):
            # asdict() would copy every number of the application's.
            body = _json({"serial": serial, "stats": {name: getattr(stats, name) for name in _STATS}})
        case _:
            body = _json(asdict(packet))
    if len(body) >= MAX_PACKET_BYTES:
        raise InvalidPacket(f"{type(packet).__name__} of {len(body)} bytes: more than {MAX_PACKET_BYTES}")
    return head + body


def decode(data: bytes) -> Packet:
    """Return the packet that ``data`` holds.

    Raises:
        InvalidPacket: The bytes are none.
    """
    try:
        kind = _KINDS[data[0] - 1] if data[0] else None
        if kind is Offer or kind is Returned:
            return kind(_decode_offered(memoryview(data)[1:]))  # type: ignore[no-any-return]
        if kind is Adopted or kind is Refused or kind is Ended:
            return kind(struct.unpack(f"!{(len(data) - 1) // 8}Q", data[1:]))  # type: ignore[no-any-return]
        if kind is Beat:
            body = json.loads(data[1:])
            return Beat(body["serial"], Stats(**body["stats"]))
        if kind is not None:
            return kind(**json.loads(data[1:]))  # type: ignore[no-any-return]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, struct.error) as exc:
        raise InvalidPacket(f"{len(data)} bytes that are no packet: {exc}") from exc
    raise InvalidPacket(f"unknown kind of packet: {data[0]}")


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass")


def _encode_offered(offered: Offered) -> bytes:
    host = offered.host.encode()
    return _OFFERED.pack(offered.number, offered.port, offered.listener, len(host)) + host


def _decode_offered(body: memoryview) -> tuple[Offered, ...]:
    found, at = [], 0
    while at < len(body):
        number, port, listener, length = _OFFERED.unpack_from(body, at)
        at += _OFFERED.size
        host = bytes(body[at : at + length])
        if len(host) != length:
            raise InvalidPacket("an Offer ends in the middle of an address")
        found.append(Offered(number, host.decode(), port, listener))
        at += length
    return tuple(found)
