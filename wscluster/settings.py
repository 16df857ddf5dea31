"""Reads the files of a configuration: what the command line and `wscluster.serve` begin with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from wscluster.config import Config
from wscluster.config_file import parse_config_file
from wscluster.env_file import Variable, parse_env_file
from wscluster.sources import Given, Resolved, Sources, find_given, resolve

FILES = ("wscluster.toml", "pyproject.toml")
"""Looked for in the current folder, in this order; the first that has something to say is taken."""
MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration, and the variables that its file of variables adds to the environment."""

    resolved: Resolved
    variables: Mapping[str, str]

    def set_variables(self) -> None:
        """Add the variables to the environment of this process, and so to that of its workers."""
        os.environ.update(self.variables)


class SettingsSource:
    """Where a configuration comes from, so that it can be read again: files may change, the command line does not.

    Args:
        target, flags, config, run: As for `read_settings`; the environment is that of now.
    """

    def __init__(
        self, target: str | None, flags: Mapping[str, Given], config: str | None, run: tuple[str, ...] = ()
    ) -> None:
        self._arguments = (target, flags, dict(os.environ), config, run)
        self._set: set[str] = set()

    def read(self) -> Settings:
        """Read everything; changes nothing.

        Raises:
            ConfigError: Something is wrong; it lists every fault.
        """
        return read_settings(*self._arguments)

    def read_config(self) -> Config:
        """Read everything, and let the environment have the variables of the file of variables as it is now.

        Raises:
            ConfigError: Something is wrong; it lists every fault.
        """
        settings = self.read()
        for name in self._set - settings.variables.keys():
            os.environ.pop(name, None)
        self._set = set(settings.variables)
        settings.set_variables()
        return settings.resolved.config


def read_settings(
    target: str | None,
    flags: Mapping[str, Given],
    environment: Mapping[str, str],
    config: str | None = None,
    run: tuple[str, ...] = (),
) -> Settings:
    """Return what flags (or arguments), environment, files and defaults say together.

    Args:
        target: ``module:attribute``, or None where the file names it.
        config: Path of the file; None: ``WSCLUSTER_CONFIG``, else ``wscluster.toml`` of the current folder, else the
            table ``[tool.wscluster]`` of its ``pyproject.toml``.
        run: A program and its arguments, instead of a target.

    Raises:
        ConfigError: Something is wrong; it lists every fault.
    """
    if config is None:
        config = environment.get("WSCLUSTER_CONFIG") or None
    file, problems = _read_config_file(config)
    sources = Sources(target, flags, environment, file, run=run)
    variables, path = _read_variables(sources, problems)
    new = {name: variable for name, variable in variables.items() if name not in environment}
    sources = replace(
        sources,
        environment={**{name: variable.value for name, variable in new.items()}, **environment},
        variable_lines={name: f"{path}:{variable.line}" for name, variable in new.items()},
        problems=tuple(problems),
    )
    return Settings(resolve(sources), {name: variable.value for name, variable in new.items()})


def _read_config_file(path: str | None) -> tuple[Mapping[str, Given], list[str]]:
    if path == "":
        return {}, ["--config '': the path of a file is wanted"]
    for name in (path,) if path is not None else FILES:
        try:
            text = _read_text(name)
        except FileNotFoundError:
            if path is None:
                continue
            return {}, [f"{name}: there is no such file; --config names one that is there"]
        except _Unreadable as exc:
            return {}, [f"{name}: {exc}"]
        found = parse_config_file(text, name)
        if found is not None:
            return found
        if path is not None:
            return {}, [f"{name}: it has no table [tool.wscluster]"]
    return {}, []


def _read_variables(sources: Sources, problems: list[str]) -> tuple[dict[str, Variable], str]:
    """Read the file that ``--env-file`` names; its faults are added to ``problems``."""
    given = find_given("env_file", sources)
    path = (given.value[0] if given.texts else given.value) if given is not None else None
    if given is None or not isinstance(path, str) or (given.texts and len(given.value) > 1):
        return {}, ""  # none, or a value that `resolve` refuses
    try:
        variables, faults = parse_env_file(_read_text(path))
    except FileNotFoundError:
        problems.append(f"{given.place} {path!r}: there is no such file")
        return {}, path
    except _Unreadable as exc:
        problems.append(f"{given.place} {path!r}: {exc}")
        return {}, path
    problems.extend(f"{path}:{line}: {fault}" for line, fault in faults)
    return variables, path


class _Unreadable(Exception):
    """A file cannot be read; the text says why."""


def _read_text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise _Unreadable("it is larger than 1 MiB")
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as exc:
        raise _Unreadable(f"it is not UTF-8 (byte {exc.start})") from None
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise _Unreadable(f"it cannot be read: {reason}") from None
