"""Where the bus of a cluster is, for a program that is none of its workers."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from wscluster import config, context
from wscluster.broker import make_connection
from wscluster.control_client import ControlError, ask, find
from wscluster.errors import BusUnavailable
from wscluster.urls import find_url_fault, hide_password

MOST = 1e9


@dataclass(frozen=True, slots=True)
class BusFacts:
    """A bus and how its cluster uses it; times in seconds."""

    url: str = field(repr=False)
    prefix: str
    room_log: int
    room_log_ttl: float
    bus_timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BusLookup:
    """What a program said about the bus; `find` says where it is.

    The first of these counts: ``redis_url``; the primary that is named; in a worker, its own primary; the variable
    ``REDIS_URL``; the only primary that runs. A primary also says how its cluster uses the bus. What is given here
    comes before that, and that before the defaults.
    """

    redis_url: str | None = field(default=None, repr=False)
    control_socket: str | None = None
    pid: int | None = None
    port: int | None = None
    prefix: str | None = None
    room_log: int | None = None
    room_log_ttl: float | None = None
    bus_timeout: float | None = None

    def __post_init__(self) -> None:
        if self.redis_url is not None:
            if [self.control_socket, self.pid, self.port] != [None, None, None]:
                raise ValueError("both a redis_url and a primary are given: one of them says where the bus is")
            _check_url("redis_url", self.redis_url)
        for name, least in (("room_log", 0), ("room_log_ttl", 0.001), ("bus_timeout", 0.001)):
            value = getattr(self, name)
            if value is not None and not least <= value <= MOST:
                raise ValueError(f"{name} is a number from {least:g} to {MOST:g}, not {value}")

    def find(self) -> BusFacts:
        """Return where the bus is; a private Valkey that does not run yet is started.

        Raises:
            ControlError: No primary runs, or several do.
            BusUnavailable: The primary cannot start its private Valkey.
            ValueError: ``REDIS_URL`` is malformed.
        """
        url, control_socket = self.redis_url, self.control_socket
        if url is None and control_socket is None and self.pid is None and self.port is None:
            control_socket = context.control_socket()
            if control_socket is None and (url := os.environ.get("REDIS_URL") or None) is not None:
                _check_url("REDIS_URL", url)
        if url is not None:
            return self._facts(url, config.Bus())
        path = find(control_socket, self.pid, self.port)
        told = ask(path, "bus")
        try:
            url, reason = told["url"], told["reason"]
            bus = config.Bus(
                redis_prefix=told["prefix"],
                bus_timeout=told["bus_timeout"],
                room_log=told["room_log"],
                room_log_ttl=told["room_log_ttl"],
            )
        except (TypeError, KeyError) as exc:
            raise ControlError(f"what answers at {path} is no primary of this version of wscluster") from exc
        if url is None:
            raise BusUnavailable(f"the bus is unavailable: {reason}")
        return self._facts(url, bus)

    def _facts(self, url: str, otherwise: config.Bus) -> BusFacts:
        return BusFacts(
            url,
            otherwise.redis_prefix if self.prefix is None else self.prefix,
            otherwise.room_log if self.room_log is None else self.room_log,
            otherwise.room_log_ttl if self.room_log_ttl is None else self.room_log_ttl,
            otherwise.bus_timeout if self.bus_timeout is None else self.bus_timeout,
        )


def _check_url(name: str, url: str) -> None:
    fault = find_url_fault(url)
    if fault is None:
        try:
            make_connection(url)
            return
        except (ValueError, TypeError) as exc:
            fault = str(exc)
    raise ValueError(f"{name} {hide_password(url)}: {fault}")
