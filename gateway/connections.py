"""The verbs that look at single connections: which there are, which slot a key belongs to, and the end of one."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

from wscluster.gateway.control import InvalidRequest
from wscluster.gateway.fleet import Fleet
from wscluster.gateway.fleet_words import State
from wscluster.gateway.handoff import Ledger
from wscluster.gateway.inquiries import Inquiries

PAGE = 500
"""Connections in one answer of a worker, and of the primary."""


@dataclass(frozen=True, slots=True)
class Connections:
    """Answers from what the workers say."""

    fleet: Fleet
    ledger: Ledger
    inquiries: Inquiries
    sticky: str

    async def page(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return one page of connections, in the order of workers.

        ``slot``, ``ip`` and ``room`` choose which; ``after`` is ``next`` of the page before. ``silent`` names workers
        that have not answered.

        Raises:
            InvalidRequest: One of them makes no sense.
        """
        slot, room, after = request.get("slot"), request.get("room"), request.get("after") or [0, 0]
        if slot is not None and (not isinstance(slot, int) or not 0 <= slot < len(self.fleet.slots)):
            raise InvalidRequest(f"there is no slot {slot}: there are slots 0 to {len(self.fleet.slots) - 1}")
        host = None if request.get("ip") is None else parse_key(request["ip"])
        try:
            first, begin = int(after[0]), int(after[1])
        except (TypeError, ValueError, IndexError):
            raise InvalidRequest("after: what the page before called next is wanted") from None
        silent = []
        for worker in self._serving(slot):
            if worker < first or worker not in self.fleet.workers:  # it has ended while another one was asked
                continue
            begin = begin if worker == first else 0
            said = await self.inquiries.ask(worker, "connections", begin=begin, count=PAGE, room=room, host=host)
            if said is None:
                silent.append(worker)
                continue
            found = [{**one, "slot": self._slot_of(worker), "worker": worker} for one in said["connections"]]
            if found or said["more"]:
                following = [worker, begin + said["seen"]] if said["more"] else [worker + 1, 0]
                return {"connections": found, "next": following, "silent": silent}
        return {"connections": [], "next": None, "silent": silent}

    async def kick(self, connection: Any) -> dict[str, Any]:
        """End one connection; the outcome names its worker.

        Raises:
            InvalidRequest: No worker has it.
        """
        if not isinstance(connection, str) or not connection:
            raise InvalidRequest("the id of a connection is wanted, as `wscluster connections` shows it")
        silent = []
        for worker in self._serving(None):
            if worker not in self.fleet.workers:  # it has ended while another one was asked
                continue
            said = await self.inquiries.ask(worker, "kick", id=connection)
            if said:
                return {"id": connection, "slot": self._slot_of(worker), "worker": worker}
            if said is None:
                silent.append(str(worker))
        why = f"; worker {', '.join(silent)} does not answer" if silent else ""
        raise InvalidRequest(f"no worker has a connection {connection!r}{why}")

    def route(self, key: Any) -> dict[str, Any]:
        """Return to which slot the clients of an address go, and why.

        Raises:
            InvalidRequest: It is no address, or clients belong to no slot here.
        """
        host = parse_key(key)
        if self.sticky != "ip":
            raise InvalidRequest(f"with --sticky {self.sticky} no client belongs to a slot")
        order = list(self.ledger.order(host))
        states = [self._state(slot) for slot in order]
        serves = next((slot for slot, state in zip(order, states, strict=True) if state == "ready"), None)
        if serves == order[0]:
            why = f"slot {serves} is the first of this key, and has a worker that is ready"
        elif serves is None:
            why = "no slot has a worker that is ready"
        else:
            away = ", ".join(f"slot {slot} is {states[at]}" for at, slot in enumerate(order[: order.index(serves)]))
            why = f"slot {order[0]} is its own, and slot {serves} takes over: {away}"
        worker = self.fleet.slots[serves].worker if serves is not None else None
        return {"key": host, "slot": order[0], "serves": serves, "worker": worker, "order": order, "why": why}

    def _serving(self, slot: int | None) -> list[int]:
        states = (State.READY, State.DRAINING)
        workers = (worker for worker in self.fleet.workers.values() if worker.state in states)
        return sorted(worker.id for worker in workers if slot is None or worker.slot == slot)

    def _slot_of(self, worker: int) -> int | None:
        known = self.fleet.workers.get(worker)
        return None if known is None else known.slot

    def _state(self, slot: int) -> str:
        worker = self.fleet.workers.get(self.fleet.slots[slot].worker or 0)
        return worker.state.value if worker is not None else "failed" if self.fleet.slots[slot].failed else "exited"


def parse_key(text: Any) -> str:
    """Return the address that ``text`` means, as the workers name their clients.

    Raises:
        InvalidRequest: It means none.
    """
    try:
        return str(ipaddress.ip_address(str(text).strip("[]")))
    except ValueError:
        raise InvalidRequest(f"{str(text)[:80]!r} is no address: 192.0.2.1 or 2001:db8::1 is wanted") from None
