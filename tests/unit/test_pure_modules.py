"""Every pure module is loaded by these tests: what nobody imports is not in the report of their coverage."""

import importlib
import tomllib

from tests.support import ROOT


def test_every_pure_module_is_loaded_and_so_measured() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (pure,) = (contract["source_modules"] for contract in contracts if contract["name"].startswith("Pure"))
    assert len(pure) > 30
    for name in pure:
        assert importlib.import_module(name).__name__ == name
