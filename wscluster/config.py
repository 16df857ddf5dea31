"""The configuration: frozen dataclasses grouped by concern.

The flags, the environment variables, the keys of the file and their help are derived from these fields, so that each
value has one home.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from wscluster.options import option

MAX_INT = 2**31 - 1
"""The greatest `int` of C, which the kernel takes."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the primary accepts."""

    host: str = option("127.0.0.1", "Address to listen on.", metavar="HOST", only="serve", fixed=True)
    port: int = option(
        8000, "Port to listen on; 0 lets the kernel choose.", env=("PORT",), low=0, high=65535, only="serve", fixed=True
    )
    bind: tuple[str, ...] = option(
        (), "HOST:PORT, [V6]:PORT, unix:PATH or fd:N to listen on, instead of --host and --port; repeatable.",
        metavar="ADDRESS", only="serve", fixed=True
    )  # fmt: skip
    uds: str | None = option(
        None,
        "Path of a Unix socket to listen on, instead of --host and --port.",
        metavar="PATH",
        only="serve",
        fixed=True,
    )
    fd: int | None = option(
        None, "Number of an open, bound socket to listen on, instead of --host and --port.", low=0, high=MAX_INT,
        only="serve", fixed=True
    )  # fmt: skip
    backlog: int = option(
        2048, "Connections that the kernel queues until they are accepted.", low=1, high=MAX_INT, fixed=True
    )
    proxy_protocol: str = option(
        "off", "PROXY protocol that a balancer in front speaks.", choices=("off", "v1", "v2", "auto"), fixed=True
    )
    proxy_allow_from: tuple[str, ...] = option(
        ("127.0.0.0/8", "::1/128"), "Networks whose PROXY headers are believed.", metavar="CIDR,...", fixed=True
    )  # fmt: skip
    limit_connections: int | None = option(None, "Connections that may be open; one more gets 503.", low=1, fixed=True)
    limit_connections_per_ip: int | None = option(
        None, "Connections of one address that may be open; one more gets 503.", low=1, fixed=True
    )
    limit_connect_rate_per_ip: int | None = option(
        None, "Connections that one address may begin in a second; one more gets 503.", low=1, fixed=True
    )


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
    drain_rate: int = option(0, "Connections that a drain closes in a second; 0 for all at once.", metavar="N", low=0)
    timeout_worker_healthcheck: float = option(
        30.0, "Seconds without a beat of its event loop after which a worker is killed.",
        metavar="SECONDS", above=0, duration=True,
    )  # fmt: skip
    worker_startup_timeout: float = option(
        60.0, "Seconds that a worker gets to become ready.", metavar="SECONDS", above=0, duration=True
    )
    workers_lifetime: float | None = option(
        None,
        "Seconds after which a worker is replaced, up to a tenth later.",
        metavar="SECONDS",
        above=0,
        duration=True,
    )
    workers_max_rss: int | None = option(
        None,
        "MiB of memory beyond which a worker is replaced, up to a tenth earlier.",
        metavar="MIB",
        low=1,
        high=1 << 24,
    )


@dataclass(frozen=True, slots=True)
class Placement:
    """Which worker gets a connection."""

    sticky: str = option("ip", "What keeps a client on one worker.", choices=("ip", "none"), fixed=True)
    balance: str | None = option(
        None, "How connections are spread with --sticky none.  [default: least-connections]",
        choices=("least-connections", "round-robin", "random"), fixed=True
    )  # fmt: skip
    slot_wait: float = option(
        2.0, "Seconds that connections wait for a slot without a worker.", metavar="SECONDS", low=0, duration=True
    )


@dataclass(frozen=True, slots=True)
class Bus:
    """How rooms reach the other workers."""

    redis_url: str | None = option(
        None,
        "Redis or Valkey to use as the bus; without it a private one.",
        metavar="URL",
        env=("REDIS_URL",),
        fixed=True,
    )
    redis_prefix: str = option("wscluster", "Begins the name of every key and channel.", metavar="PREFIX", fixed=True)
    bus_timeout: float = option(
        5.0, "Seconds after which a publish or join fails.", metavar="SECONDS", above=0, duration=True
    )
    room_log: int = option(100, "Messages kept for each room; 0 keeps none.", low=0, high=MAX_INT)
    room_log_ttl: float = option(
        60.0, "Seconds that a room's log outlives its last message.", metavar="SECONDS", above=0, duration=True
    )


@dataclass(frozen=True, slots=True)
class Tls:
    """wss:// and https://, ended in the workers."""

    ssl_certfile: str | None = option(None, "Certificate chain in PEM form: clients speak TLS.", metavar="FILE")
    ssl_keyfile: str | None = option(
        None, "Private key in PEM form; without it the certificate's file has it.", metavar="FILE"
    )
    ssl_keyfile_password: str | None = option(None, "Password of the private key.", metavar="TEXT", secret=True)
    ssl_ca_certs: str | None = option(
        None, "Certificates in PEM form; clients must show one that they have signed.", metavar="FILE"
    )


@dataclass(frozen=True, slots=True)
class Handshake:
    """What is asked of a client before its connection is upgraded."""

    process_request: str | None = option(
        None, "Function that sees each request before the upgrade.", metavar="MODULE:FUNCTION"
    )
    process_response: str | None = option(
        None, "Function that sees each response before it is sent.", metavar="MODULE:FUNCTION"
    )
    select_subprotocol: str | None = option(None, "Function that chooses the subprotocol.", metavar="MODULE:FUNCTION")
    basic_auth: str | None = option(
        None, "Function of user name and password that says who may connect (HTTP Basic).", metavar="MODULE:FUNCTION"
    )
    subprotocols: tuple[str, ...] = option((), "Subprotocols that are spoken, best first.", metavar="NAME,...")
    allowed_origins: tuple[str, ...] = option(
        (),
        "Origins whose pages may connect, and null, and none; without it every one may.",
        metavar="ORIGIN,...",
    )
    proxy_headers: bool = option(True, "Believe X-Forwarded-For of the peers in --forwarded-allow-ips.", switch=True)
    forwarded_allow_ips: tuple[str, ...] = option(
        ("127.0.0.1", "::1"), "Addresses and networks whose forwarding headers are believed; * believes all.",
        metavar="CIDR,...", env=("FORWARDED_ALLOW_IPS",),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class WebSocket:
    """The protocol, as `websockets` names it."""

    ws_max_size: int | None = option(
        None, "Largest incoming message in bytes.", metavar="BYTES", low=1,
        kinds={"handlers": 1048576, "ASGI": 16777216},
    )  # fmt: skip
    ws_max_queue: int | None = option(
        None, "Incoming messages that wait for the handler before reading pauses.", low=1,
        kinds={"handlers": 16, "ASGI": 32},
    )  # fmt: skip
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
    ws_message_timeout: float = option(
        20.0, "Seconds in which an unfinished fragmented message must grow by 1 KiB; 0 waits for ever.",
        metavar="SECONDS", low=0, duration=True,
    )  # fmt: skip
    ws_per_message_deflate: bool = option(True, "Offer compression.", metavar="true|false")
    limit_max_messages: int | None = option(
        None, "Incoming messages after which a worker is replaced, up to a tenth later.", low=1
    )
    max_send_queue: int = option(
        1048576, "Unsent bytes after which a room's slow member is closed.", metavar="BYTES", low=1
    )


@dataclass(frozen=True, slots=True)
class Asgi:
    """What uvicorn is told, where the target is an ASGI app."""

    factory: bool = option(False, "The target is a function without arguments that returns the app.", switch=True)
    lifespan: str = option("auto", "Speak the lifespan protocol with the app.", choices=("auto", "on", "off"))
    root_path: str = option("", "Path below which a proxy has mounted the app.", metavar="PATH")
    timeout_keep_alive: float = option(
        5.0, "Seconds after which an idle HTTP connection is closed.", metavar="SECONDS", low=0, duration=True
    )
    limit_concurrency: int | None = option(
        None, "Connections and tasks of one worker; one more request gets 503.", low=1
    )
    header: tuple[str, ...] = option((), "Header of every response; repeatable.", metavar="NAME:VALUE", whole=True)
    server_header: bool = option(True, "Send the header Server.", switch=True)
    date_header: bool = option(True, "Send the header Date.", switch=True)


@dataclass(frozen=True, slots=True)
class Reload:
    """Reloading while somebody writes the program."""

    reload: bool = option(False, "Reload when a file changes.", switch=True, fixed=True)
    reload_dir: tuple[str, ...] = option(
        (), "Folder that is watched, instead of the current one and --app-dir; repeatable.", metavar="DIR", fixed=True
    )
    reload_include: tuple[str, ...] = option(
        (), "Pattern of files, or folder, that is watched beside *.py; repeatable.", metavar="GLOB", fixed=True
    )
    reload_exclude: tuple[str, ...] = option(
        (), "Pattern of files, or folder, that is not watched; repeatable.", metavar="GLOB", fixed=True
    )
    reload_delay: float = option(
        0.25, "Seconds in which changes of files are one.", metavar="SECONDS", low=0, duration=True, fixed=True
    )


@dataclass(frozen=True, slots=True)
class Operate:
    """How a person or a program watches and steers the cluster."""

    log_level: str = option(
        "info", "Least level that is logged.", choices=("debug", "info", "warning", "error", "critical")
    )
    log_format: str = option("text", "How a line of the log is written.", choices=("text", "json"), fixed=True)
    log_file: str | None = option(
        None, "File for the log and for what the workers print; USR1 opens it again.", metavar="PATH", fixed=True
    )
    access_log: bool | None = option(
        None, "Log a line for each request, or for each WebSocket and its end.", switch=True, only="serve",
        kinds={"handlers": False, "ASGI": True},
    )  # fmt: skip
    metrics: bool = option(
        False, "Serve /metrics, /healthz, /readyz and the dashboard on the metrics port.", switch=True, fixed=True
    )
    metrics_address: str = option("127.0.0.1", "Address of the metrics port.", metavar="HOST", fixed=True)
    metrics_port: int = option(9464, "The metrics port; 0 lets the kernel choose.", low=0, high=65535, fixed=True)
    on_event: str | None = option(
        None, "Function that is called with each lifecycle event, in a process of its own.", metavar="MODULE:FUNCTION",
        fixed=True,
    )  # fmt: skip
    ready_fd: int | None = option(
        None, "File descriptor that gets one JSON object a line for each event.", low=0, fixed=True
    )
    control_socket: str | None = option(
        None, "Path of the control socket.  [default: PID.sock in a private folder]", metavar="PATH", fixed=True
    )
    interface: str = option("auto", "What the target is.", choices=("auto", "handler", "asgi"), only="serve")
    app_dir: str = option(".", "Folder from which the target is imported.", metavar="DIR", only="serve")
    env_file: str | None = option(
        None, "File of KEY=VALUE lines that are set in the environment where it has no such variable.", metavar="FILE"
    )


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that `wscluster serve` or `wscluster run` was told.

    Attributes:
        target: ``module:attribute``; empty for a program.
        run: A program and its arguments, as they stand behind ``wscluster run``; empty for a target.
    """

    target: str
    run: tuple[str, ...] = ()
    listen: Listen = field(default_factory=Listen)
    fleet: Fleet = field(default_factory=Fleet)
    placement: Placement = field(default_factory=Placement)
    bus: Bus = field(default_factory=Bus)
    tls: Tls = field(default_factory=Tls)
    handshake: Handshake = field(default_factory=Handshake)
    websocket: WebSocket = field(default_factory=WebSocket)
    asgi: Asgi = field(default_factory=Asgi)
    reload: Reload = field(default_factory=Reload)
    operate: Operate = field(default_factory=Operate)


GROUPS: dict[str, type[Any]] = {
    "listen": Listen,
    "fleet": Fleet,
    "placement": Placement,
    "bus": Bus,
    "tls": Tls,
    "handshake": Handshake,
    "websocket": WebSocket,
    "asgi": Asgi,
    "reload": Reload,
    "operate": Operate,
}


SERVE_ONLY = frozenset({"tls", "handshake", "websocket", "asgi"})
"""Groups that a program does for itself."""


def knows(verb: str, name: str) -> bool:
    """Say whether ``verb`` (``serve``, ``run``) takes the field ``name``."""
    group, item = option_fields()[name]
    only = item.metadata["only"] or ("serve" if group in SERVE_ONLY else "")
    return only in ("", verb)


def value_for(kind: str, group: Any, name: str) -> Any:
    """Return the value of the field ``name`` of ``group`` where the target is of ``kind`` (``handlers``, ``ASGI``)."""
    value = getattr(group, name)
    if value is not None:
        return value
    return next(item for item in fields(group) if item.name == name).metadata["kinds"][kind]


def counts_open(listen: Listen) -> bool:
    """Say whether the primary must know of every connection when it ends."""
    return listen.limit_connections is not None or listen.limit_connections_per_ip is not None


def to_json(config: Config) -> str:
    """Return ``config`` as JSON text, for `from_json`."""
    return json.dumps(asdict(config), separators=(",", ":"))


def from_json(text: str) -> Config:
    """Return the configuration that `to_json` wrote."""
    values: Mapping[str, Any] = json.loads(text)
    groups = {
        name: group(**{key: _frozen(value) for key, value in values[name].items()}) for name, group in GROUPS.items()
    }
    return Config(target=values["target"], run=tuple(values["run"]), **groups)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def option_fields() -> dict[str, tuple[str, Any]]:
    """Return, for each option's name, the name of its group and its dataclass field."""
    return {item.name: (group, item) for group, kind in GROUPS.items() for item in fields(kind)}


class ConfigError(ValueError):
    """What a person gave makes no sense; ``problems`` has one line for each fault."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def flag_of(name: str) -> str:
    """Return the flag of the field ``name``: ``--slot-wait`` for ``slot_wait``."""
    return "--" + name.replace("_", "-")
