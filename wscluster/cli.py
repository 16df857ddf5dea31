"""The command line: one verb each for what a person does with a cluster."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from wscluster import __version__
from wscluster.config import ConfigError, flag_of, option_fields, resolve
from wscluster.control_client import ControlError, ask, find, stop
from wscluster.errors import ExitCode, StartError
from wscluster.launch import serve

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])

EPILOG = "Each flag can be set in the environment too: --slot-wait is WSCLUSTER_SLOT_WAIT."


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


def _serve_options(command: AnyCommand) -> AnyCommand:
    """Give ``command`` a flag for each field of the configuration; their values stay text until `resolve`."""
    for name, (_, item) in reversed(option_fields().items()):
        facts = item.metadata
        text = facts["help"]
        default = "auto" if name == "workers" else item.default
        if default is not None and "[default" not in text:
            text += f"  [default: {str(default).lower() if isinstance(default, bool) else _shown(default)}]"
        metavar = facts["metavar"] or ("|".join(facts["choices"]) if facts["choices"] else "N")
        command = click.option(flag_of(name), name, default=None, metavar=metavar, help=text)(command)
    return command


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _find_options(command: AnyCommand) -> AnyCommand:
    command = click.option("--port", type=int, help="Port that the primary listens on.")(command)
    command = click.option("--pid", type=int, help="Process id of the primary.")(command)
    return click.option("--control-socket", metavar="PATH", help="Control socket of the primary.")(command)


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="wscluster", message="%(prog)s %(version)s")
def cli() -> None:
    """WebSocket servers on every core, sticky by client, with no proxy in the data path."""


@cli.command("serve", epilog=EPILOG)
@click.argument("target")
@_serve_options
def serve_command(target: str, **flags: str | None) -> int:
    """Serve TARGET, a handler `module:attribute`, on every core."""
    given = {name: text for name, text in flags.items() if text is not None}
    return serve(resolve(target, given, os.environ))


@cli.command("status")
@_find_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status_command(control_socket: str | None, pid: int | None, port: int | None, as_json: bool) -> int:
    """Show the primary, its workers and its totals."""
    status = ask(find(control_socket, pid, port), "status")
    if as_json:
        print(json.dumps(status))
        return ExitCode.OK
    from wscluster.status_table import print_status

    print_status(status)
    return ExitCode.OK


@cli.command("stop")
@_find_options
@click.option("--force", is_flag=True, help="Do not wait for open connections.")
def stop_command(control_socket: str | None, pid: int | None, port: int | None, force: bool) -> int:
    """Stop the cluster: close every connection, wait until all processes have ended."""
    return stop(find(control_socket, pid, port), force=force)
