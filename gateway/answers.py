"""What the primary answers on its control socket, verb by verb."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import wscluster
from wscluster.config import Config
from wscluster.gateway.connections import Connections
from wscluster.gateway.control import InvalidRequest, Request, Tell
from wscluster.gateway.crew import Crew
from wscluster.gateway.fleet import Fleet
from wscluster.gateway.fleet_words import State
from wscluster.gateway.handoff import Ledger
from wscluster.gateway.listening import Listening
from wscluster.gateway.log_pages import LogPages
from wscluster.gateway.operations import Operations
from wscluster.gateway.redis_server import RedisServer
from wscluster.gateway.status import PrimaryFacts, build_status
from wscluster.urls import hide_password


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Answers requests from what the primary knows; ``finished`` has its exit code when it has ended."""

    config: Config
    fleet: Fleet
    ledger: Ledger
    crew: Crew
    bus: RedisServer
    listening: Listening
    started_at: float
    stop: Callable[[], None]
    force: Callable[[], None]
    operations: Operations
    connections: Connections
    logs: LogPages
    finished: asyncio.Future[int]

    async def answer(self, request: Request, tell: Tell) -> Any:
        """Return what is sent back for ``request``; what takes long tells how far it has come.

        Raises:
            InvalidRequest: There is no such verb; the text goes back to the caller.
        """
        match request:
            case {"verb": "status"}:
                return await self.status()
            case {"verb": "bus"}:
                return await self._bus_facts()
            case {"verb": "reload"}:
                return (await self.operations.reload(tell)).as_json()
            case {"verb": "scale", "slots": slots}:
                return await self.operations.scale(slots, tell)
            case {"verb": "drain", "slot": slot}:
                return await self.operations.drain(slot, tell)
            case {"verb": "connections"}:
                return await self.connections.page(request)
            case {"verb": "kick", "id": connection}:
                return await self.connections.kick(connection)
            case {"verb": "route", "key": key}:
                return self.connections.route(key)
            case {"verb": "logs"}:
                return await self.logs.page(request, len(self.fleet.slots))
            case {"verb": "stop"}:
                self.operations.watch_stop(self.finished, tell)
                if request.get("force"):
                    self.force()
                elif not self.fleet.stopping:
                    self.stop()
                return {"exit_code": await asyncio.shield(self.finished)}
        raise InvalidRequest(f"this primary ({wscluster.__version__}) knows no such request")

    async def _bus_facts(self) -> dict[str, Any]:
        """What a publisher outside needs: the socket is its user's alone, so the URL has its password here."""
        bus = self.config.bus
        url, reason = (bus.redis_url, "") if bus.redis_url is not None else await self.bus.wait_address()
        return {
            "url": url,
            "reason": reason,
            "prefix": bus.redis_prefix,
            "room_log": bus.room_log,
            "room_log_ttl": bus.room_log_ttl,
            "bus_timeout": bus.bus_timeout,
        }

    async def _poll_workers(self) -> None:
        states = (State.READY, State.DRAINING)
        await self.crew.poll([worker.id for worker in self.fleet.workers.values() if worker.state in states])

    async def status(self) -> dict[str, Any]:
        """Return the status, in the shape that programs rely on."""
        await self._poll_workers()
        url = self.config.bus.redis_url
        facts = PrimaryFacts(
            pid=os.getpid(),
            version=wscluster.__version__,
            started_at=self.started_at,
            listeners=tuple(self.listening.names),
            sticky=(self.config.placement.sticky,),
            bus_url=self.bus.address if url is None else hide_password(url),
            bus_private=url is None,
        )
        now = asyncio.get_running_loop().time()
        return build_status(facts, self.fleet, self.ledger, self.crew.figures, self.crew.totals, now)
