"""A minute of trouble: nothing is lost unsaid, nothing comes twice, and all hear one order."""

import random
from pathlib import Path

from tests.nemesis.nemesis import trouble
from tests.support import run

SECONDS = 45.0


def test_a_minute_of_trouble_loses_doubles_and_reorders_nothing_unsaid(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)

    async def main() -> None:
        verdict, made = await trouble(tmp_path, SECONDS, seed)
        assert not verdict.faults, f"seed {seed}, {made.done}\n{verdict}"
        # It was no idle minute.
        assert verdict.published > 1000
        assert verdict.heard > 3000
        assert verdict.recovered > 5
        assert made.done.total() > 10

    run(main(), timeout=SECONDS + 150)
