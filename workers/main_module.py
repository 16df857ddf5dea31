"""Finds the code of a program and runs it as `__main__`, as ``python FILE`` and ``python -m MODULE`` do."""

from __future__ import annotations

import builtins
import importlib.machinery
import importlib.util
import os
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import CodeType, ModuleType
from typing import Any

from wscluster.errors import TargetError
from wscluster.workers.target import user_traceback


@dataclass(frozen=True, slots=True)
class MainModule:
    """Code that can be run as `__main__`.

    Attributes:
        name: What becomes ``sys.argv[0]``.
        attributes: What the module knows of itself (``__file__``, ``__spec__`` and so on).
    """

    code: CodeType
    name: str
    attributes: dict[str, Any] = field(default_factory=dict)


def find_main_module(program: Sequence[str]) -> MainModule:
    """Return the code of ``program``: a path, or ``-m`` and the name of a module.

    ``sys.path[0]`` becomes what Python makes it: the folder of a file, or the current one for a module. A package is
    run by its module ``__main__``, and so is a folder or a zip file.

    Raises:
        TargetError: It is not there, cannot be read, or is no Python; or a package that it is in raised on import.
    """
    if program[0] != "-m":
        return _find_path(program[0])
    sys.path.insert(0, os.getcwd())
    return _find_module(program[1])


def run_main_module(main: MainModule, arguments: Sequence[str]) -> None:
    """Run ``main`` in this thread as `__main__`, with ``arguments`` behind its name in ``sys.argv``."""
    sys.argv = [main.name, *arguments]
    module = ModuleType("__main__")
    vars(module).update(main.attributes, __builtins__=builtins)
    sys.modules["__main__"] = module
    exec(main.code, vars(module))


def _find_path(path: str) -> MainModule:
    # Links are followed for the folder that is imported from, as Python does.
    folder = os.path.dirname(os.path.realpath(path))
    try:
        finder = pkgutil.get_importer(path)
    except ValueError:  # a NUL in the path
        finder = None
    if finder is not None:
        sys.path.insert(0, path)
        spec = finder.find_spec("__main__", None)
        if spec is None:
            raise TargetError(f"{path} has no file __main__.py: name the file that is to be run")
        return MainModule(_code_of(spec, path), path, _attributes_of(spec, package=""))
    sys.path.insert(0, folder)
    full = os.path.abspath(path)
    loader = importlib.machinery.SourceFileLoader("__main__", full)
    try:
        source = loader.get_data(full)
    except FileNotFoundError:
        raise TargetError(f"there is no file {path}") from None
    except (OSError, ValueError) as exc:
        raise TargetError(f"{path!r} cannot be read: {getattr(exc, 'strerror', None) or exc}") from None
    try:
        code = loader.source_to_code(source, full)
    except (SyntaxError, ValueError, RecursionError) as exc:
        raise _not_python(path, exc) from None
    attributes = {"__file__": full, "__loader__": loader, "__package__": None, "__spec__": None, "__cached__": None}
    return MainModule(code, path, attributes)


def _find_module(name: str) -> MainModule:
    spec = _find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = _find_spec(f"{name}.__main__")
        if spec is None:
            raise TargetError(f"{name!r} is a package without a module __main__: it cannot be run")
    if spec is None:
        hint = "; without -m it would be a file" if name.endswith(".py") else ""
        raise TargetError(f"no module named {name!r} in {os.getcwd()} or on the import path{hint}")
    return MainModule(_code_of(spec, name), spec.origin or name, _attributes_of(spec))


def _find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
    if not name or name.startswith("."):
        raise TargetError(f"-m needs the full name of a module, not {name!r}")
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as exc:
        # The module itself is missing, or something that a package around it imports is.
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            return None
        raise _package_failed(name, exc) from exc
    except BaseException as exc:  # a package around it is imported, and may raise anything
        raise _package_failed(name, exc) from exc


def _package_failed(name: str, exc: BaseException) -> TargetError:
    return TargetError(f"module {name!r} cannot be imported: {brief(exc)}", user_traceback(exc))


def _code_of(spec: importlib.machinery.ModuleSpec, shown: str) -> CodeType:
    try:
        code = spec.loader.get_code(spec.name)  # type: ignore[union-attr]
    except (SyntaxError, ValueError, RecursionError) as exc:
        raise _not_python(shown, exc) from None
    except (OSError, ImportError, AttributeError) as exc:
        raise TargetError(f"{shown!r} cannot be run: {brief(exc)}") from None
    if code is None:
        raise TargetError(f"{shown!r} cannot be run: it is not written in Python")
    return code  # type: ignore[no-any-return]


def _attributes_of(spec: importlib.machinery.ModuleSpec, package: str | None = None) -> dict[str, Any]:
    return {
        "__file__": spec.origin,
        "__loader__": spec.loader,
        "__package__": spec.parent if package is None else package,
        "__spec__": spec,
        "__cached__": spec.cached,
    }


def _not_python(shown: str, exc: BaseException) -> TargetError:
    text = "".join(traceback.format_exception(type(exc), exc, None))
    return TargetError(f"{shown} is no Python program: {brief(exc)}", text if isinstance(exc, SyntaxError) else "")


def brief(exc: BaseException) -> str:
    """Return the type and text of ``exc`` in one line."""
    return " ".join(traceback.format_exception_only(exc)[-1].split())
