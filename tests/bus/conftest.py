"""The server of the bus, one for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bus.bus_support import Valkey


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(tmp_path) as server:
        yield server
