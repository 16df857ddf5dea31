"""The command line: one verb each for what a person does with a cluster."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from wscluster import __version__
from wscluster.config import ConfigError, flag_of, knows, option_fields
from wscluster.control_client import ControlError, ask, find
from wscluster.errors import BusUnavailable, ExitCode, StartError
from wscluster.launch import run_primary
from wscluster.options import default_text
from wscluster.settings import SettingsSource
from wscluster.sources import flag_values

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])

EPILOG = (
    "Each flag can be set in the environment too: --slot-wait is WSCLUSTER_SLOT_WAIT; the variables in [also …], which "
    "others read too, come after it. In a file: slot-wait = 2."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``wscluster`` with ``arguments`` (without the program's name); returns the exit code."""
    try:
        result = cli.main(args=arguments, prog_name="wscluster", standalone_mode=False)
    except click.UsageError as exc:
        where = exc.ctx.command_path if exc.ctx is not None else "wscluster"
        return _fail(f"{exc.format_message().rstrip('.')}; `{where} --help` lists what there is", ExitCode.USAGE)
    except ConfigError as exc:
        for problem in exc.problems:
            _fail(problem, ExitCode.USAGE)
        return ExitCode.USAGE
    except (StartError, ControlError) as exc:
        return _fail(str(exc), exc.exit_code)
    except BusUnavailable as exc:
        return _fail(str(exc), ExitCode.FAILED)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # Whoever read the output has had enough; the interpreter must not complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    return int(result or 0)


def _fail(message: str, exit_code: int) -> int:
    sys.stderr.write(f"wscluster: {' '.join(message.split())}\n")
    return exit_code


class _Switch(click.Option):
    """``--access-log/--no-access-log``: its values are ``true`` and ``false``, one for each time that it was given."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        for opts, text in ((self.opts, "true"), (self.secondary_opts, "false")):
            parser.add_option(obj=self, opts=opts, dest=self.name, action="append_const", const=text)

    def type_cast_value(self, ctx: click.Context, value: Any) -> tuple[str, ...]:
        return tuple(value) if isinstance(value, list) else ()


LISTEN_NAMES = ("host", "port", "bind", "uds", "fd")
OWN_MATTER = "it is the program's own matter, and its flags stand behind it"


class _ServeOnly(click.Option):
    """A flag of `serve` that `run` has not: where it is given, it is told whose matter it is."""

    def handle_parse_result(self, ctx: click.Context, opts: Any, args: list[str]) -> Any:
        if self.name in opts:
            whose = "the program itself says where it listens" if self.name in LISTEN_NAMES else OWN_MATTER
            raise click.UsageError(f"{self.opts[0]} is a flag of `serve`: {whose}", ctx)
        return super().handle_parse_result(ctx, opts, args)


class _ServeOnlySwitch(_ServeOnly, _Switch):
    """The same for a switch."""


def _options_of(verb: str) -> Callable[[AnyCommand], AnyCommand]:
    """Give a command a flag for each field of the configuration that ``verb`` knows.

    The values of each stay text until `resolve`: a tuple of what was given, so that a flag that was given twice is
    seen.
    """

    def decorate(command: AnyCommand) -> AnyCommand:
        for name, (_, item) in reversed(option_fields().items()):
            known = knows(verb, name)
            kind: type[click.Option] = click.Option if known else _ServeOnly
            flags, text = flag_of(name), _help_of(item)
            if item.metadata["switch"]:
                flags = f"{flags}/--no-{flags[2:]}"
                kind = _Switch if known else _ServeOnlySwitch
                command = click.option(flags, name, cls=kind, default=None, hidden=not known, help=text)(command)
                continue
            facts = item.metadata
            metavar = facts["metavar"] or ("|".join(facts["choices"]) if facts["choices"] else "N")
            option = click.option(flags, name, cls=kind, multiple=True, hidden=not known, metavar=metavar, help=text)
            command = option(command)
        text = (
            "TOML file with the same names as keys.  [default: wscluster.toml, or [tool.wscluster] of pyproject.toml]"
        )
        return click.option("--config", multiple=True, metavar="FILE", help=text)(command)

    return decorate


def _help_of(item: Any) -> str:
    text = str(item.metadata["help"])
    default = default_text(item)
    if default and "[default" not in text:
        text += f"  [default: {default}]"
    if item.metadata["env"]:
        text += f"  [also {', '.join(item.metadata['env'])}]"
    return text


def _asks(name: str, *, cls: type[click.Command] = click.Command, has_json: bool = True) -> Callable[..., Any]:
    """Make a verb of a function whose first argument is the control socket of the primary that is meant."""

    def decorate(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def command(control_socket: str | None, pid: int | None, port: int | None, **rest: Any) -> int:
            return int(function(find(control_socket, pid, port), **rest) or 0)

        if has_json:
            command = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)
        return cli.command(name, cls=cls)(_find_options(command))

    return decorate


def _find_options(command: AnyCommand) -> AnyCommand:
    command = click.option("--port", type=int, help="Port that the primary listens on.")(command)
    command = click.option("--pid", type=int, help="Process id of the primary.")(command)
    return click.option("--control-socket", metavar="PATH", help="Control socket of the primary.")(command)


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="wscluster", message="%(prog)s %(version)s")
def cli() -> None:
    """WebSocket servers on every core, sticky by client, with no proxy in the data path."""


@cli.command("serve", epilog=EPILOG)
@click.argument("target", required=False)
@_options_of("serve")
@click.option("--print-config", is_flag=True, help="Print every value and where it comes from, and exit.")
def serve_command(target: str | None, config: tuple[str, ...], print_config: bool, **flags: tuple[str, ...]) -> int:
    """Serve TARGET, a handler `module:attribute`, on every core."""
    return _serve(_source(target, config, flags), print_config)


def _serve(source: SettingsSource, print_config: bool) -> int:
    if print_config:
        from wscluster.config_text import show_config

        print(show_config(source.read().resolved), end="")
        return ExitCode.OK
    return run_primary(source)


@cli.command("run", epilog=EPILOG, context_settings={"allow_interspersed_args": False})
@click.option("-m", "module", is_flag=True, help="PROGRAM is the name of a module, as for python -m.")
@click.argument("program", nargs=-1, type=click.UNPROCESSED, metavar="PROGRAM [ARGUMENTS]...")
@_options_of("run")
@click.option("--print-config", is_flag=True, help="Print every value and where it comes from, and exit.")
def run_command(
    program: tuple[str, ...],
    module: bool,
    config: tuple[str, ...],
    print_config: bool,
    **flags: tuple[str, ...],
) -> int:
    """Run PROGRAM, a Python program that listens with asyncio, on every core.

    Flags come before PROGRAM; what stands behind it is the program's own.
    """
    if not program:
        wanted = "the name of a module behind -m" if module else "a program, such as `wscluster run server.py`"
        raise click.UsageError(f"nothing to run: give {wanted}", click.get_current_context())
    given = {name: texts for name, texts in flags.items() if knows("run", name)}
    return _serve(_source(None, config, given, ("-m", *program) if module else program), print_config)


@cli.command("check", epilog=EPILOG)
@click.argument("target", required=False)
@_options_of("serve")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check_command(target: str | None, config: tuple[str, ...], as_json: bool, **flags: tuple[str, ...]) -> int:
    """Read the configuration as `serve` does, import TARGET, look at certificates and bus; start nothing.

    The exit code is the one that `serve` would end with for what was found.
    """
    from wscluster.check import check

    report = check(_source(target, config, flags).read_config())
    sys.stderr.write(report.traceback)
    for fault in report.faults:
        _fail(fault, report.exit_code)
    if as_json:
        print(json.dumps(report.as_json()))
    elif not report.faults:
        print(report.as_text(), end="")
    return report.exit_code


def _source(
    target: str | None, config: tuple[str, ...], flags: dict[str, tuple[str, ...]], program: tuple[str, ...] = ()
) -> SettingsSource:
    if len(config) > 1:
        raise ConfigError(["--config: it was given twice, and names one file"])
    return SettingsSource(target, flag_values(flags), config[0] if config else None, program)


@_asks("status")
def status_command(path: Path, as_json: bool) -> None:
    """Show the primary, its workers and its totals."""
    status = ask(path, "status")
    if as_json:
        print(json.dumps(status))
        return
    from wscluster.status_table import print_status

    print_status(status)


@_asks("top")
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=1.0, help="Seconds between two looks.")
def top_command(path: Path, interval: float, as_json: bool) -> None:
    """Show each worker as it changes: connections, messages a second, rooms, lag, CPU and memory.

    Without a terminal it shows one look; with --json it prints a line for each, until it is interrupted.
    """
    from wscluster.look_verbs import top

    top(path, interval, as_json=as_json)


@_asks("connections")
@click.option("--slot", type=int, help="Of this slot.")
@click.option("--ip", metavar="ADDRESS", help="Of clients with this address.")
@click.option("--room", help="Members of this room.")
def connections_command(path: Path, slot: int | None, ip: str | None, room: str | None, as_json: bool) -> int:
    """List the open connections: id, slot, client, path and rooms."""
    from wscluster.look_verbs import list_connections

    return list_connections(path, slot=slot, ip=ip, room=room, as_json=as_json)


@_asks("logs")
@click.option("--follow", "-f", is_flag=True, help="Wait for more, until the primary ends or Ctrl-C.")
@click.option("--slot", type=int, help="Only of this slot's workers.")
@click.option("--lines", "-n", type=click.IntRange(0), metavar="N", help="Begin with the last N.  [default: all kept]")
def logs_command(path: Path, follow: bool, slot: int | None, lines: int | None, as_json: bool) -> None:
    """Print the last lines of the log: the primary's, and what the workers log and print.

    Some 5,000 lines are kept. With --json each is an object: time, role, worker, slot, phase, stream, line.
    """
    from wscluster.look_verbs import show_logs

    show_logs(path, follow=follow, slot=slot, last=lines, as_json=as_json)


@_asks("kick")
@click.argument("connection", metavar="ID")
def kick_command(path: Path, connection: str, as_json: bool) -> None:
    """End one connection, named as `wscluster connections` names it; a handler's is closed with 1008."""
    done = ask(path, "kick", id=connection)
    print(json.dumps(done) if as_json else f"kicked {done['id']}, of worker {done['worker']} in slot {done['slot']}")


@_asks("route")
@click.argument("key")
def route_command(path: Path, key: str, as_json: bool) -> None:
    """Show to which slot the clients of an address KEY go, and why."""
    found = ask(path, "route", key=key)
    print(json.dumps(found) if as_json else f"slot {found['slot']}: {found['why']}")


@_asks("stop", has_json=False)
@click.option("--force", is_flag=True, help="Do not wait for open connections.")
def stop_command(path: Path, force: bool) -> int:
    """Stop the cluster: close every connection, wait until all processes have ended."""
    from wscluster.operate_verbs import stop

    return stop(path, force=force)


@_asks("reload")
def reload_command(path: Path, as_json: bool) -> int:
    """Replace every worker by one with the newest code and configuration, slot by slot; wait for the outcome.

    The exit code is 1 where it has failed: the workers that were not replaced serve on.
    """
    from wscluster.operate_verbs import reload

    return reload(path, as_json=as_json)


class _Signed(click.Command):
    """A command whose argument may be ``-1``, which click would take for a flag."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" not in args:
            numbers = [arg for arg in args if re.fullmatch(r"-[0-9]+", arg)]
            args = [arg for arg in args if arg not in numbers] + (["--", *numbers] if numbers else [])
        return super().parse_args(ctx, args)


def _slots(_ctx: click.Context, _parameter: click.Parameter, text: str) -> str:
    if not re.fullmatch(r"[+-]?[0-9]{1,6}", text, re.ASCII):
        raise click.BadParameter(f"{text!r} is no number of slots: 4, +1 or -1 is wanted")
    return text


@_asks("scale", cls=_Signed)
@click.argument("slots", metavar="N|+N|-N", callback=_slots)
def scale_command(path: Path, slots: str, as_json: bool) -> int:
    """Have N slots, or N more or fewer than now; wait until new ones serve, or those that go have drained.

    A new slot gets the new connections of the clients that belong to it; open connections stay where they are. The
    last slots are the ones that go: their connections are closed with 1012.
    """
    from wscluster.operate_verbs import scale

    return scale(path, slots, as_json=as_json)


@_asks("drain")
@click.argument("slot", type=int)
def drain_command(path: Path, slot: int, as_json: bool) -> int:
    """Replace the worker of SLOT by another one, which comes first; wait until it has drained and ended."""
    from wscluster.operate_verbs import drain

    return drain(path, slot, as_json=as_json)


@cli.command("publish")
@click.argument("room")
@click.argument("message")
@_find_options
@click.option("--redis-url", metavar="URL", help="Redis or Valkey of the cluster, instead of a primary to ask.")
@click.option(
    "--prefix", "--redis-prefix", metavar="PREFIX", help="Prefix of the cluster, where it is not the primary's."
)
@click.option("--room-log", type=int, metavar="N", help="With --redis-url: --room-log of the cluster.")
@click.option("--room-log-ttl", type=float, metavar="SECONDS", help="With --redis-url: --room-log-ttl of the cluster.")
@click.option("--binary", is_flag=True, help="Send bytes, not text.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def publish_command(
    room: str,
    message: str,
    binary: bool,
    as_json: bool,
    **where: Any,
) -> int:
    """Send MESSAGE to every member of ROOM and print its position; MESSAGE - is read from standard input.

    Without --redis-url and without a primary that is named, REDIS_URL says where the bus is, else the only primary
    that runs.
    """
    from wscluster.publish_verb import publish_once
    from wscluster.publisher import SyncPublisher

    try:
        publisher = SyncPublisher(**where)
        position = publish_once(publisher, room, message, binary=binary)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    print(json.dumps({"room": room, "position": position}) if as_json else position)
    return ExitCode.OK
