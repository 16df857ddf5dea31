"""Where a configuration comes from: flags before the environment, that before the file, that before the defaults.

Everything that is wrong is said at once, each fault with its flag, variable or line of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wscluster.addresses import Inherited, listen_addresses
from wscluster.asgi_options import asgi_faults
from wscluster.config import GROUPS, Config, ConfigError, flag_of, knows, option_fields
from wscluster.handshake_options import handshake_faults, is_path
from wscluster.networks import parse_network
from wscluster.options import hide_secrets, is_list, parse_value, take_value

STATE_VARIABLE = "_WSCLUSTER_STATE"
"""No value of a configuration: tells a process to go on for another primary, and the descriptor of what that has left.

``go:7`` has the configuration there too; ``try:7`` only reads it.
"""
MAX_SHOWN = 120
"""Characters of a wrong value that a fault shows."""


@dataclass(frozen=True, slots=True)
class Given:
    """One value that a person gave.

    Attributes:
        place: Where, as a fault begins: ``--port``, ``WSCLUSTER_PORT``, ``wscluster.toml:3: port``.
        origin: Where, in words: ``flag --port``, ``variable PORT``, ``file wscluster.toml:3``.
        value: The texts of a flag, the text of a variable, or a value of TOML or Python.
        texts: False for a value of TOML or Python.
        rank: 0 for flags and arguments, 1 for our variables, 2 for those that others read too, 3 for the file.
    """

    place: str
    origin: str
    value: Any
    texts: bool = True
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Sources:
    """All that a person gave, from the strongest source to the weakest.

    Attributes:
        target: ``module:attribute`` of the command line; None where the file may name it.
        run: A program and its arguments, instead of a target; what ``run`` does not know is then not looked at in
            environment and file, because it is meant for ``serve``.
        flags: By the name of the field; what `flag_values` or `argument_values` made.
        environment: The variables.
        file: By the name of the field; ``target`` is one too.
        variable_lines: For variables that come from a file of variables: ``.env:3``.
        problems: What was wrong with the files.
    """

    target: str | None = None
    flags: Mapping[str, Given] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    file: Mapping[str, Given] = field(default_factory=dict)
    variable_lines: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    run: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration, and for each of its values (``target`` too) that the verb knows where it came from."""

    config: Config
    origins: Mapping[str, str]


def flag_values(flags: Mapping[str, str | tuple[str, ...]]) -> dict[str, Given]:
    """Return what was given as flags, by the names of their fields: the texts of each flag, or its only one."""
    found = {}
    for name, texts in flags.items():
        if texts != ():
            values = (texts,) if isinstance(texts, str) else texts
            found[name] = Given(flag_of(name), f"flag {flag_of(name)}", values)
    return found


def argument_values(arguments: Mapping[str, Any]) -> dict[str, Given]:
    """Return what was given as arguments of a Python function; None is as good as nothing."""
    return {
        name: Given(name, f"argument {name}", value, texts=False)
        for name, value in arguments.items()
        if value is not None
    }


def resolve(sources: Sources) -> Resolved:
    """Return the configuration that a person means.

    A flag comes before ``WSCLUSTER_<NAME>``, that before the variables that others read too (``REDIS_URL``), those
    before the file, and that before the default. An empty variable is as good as none.

    Raises:
        ConfigError: Something is wrong; it lists every fault.
    """
    values: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
    places: dict[str, str] = {}
    origins: dict[str, str] = {}
    target, problems = _find_target(sources, origins) if not sources.run else ("", [])
    problems.extend(sources.problems)
    known = [name for name in option_fields() if knows("run" if sources.run else "serve", name)]
    found, contradiction = _choose_listeners(
        {name: given for name in known if (given := find_given(name, sources)) is not None}
    )
    for name, (group, item) in option_fields().items():
        given = found.get(name)
        places[name] = given.place if given is not None else flag_of(name)
        if name not in known:
            continue
        origins[name] = given.origin if given is not None else "default"
        if given is None:
            continue
        try:
            values[group][name] = _read(item, given)
        except ValueError as exc:
            problems.append(f"{given.place}{_shown(item, given)}: {exc}")
    problems += contradiction
    if problems:
        raise ConfigError(problems)
    config = Config(target=target, run=sources.run, **{name: kind(**values[name]) for name, kind in GROUPS.items()})
    problems = _contradictions(config, places.__getitem__)
    if problems:
        raise ConfigError(problems)
    return Resolved(config, origins)


def find_given(name: str, sources: Sources) -> Given | None:
    """Return what the strongest source that has it says of the field ``name``; None: nobody says anything."""
    if name in sources.flags:
        return sources.flags[name]
    for variable in (f"WSCLUSTER_{name.upper()}", *option_fields()[name][1].metadata["env"]):
        if text := sources.environment.get(variable):
            line = sources.variable_lines.get(variable)
            place, origin = (f"{line}: {variable}", f" of {line}") if line is not None else (variable, "")
            own = variable.startswith("WSCLUSTER_")
            return Given(place, f"variable {variable}{origin}", (text,), rank=1 if own else 2)
    return sources.file.get(name)


LISTENERS = (("bind",), ("uds",), ("fd",), ("host", "port"))
"""Ways to say where to listen: the strongest source that knows one decides, and it may know one only."""


def _choose_listeners(found: Mapping[str, Given]) -> tuple[Mapping[str, Given], list[str]]:
    """Return ``found`` without the ways to listen that a stronger source overrides, and the fault of two in one."""
    told = {name: given for name, given in found.items() if given.value not in ([], ())}
    ranks = {ways: min(told[name].rank for name in ways if name in told) for ways in LISTENERS if told.keys() & ways}
    strongest = [ways for ways, rank in ranks.items() if rank == min(ranks.values())]
    if len(strongest) > 1:
        given = [next(told[name].place for name in ways if name in told) for ways in strongest]
        return found, [f"{' and '.join(given)}: one of them says where to listen, not both"]
    overridden = {name for ways in ranks if ways not in strongest for name in ways}
    return {name: given for name, given in found.items() if name not in overridden}, []


def _read(item: Any, given: Given) -> Any:
    if not given.texts:
        return take_value(item, given.value)
    if is_list(item):
        return tuple(part for text in given.value for part in parse_value(item, text))
    if len(given.value) > 1:
        raise ValueError("it was given twice, and holds one value")
    return parse_value(item, given.value[0])


def _shown(item: Any, given: Given) -> str:
    if given.texts and len(given.value) > 1 and not is_list(item):
        return ""
    value = given.value[0] if given.texts and len(given.value) == 1 else given.value
    text = repr(hide_secrets(item, value))
    return f" {text}" if len(text) <= MAX_SHOWN else f" {text[:MAX_SHOWN]}…"


def _find_target(sources: Sources, origins: dict[str, str]) -> tuple[str, list[str]]:
    target, place, origins["target"] = sources.target, "target", "argument TARGET"
    if target is None:
        given = sources.file.get("target")
        if given is None and sources.problems:
            return "", []  # it may stand in the file that cannot be read
        if given is None:
            return "", [
                "no target is given: name one, such as handlers:chat, as an argument or as `target` in the file"
            ]
        target, place, origins["target"] = given.value, given.place, given.origin
    if isinstance(target, str) and target.endswith(".py"):
        return "", [
            f"{place} {target!r}: this is a program, which `wscluster run` runs; module:attribute is wanted here"
        ]
    if not isinstance(target, str) or not _is_target(target):
        return "", [f"{place} {target!r}: module:attribute is wanted, such as handlers:chat"]
    return target, []


def _is_target(target: str) -> bool:
    module, colon, attribute = target.partition(":")
    return bool(colon) and all(name.isidentifier() for name in (*module.split("."), *attribute.split(".")))


def _contradictions(config: Config, place: Callable[[str], str]) -> list[str]:
    """Return what does not go together; ``place`` says where a field's value stands."""
    problems = []
    if config.placement.balance is not None and config.placement.sticky != "none":
        problems.append(f"{place('balance')} {config.placement.balance} needs --sticky none")
    prefix = config.bus.redis_prefix
    if not prefix.isprintable() or not 1 <= len(prefix.encode()) <= 64 or set("{}") & set(prefix):
        problems.append(
            f"{place('redis_prefix')} {prefix!r}: 1 to 64 bytes without braces and control characters are wanted"
        )
    for text in config.listen.proxy_allow_from:
        try:
            parse_network(text)
        except ValueError as exc:
            problems.append(f"{place('proxy_allow_from')} {text!r}: {exc}")
    try:
        addresses = listen_addresses(config.listen)
    except ValueError as exc:
        name = "bind" if config.listen.bind else "uds"
        problems.append(f"{place(name)} {exc}")
    else:
        ready_fd = config.operate.ready_fd
        if ready_fd is not None and Inherited(ready_fd) in addresses:
            name = "bind" if config.listen.bind else "fd"
            problems.append(f"{place('ready_fd')} {ready_fd}: this is the socket to listen on, {place(name)}")
    if config.tls.ssl_certfile is None:
        others = ("ssl_keyfile", "ssl_keyfile_password", "ssl_ca_certs")
        problems += [f"{place(name)} needs --ssl-certfile" for name in others if getattr(config.tls, name) is not None]
    on_event = config.operate.on_event
    if on_event is not None and not is_path(on_event):
        problems.append(f"{place('on_event')} {on_event!r}: module:function is wanted")
    return problems + handshake_faults(config.handshake, place) + asgi_faults(config, place)
