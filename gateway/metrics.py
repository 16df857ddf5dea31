"""Gathers what the metrics port shows, from the parts of the primary."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from wscluster.gateway.answers import Answers
from wscluster.gateway.binding import Bound
from wscluster.gateway.exposition import Facts, expose
from wscluster.gateway.intake import Intake
from wscluster.gateway.metrics_server import MetricsServer, Readiness
from wscluster.gateway.sums import MAX_SERIES
from wscluster.packets import Stats

logger = logging.getLogger("wscluster.primary")


@dataclass(slots=True)
class Metrics:
    """What is shown, as it is now."""

    answers: Answers
    intake: Intake
    _full_told: bool = False

    async def status(self) -> dict[str, Any]:
        """Return what `wscluster status --json` says."""
        return await self.answers.status()

    async def text(self) -> bytes:
        """Return the text of `/metrics`."""
        status = await self.status()
        fleet, crew, ledger = self.answers.fleet, self.answers.crew, self.intake.ledger
        books = ledger.books
        said = [crew.figures[worker].stats for worker in fleet.workers if worker in crew.figures]
        live: list[Stats] = [stats for stats in said if stats is not None]
        totals = crew.totals
        application = totals.application.sum([stats.application for stats in live])
        if totals.application.full and not self._full_told:
            self._full_told = True
            logger.warning("the application's metrics have more than %d series: the others are not shown", MAX_SERIES)
        return expose(
            Facts(
                status=status,
                counters=dict(totals.sum(live)),
                ledger={
                    "accepted": books.accepted, "adopted": books.adopted, "rejected": books.rejected,
                    "refused": books.refused, "returned": books.returned, "placed_again": books.placed_again,
                },
                waiting=ledger.waiting(),
                probes=self._probes(),
                offered=ledger.offered(),
                sizes=totals.sizes(live),
                handoff=self.intake.handoff_seconds.shown(),
                application=application,
            )
        )  # fmt: skip

    def _probes(self) -> dict[int, float]:
        fleet, figures = self.answers.fleet, self.answers.crew.figures
        seated = [(number, figures.get(slot.worker or 0)) for number, slot in enumerate(fleet.slots)]
        return {
            number: known.stats.bus_probe_seconds
            for number, known in seated
            if known is not None and known.stats is not None and known.stats.bus_probe_seconds is not None
        }

    def readiness(self) -> Readiness:
        """Return whether the node takes clients, from what is known without asking anybody."""
        fleet, crew = self.answers.fleet, self.answers.crew
        said = [crew.figures[worker].stats for worker in fleet.workers if worker in crew.figures]
        connected = [stats.bus_connected for stats in said if stats is not None and stats.bus_connected is not None]
        bus = "unused" if not connected else "connected" if all(connected) else "disconnected"
        return Readiness(fleet.listening, len(set(fleet.ready_slots())), len(fleet.slots), bus)


def make_server(bound: Bound, answers: Answers, intake: Intake) -> MetricsServer:
    """Return the server of the metrics port."""
    metrics = Metrics(answers, intake)
    return MetricsServer(bound.sock, metrics.status, metrics.text, metrics.readiness)
