"""What is asked of a running cluster where its fleet has changed in the same moment."""

import asyncio
from dataclasses import replace

import pytest

from tests.support import run
from tests.unit.test_fleet import ready_fleet
from wscluster.config import Config
from wscluster.gateway import fleet_words as words
from wscluster.gateway.boot_faults import BootFaults
from wscluster.gateway.events import EventLog
from wscluster.gateway.operations import Operations


def with_workers(count: int) -> Config:
    config = Config("app:handler")
    return replace(config, fleet=replace(config.fleet, workers=count))


@pytest.mark.parametrize("crashes", [False, True])
def test_fewer_workers_are_had_after_a_reload_unless_nobody_would_be_left(
    crashes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        fleet = ready_fleet(2)

        def step(event: words.Event) -> None:
            for command in fleet.handle(event, 1.0):
                if isinstance(command, words.Reloading | words.Reloaded):
                    operations.carried_out(command)

        operations = Operations(
            loop, with_workers(2), fleet, EventLog(None, loop), BootFaults(print), lambda _config: None, step,
            lambda: with_workers(1),
        )  # fmt: skip
        outcome = operations.reload()
        step(words.BecameReady(3))
        step(words.BecameReady(4))
        assert len(fleet.slots) == 2, "not within the event that ends the reload"
        if crashes:
            step(words.Exited(3, -9, 0.0))
        assert (await outcome).reason == ""
        await asyncio.sleep(0)
        assert len(fleet.slots) == (2 if crashes else 1)

    run(main())
    refused = "the configuration wants 1 workers: no worker of the first 1 slots is ready"
    assert (refused in caplog.text) is crashes
