"""Clusters that start and stop leave nothing."""

import random
import tempfile
from pathlib import Path

from tests.nemesis.cycles import cycles
from tests.support import run


def test_ten_clusters_half_of_them_killed_leave_no_process_no_zombie_no_socket_and_no_file() -> None:
    seed = random.randrange(1 << 32)

    async def main() -> None:
        # A path that is short enough for Unix sockets.
        with tempfile.TemporaryDirectory() as folder:
            assert await cycles(Path(folder), 10, seed) == [], f"seed {seed}"

    run(main(), timeout=120)
