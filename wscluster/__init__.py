"""wscluster: WebSocket servers on every core, sticky by client, with no proxy in the data path.

Importing this package loads neither the primary nor a worker; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wscluster import metrics
    from wscluster.api import Connection, Gap, Joined, Message, ThisWorker
    from wscluster.context import publish, subscribe
    from wscluster.errors import BusUnavailable, NotInWorker, WsclusterError
    from wscluster.launch import run, serve
    from wscluster.marks import basic_auth, lifespan, process_request, process_response, select_subprotocol
    from wscluster.publisher import Publisher, SyncPublisher

    this_worker: ThisWorker

__version__ = "0.1.0"

_HOMES = {
    "BusUnavailable": "wscluster.errors",
    "Connection": "wscluster.api",
    "Gap": "wscluster.api",
    "Joined": "wscluster.api",
    "Message": "wscluster.api",
    "NotInWorker": "wscluster.errors",
    "Publisher": "wscluster.publisher",
    "SyncPublisher": "wscluster.publisher",
    "WsclusterError": "wscluster.errors",
    "basic_auth": "wscluster.marks",
    "lifespan": "wscluster.marks",
    "process_request": "wscluster.marks",
    "process_response": "wscluster.marks",
    "publish": "wscluster.context",
    "run": "wscluster.launch",
    "select_subprotocol": "wscluster.marks",
    "serve": "wscluster.launch",
    "subscribe": "wscluster.context",
}

__all__ = [
    "BusUnavailable",
    "Connection",
    "Gap",
    "Joined",
    "Message",
    "NotInWorker",
    "Publisher",
    "SyncPublisher",
    "WsclusterError",
    "basic_auth",
    "lifespan",
    "metrics",
    "process_request",
    "process_response",
    "publish",
    "run",
    "select_subprotocol",
    "serve",
    "subscribe",
    "this_worker",
]


def __getattr__(name: str) -> Any:
    if name == "metrics":
        module = globals()[name] = importlib.import_module("wscluster.metrics")
        return module
    if name == "this_worker":
        context = importlib.import_module("wscluster.context")
        return context.current("wscluster.this_worker").this_worker
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'wscluster' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
