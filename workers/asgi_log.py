"""What uvicorn logs, in the worker's own lines.

It is set up before the app is imported: what the app does to these loggers comes later and stays. uvicorn itself is
not imported here.
"""

from __future__ import annotations

import http
import logging
import os
import traceback

from wscluster.logs import LineFormatter, make_formatter

SERVER, LIFESPAN = os.path.join("uvicorn", "server.py"), os.path.join("uvicorn", "lifespan", "on.py")
"""The modules of uvicorn that log the steps of its own life."""

_PHRASES = {status.value: f" {status.phrase}" for status in http.HTTPStatus}


class AsgiLog(logging.Filter):
    """Sees every line of ``uvicorn.error``.

    Args:
        who: Signs every line.
        level: Least level that is logged; at ``debug`` uvicorn also says the steps of its own life.
        access_log: Write a line for each request.
    """

    def __init__(self, who: str, level: str, *, access_log: bool) -> None:
        super().__init__()
        self._steps_too = level == "debug"
        self._caught: list[str] | None = None
        ours = logging.getLogger("uvicorn")
        ours.handlers[:] = [_handler(make_formatter(who))]
        ours.propagate = False
        for logger in (ours, *(logging.getLogger(f"uvicorn.{name}") for name in ("error", "access", "asgi"))):
            logger.setLevel(level.upper())
        logging.getLogger("uvicorn.error").addFilter(self)
        access = logging.getLogger("uvicorn.access")
        access.propagate = False
        # uvicorn makes no line where nobody would hear it.
        access.handlers[:] = [_handler(make_formatter(who, _AccessFormatter))] if access_log else []

    def catch(self) -> None:
        """Keep the errors of the app's lifespan from the log until `caught`."""
        self._caught = []

    def caught(self) -> str:
        """Return the errors of the app's lifespan since `catch`, tracebacks and all."""
        caught, self._caught = self._caught or [], None
        return "".join(text if text.endswith("\n") else text + "\n" for text in caught)

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, str):
            record.msg = record.msg.rstrip("\n")
        if not record.pathname.endswith((SERVER, LIFESPAN)):
            return True
        if self._caught is not None and record.levelno >= logging.ERROR:
            # uvicorn's last word is that it exits; the worker says that itself.
            if record.exc_info:
                self._caught.append("".join(traceback.format_exception(*record.exc_info)))
            elif record.getMessage() != "Application startup failed. Exiting.":
                self._caught.append(record.getMessage())
            return False
        return self._steps_too or record.levelno > logging.INFO


class _AccessFormatter(LineFormatter):
    """As uvicorn's own line: the phrase of the status at its end."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        if isinstance(record.args, tuple) and record.args and isinstance(status := record.args[-1], int):
            record.message += _PHRASES.get(status, "")
        return super().formatMessage(record)


def _handler(formatter: logging.Formatter) -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    return handler
