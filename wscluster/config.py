"""The configuration: frozen dataclasses grouped by concern.

The flags, the environment variables and their help are derived from these fields, so that each value has one home.
`resolve` reads what a person gave, `problems` says everything that is wrong with it at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


def option(
    default: Any,
    help: str,  # noqa: A002
    *,
    metavar: str = "",
    choices: tuple[str, ...] = (),
    env: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    duration: bool = False,
) -> Any:
    """Declare one field that a person may set.

    ``env`` names variables that are read beside ``WSCLUSTER_<NAME>``, after it. ``low`` and ``high`` are the least and
    the greatest value, ``above`` a bound that is itself excluded. ``duration`` accepts ``1h30m`` beside seconds.
    """
    metadata = {
        "help": help, "metavar": metavar, "choices": choices, "env": env,
        "low": low, "high": high, "above": above, "duration": duration,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the primary accepts."""

    host: str = option("127.0.0.1", "Address to listen on.", metavar="HOST")
    port: int = option(8000, "Port to listen on; 0 lets the kernel choose.", env=("PORT",), low=0, high=65535)
    backlog: int = option(2048, "Connections that the kernel queues until they are accepted.", low=1)


@dataclass(frozen=True, slots=True)
class Fleet:
    """How many workers there are, and when one is given up."""

    workers: int | None = option(
        None, "Number of workers; auto counts the CPUs that this process may use.", metavar="N|auto",
        env=("WEB_CONCURRENCY",), low=1, high=1024,
    )  # fmt: skip
    graceful_timeout: float = option(
        30.0, "Seconds that open connections get to end at a stop.", metavar="SECONDS", low=0, duration=True
    )
    timeout_worker_healthcheck: float = option(
        30.0, "Seconds without a beat of its event loop after which a worker is killed.",
        metavar="SECONDS", above=0, duration=True,
    )  # fmt: skip
    worker_startup_timeout: float = option(
        60.0, "Seconds that a worker gets to become ready.", metavar="SECONDS", above=0, duration=True
    )


@dataclass(frozen=True, slots=True)
class Placement:
    """Which worker gets a connection."""

    sticky: str = option("ip", "What keeps a client on one worker.", choices=("ip", "none"))
    balance: str | None = option(
        None, "How connections are spread with --sticky none.  [default: least-connections]",
        choices=("least-connections", "round-robin", "random"),
    )  # fmt: skip
    slot_wait: float = option(
        2.0, "Seconds that connections wait for a slot without a worker.", metavar="SECONDS", low=0, duration=True
    )


@dataclass(frozen=True, slots=True)
class Bus:
    """How rooms reach the other workers."""

    redis_url: str | None = option(
        None, "Redis or Valkey to use as the bus; without it a private one.", metavar="URL", env=("REDIS_URL",)
    )
    redis_prefix: str = option("wscluster", "Begins the name of every key and channel.", metavar="PREFIX")
    bus_timeout: float = option(
        5.0, "Seconds after which a publish or join fails.", metavar="SECONDS", above=0, duration=True
    )
    room_log: int = option(100, "Messages kept for each room; 0 keeps none.", low=0)
    room_log_ttl: float = option(
        60.0, "Seconds that a room's log outlives its last message.", metavar="SECONDS", above=0, duration=True
    )


@dataclass(frozen=True, slots=True)
class WebSocket:
    """The protocol, as `websockets` names it. None is the default of the kind of target."""

    ws_max_size: int = option(1048576, "Largest incoming message in bytes.", metavar="BYTES", low=1)
    ws_max_queue: int = option(16, "Incoming messages that wait for the handler before reading pauses.", low=1)
    ws_ping_interval: float = option(
        20.0, "Seconds between keepalive pings; 0 sends none.", metavar="SECONDS", low=0, duration=True
    )
    ws_ping_timeout: float = option(
        20.0, "Seconds that a pong may take; 0 waits for ever.", metavar="SECONDS", low=0, duration=True
    )
    ws_open_timeout: float = option(
        10.0, "Seconds that the opening handshake may take.", metavar="SECONDS", above=0, duration=True
    )
    ws_close_timeout: float = option(
        10.0, "Seconds that the closing handshake may take.", metavar="SECONDS", above=0, duration=True
    )
    ws_per_message_deflate: bool = option(True, "Offer compression.", metavar="true|false")
    max_send_queue: int = option(
        1048576, "Unsent bytes after which a room's slow member is closed.", metavar="BYTES", low=1
    )


@dataclass(frozen=True, slots=True)
class Operate:
    """How a person or a program watches and steers the cluster."""

    log_level: str = option(
        "info", "Least level that is logged.", choices=("debug", "info", "warning", "error", "critical")
    )
    ready_fd: int | None = option(None, "File descriptor that gets one JSON object a line for each event.", low=0)
    control_socket: str | None = option(
        None, "Path of the control socket.  [default: PID.sock in a private folder]", metavar="PATH"
    )
    app_dir: str = option(".", "Folder from which the target is imported.", metavar="DIR")


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that `wscluster serve` was told."""

    target: str
    listen: Listen = field(default_factory=Listen)
    fleet: Fleet = field(default_factory=Fleet)
    placement: Placement = field(default_factory=Placement)
    bus: Bus = field(default_factory=Bus)
    websocket: WebSocket = field(default_factory=WebSocket)
    operate: Operate = field(default_factory=Operate)


GROUPS: dict[str, type[Any]] = {
    "listen": Listen,
    "fleet": Fleet,
    "placement": Placement,
    "bus": Bus,
    "websocket": WebSocket,
    "operate": Operate,
}


def to_json(config: Config) -> str:
    """Return ``config`` as JSON text, for `from_json`."""
    return json.dumps(asdict(config), separators=(",", ":"))


def from_json(text: str) -> Config:
    """Return the configuration that `to_json` wrote."""
    values: Mapping[str, Any] = json.loads(text)
    groups = {name: group(**values[name]) for name, group in GROUPS.items()}
    return Config(target=values["target"], **groups)


def option_fields() -> dict[str, tuple[str, Any]]:
    """Return, for each option's name, the name of its group and its dataclass field."""
    return {item.name: (group, item) for group, kind in GROUPS.items() for item in fields(kind)}
