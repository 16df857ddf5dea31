"""The configuration: frozen dataclasses grouped by concern.

The flags, the environment variables and their help are derived from these fields, so that each value has one home.
`resolve` reads what a person gave and says everything that is wrong with it at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any
from urllib.parse import unquote_plus, urlsplit


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
    """The protocol, as `websockets` names it."""

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


class ConfigError(ValueError):
    """What a person gave makes no sense; ``problems`` has one line for each fault."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def flag_of(name: str) -> str:
    """Return the flag of the field ``name``: ``--slot-wait`` for ``slot_wait``."""
    return "--" + name.replace("_", "-")


def resolve(target: str, flags: Mapping[str, str], environment: Mapping[str, str]) -> Config:
    """Return the configuration that a person means.

    A flag comes before ``WSCLUSTER_<NAME>``, that before the variables that others read too (``REDIS_URL``), and those
    before the default. An empty variable is as good as none.

    Args:
        target: ``module:attribute``.
        flags: Text of each flag that was given, by the name of its field.

    Raises:
        ConfigError: Something is wrong; it lists every fault.
    """
    values: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
    problems = _check_target(target)
    for name, (group, item) in option_fields().items():
        found = _find(name, item.metadata["env"], flags, environment)
        if found is None:
            continue
        source, text = found
        try:
            values[group][name] = parse_value(item, text)
        except ValueError as exc:
            problems.append(f"{source} {text!r}: {exc}")
    if problems:
        raise ConfigError(problems)
    config = Config(target=target, **{name: kind(**values[name]) for name, kind in GROUPS.items()})
    problems = _contradictions(config)
    if problems:
        raise ConfigError(problems)
    return config


def _find(
    name: str, others: tuple[str, ...], flags: Mapping[str, str], environment: Mapping[str, str]
) -> tuple[str, str] | None:
    if name in flags:
        return flag_of(name), flags[name]
    for variable in (f"WSCLUSTER_{name.upper()}", *others):
        if environment.get(variable):
            return variable, environment[variable]
    return None


def _check_target(target: str) -> list[str]:
    module, colon, attribute = target.partition(":")
    names = [*module.split("."), *attribute.split(".")]
    if not colon or not all(name.isidentifier() for name in names):
        return [f"target {target!r}: module:attribute is wanted, such as handlers:chat"]
    return []


def _contradictions(config: Config) -> list[str]:
    problems = []
    if config.placement.balance is not None and config.placement.sticky != "none":
        problems.append(f"--balance {config.placement.balance} needs --sticky none")
    prefix = config.bus.redis_prefix
    if not prefix.isprintable() or not 1 <= len(prefix.encode()) <= 64 or set("{}") & set(prefix):
        problems.append(f"--redis-prefix {prefix!r}: 1 to 64 bytes without braces and control characters are wanted")
    return problems


def parse_value(item: Any, text: str) -> Any:
    """Return the value of the dataclass field ``item`` that ``text`` means.

    Raises:
        ValueError: It means none; the message says what is wanted.
    """
    kind = str(item.type).removesuffix(" | None")
    facts = item.metadata
    if facts["choices"] and text not in facts["choices"]:
        raise ValueError(f"one of {', '.join(facts['choices'])} is wanted")
    if kind == "str":
        return text
    if kind == "bool":
        return _parse_bool(text)
    if item.name == "workers" and text == "auto":
        return None
    value = _parse_int(text) if kind == "int" else _parse_duration(text) if facts["duration"] else None
    low, high, above = facts["low"], facts["high"], facts["above"]
    if (
        value is None
        or (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    ):
        raise ValueError(f"{_describe_range(kind, low, high, above)} is wanted" + _or_auto(item.name))
    return value


def _or_auto(name: str) -> str:
    return ", or auto" if name == "workers" else ""


def _describe_range(kind: str, low: float | None, high: float | None, above: float | None) -> str:
    what = "a whole number" if kind == "int" else "a number of seconds or a duration like 1h30m"
    if above is not None:
        return f"{what} above {above:g}"
    if high is not None:
        return f"{what} from {low:g} to {high:g}"
    return f"{what} of {low:g} or more" if low is not None else what


def _parse_bool(text: str) -> bool:
    match text.lower():
        case "true" | "yes" | "on" | "1":
            return True
        case "false" | "no" | "off" | "0":
            return False
    raise ValueError("true or false is wanted")


def _parse_int(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else None


_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)


def _parse_duration(text: str) -> float | None:
    """Return seconds: of a number (``2.5``) or of days, hours, minutes and seconds (``1h30m``)."""
    if re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)", text, re.ASCII) and len(text) <= 18:
        return float(text)
    match = _DURATION.fullmatch(text)
    if not text or match is None or len(text) > 32:
        return None
    return sum(float(part) * scale for part, scale in zip(match.groups(), (86400, 3600, 60, 1), strict=True) if part)


_QUERY_VALUE = re.compile(r"([?&]([^=&]*)=)(.*?)(?=&[^=&]+=|$)", re.DOTALL)


def hide_password(url: str) -> str:
    """Return ``url`` with ``***`` in place of a password, wherever it stands.

    It hides too much rather than too little: a URL that nobody can read may hold a password that was not escaped.
    """
    scheme, separator, rest = re.sub("[\t\r\n]", "", url).partition("://")
    if not separator:
        scheme, rest = "", scheme
    user, at, place = rest.rpartition("@")
    name, colon, password = user.partition(":")
    if not (at and colon and password):
        return scheme + separator + _hide_in_query(rest)
    # An @ may also be one of a password in the query, which then goes on behind it.
    place = "" if _hide_in_query(user) != user else at + _hide_in_query(place)
    return f"{scheme}{separator}{_hide_in_query(name)}:***{place}"


def _hide_in_query(text: str) -> str:
    def hide(match: re.Match[str]) -> str:
        return match[1] + ("***" if "pass" in unquote_plus(match[2]).lower() else match[3])

    return _QUERY_VALUE.sub(hide, text)


def find_url_fault(url: str) -> str | None:
    """Return what is wrong with the form of a server's URL, in words that hold nothing of it; None where it is well."""
    fault = "it cannot be read; is the port a number up to 65535, are a password's special characters written as %XX?"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return fault
    beyond = url.partition("://")[2].removeprefix(parts.netloc)
    if parts.scheme != "unix" and "@" in beyond and "=" not in beyond.partition("@")[0]:
        return fault
    return None
