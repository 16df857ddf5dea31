"""What uvicorn logs becomes lines of the worker; what an app logs there stays."""

import logging
from collections.abc import Callable, Iterator

import pytest

from wscluster.workers.asgi_log import LIFESPAN, SERVER, AsgiLog

NAMES = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
Say = Callable[..., None]


@pytest.fixture
def say() -> Iterator[Say]:
    """Logs a line to ``uvicorn.error`` as if the module at ``path`` did; the loggers are as before afterwards."""
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(one, one.handlers[:], one.filters[:], one.level, one.propagate) for one in loggers]

    def log(text: str, *, path: str = "app.py", level: int = logging.INFO, exc: BaseException | None = None) -> None:
        found = None if exc is None else (type(exc), exc, exc.__traceback__)
        logger = logging.getLogger("uvicorn.error")
        if logger.isEnabledFor(level):
            logger.handle(logger.makeRecord(logger.name, level, f"/x/{path}", 1, text, (), found))

    yield log
    for one, handlers, filters, level, propagate in before:
        one.handlers[:], one.filters[:], one.propagate = handlers, filters, propagate
        one.setLevel(level)


def texts(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.partition(" | ")[2] for line in capsys.readouterr().err.splitlines()]


def test_lines_of_an_app_are_signed_and_in_one_line(say: Say, capsys: pytest.CaptureFixture[str]) -> None:
    AsgiLog("worker 3 slot 0 phase 1", "info", access_log=True)
    say("one\x1b\ntwo\n")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(r" INFO    worker 3 slot 0 phase 1 | one\x1b\ntwo")


@pytest.mark.parametrize(("level", "shown"), [("debug", ["step", "trouble"]), ("info", ["trouble"]), ("error", [])])
def test_the_steps_of_uvicorn_itself_are_shown_at_debug(
    level: str, shown: list[str], say: Say, capsys: pytest.CaptureFixture[str]
) -> None:
    AsgiLog("w", level, access_log=True)
    say("step", path=SERVER)
    say("trouble", path=LIFESPAN, level=logging.WARNING)
    assert texts(capsys) == shown


def test_errors_of_a_lifespan_are_kept_while_it_starts(say: Say, capsys: pytest.CaptureFixture[str]) -> None:
    log = AsgiLog("w", "info", access_log=True)
    log.catch()
    say("Traceback of Starlette\nOSError: no database", path=LIFESPAN, level=logging.ERROR)
    say("Exception in 'lifespan' protocol\n", path=LIFESPAN, level=logging.ERROR, exc=LookupError("gone"))
    say("Application startup failed. Exiting.", path=LIFESPAN, level=logging.ERROR)
    say("of the app", level=logging.ERROR)
    assert texts(capsys) == ["of the app"]
    assert log.caught() == "Traceback of Starlette\nOSError: no database\nLookupError: gone\n"
    assert log.caught() == ""
    say("later", path=LIFESPAN, level=logging.ERROR)
    assert texts(capsys) == ["later"]


def test_a_line_of_the_access_log_has_the_phrase_of_its_status(say: Say, capsys: pytest.CaptureFixture[str]) -> None:
    AsgiLog("w", "info", access_log=True)
    logger = logging.getLogger("uvicorn.access")
    for status in (200, 404, 599):
        logger.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:5", "GET", "/\x1b", "1.1", status)
    logger.info("a line of the app's own")
    head = r'127.0.0.1:5 - "GET /\x1b HTTP/1.1"'
    assert texts(capsys) == [f"{head} 200 OK", f"{head} 404 Not Found", f"{head} 599", "a line of the app's own"]


def test_without_an_access_log_nobody_hears_its_logger(say: Say) -> None:
    """uvicorn asks for that and makes no line."""
    AsgiLog("w", "info", access_log=False)
    assert not logging.getLogger("uvicorn.access").hasHandlers()
