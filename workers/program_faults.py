"""Why a program does not become ready, and what to do instead: from what it was seen doing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SERVE = "use `wscluster serve module:app`"
OWN_SOCKET = f"the program binds its own socket: {SERVE}"

MANAGERS = {"gunicorn.arbiter": "gunicorn", "granian": "granian", "hypercorn.run": "hypercorn"}
"""Modules of servers that start worker processes of their own, and the servers' names."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a program that is not ready has done.

    Attributes:
        modules: Names of what it has imported.
        bound: Addresses of TCP sockets that it has bound itself and that are open.
        processes: Number of its child processes that are alive.
    """

    modules: frozenset[str] = frozenset()
    bound: tuple[Any, ...] = ()
    processes: int = 0

    @property
    def manager(self) -> str:
        """Name of the server that manages processes of its own here; empty where none does."""
        names = [name for module, name in MANAGERS.items() if module in self.modules]
        if names and (self.processes or self.bound):
            return names[0]
        return "uvicorn" if "uvicorn" in self.modules and self.processes and self.bound else ""

    @property
    def serves_itself(self) -> bool:
        """Whether it seems to accept connections by itself, so that waiting for it is no use."""
        return bool(self.bound) or bool(self.manager)


def explain(seen: Seen) -> str:
    """Return in one line why ``seen`` will not be served, and what to do; empty where nothing says why."""
    match seen.manager:
        case "uvicorn":
            return f"uvicorn has started processes of its own: drop reload= and workers=, or {SERVE}"
        case "":
            pass
        case name:
            return f"{name} accepts by itself, in processes of its own: {SERVE} instead of it"
    if seen.bound:
        where = " and ".join(map(show_address, seen.bound))
        what = f"the program has bound {where} by itself, without the event loop's create_server()"
        return f"{what}: {SERVE}, or let asyncio listen"
    if seen.processes:
        return "the program has started processes of its own: only what listens in its first process is served"
    return ""


def explain_taken(address: Any) -> str:
    """Return in one line why the program could not bind ``address`` by itself: another worker of it has."""
    what = f"the program binds {show_address(address)} by itself, where something listens already"
    return f"{what}, another worker of it perhaps: {SERVE}, or let asyncio listen"


def explain_late(seen: Seen, limit: float, asked: Sequence[Any]) -> str:
    """Return in one line why a program is not ready after its time.

    Args:
        limit: Its time in seconds (``--worker-startup-timeout``).
        asked: Addresses that it has asked for, none of which it serves.
    """
    after = f"within {limit:g} s (--worker-startup-timeout)"
    if asked:
        where = " and ".join(map(show_address, asked))
        return f"the program did not begin to serve {where} {after}: start_serving() was not called"
    reason = explain(seen)
    if reason:
        return f"the program did not listen {after}: {reason}"
    return f"the program did not listen anywhere {after}: it must listen with asyncio, or with what stands on it"


def explain_ended(status: object, bind_error: str, *, listened: bool = False) -> str:
    """Return in one line what is wrong where a program has ended with ``status`` before it was ready.

    Args:
        status: The argument of ``sys.exit``; None where it returned.
        bind_error: Why it could not listen the last time it wanted to; empty where it could or did not want to.
        listened: It had begun to listen.
    """
    code = 0 if status is None else status if isinstance(status, int) else 1
    why = bind_error or ("" if status is None or isinstance(status, int) else " ".join(str(status).split()))
    when = "as soon as it listened" if listened else "before it listened anywhere"
    return f"the program ended (status {code}) {when}" + (f": {why}" if why else "")


def explain_difference(own: Sequence[Any], missing: Sequence[Any], known: Mapping[int, Any]) -> str:
    """Return in one line that this worker of a program listens elsewhere than the others.

    Args:
        own: Addresses that this one listens on.
        missing: Numbers of the listeners that others have asked for and this one has not.
        known: The address of a listener by its number, None or missing where it is not known.
    """
    others = [show_address(known[number]) for number in missing if known.get(number) is not None]
    where = " and ".join(others) or f"{len(missing)} more"
    here = " and ".join(map(show_address, own)) or "nothing"
    return (
        f"this worker of the program listens on {here}, another one on {where}: all must listen on the same addresses"
    )


def show_address(address: Any) -> str:
    """Return an address of ``getsockname()`` as a person writes it."""
    if isinstance(address, str):
        return f"unix:@{address[1:]}" if address.startswith("\0") else f"unix:{address}"
    if isinstance(address, bytes):
        return "unix:@" + address[1:].decode(errors="replace")
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
