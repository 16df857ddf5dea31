"""Whatever a client sends, no control character reaches the terminal raw, and no line of the log is forged."""

import contextlib
import io
import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wscluster import logs

EVIL = "\x1b]0;owned\x07\r\n2026-01-31 12:00:00.123 INFO    primary | forged\u2028\u202e\x7f\x9b"


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Standard error; the state of the package's logger is put back."""
    logger = logging.getLogger("wscluster")
    before = (logger.handlers[:], logger.propagate, logger.level)
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    logs.set_up("debug", "primary")
    yield stream
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def lines_of(stderr: io.StringIO) -> list[str]:
    text = stderr.getvalue()
    assert text.endswith("\n")
    lines = text[:-1].split("\n")
    assert all(line.isprintable() for line in lines)
    return lines


def test_a_line_has_time_level_and_who(stderr: io.StringIO) -> None:
    logging.getLogger("wscluster.primary").warning("slot %d is empty", 3)
    (line,) = lines_of(stderr)
    date, time, level, who, *text = line.split()
    assert (len(date), len(time)) == (10, 12)
    assert (level, who, text) == ("WARNING", "primary", ["|", "slot", "3", "is", "empty"])


def test_control_characters_of_a_message_are_escaped_in_its_one_line(stderr: io.StringIO) -> None:
    logging.getLogger("wscluster.wire").info("path %s", EVIL)
    (line,) = lines_of(stderr)
    assert r"path \x1b]0;owned\x07\r\n2026-01-31" in line


def test_a_traceback_keeps_its_lines_and_none_of_them_is_taken_for_one_of_the_log(stderr: io.StringIO) -> None:
    try:
        raise ValueError(EVIL)
    except ValueError:
        logging.getLogger("wscluster.worker").exception("the handler failed", stack_info=True)
    first, *more = lines_of(stderr)
    assert first.endswith(" ERROR   primary | the handler failed")
    assert more[0] == "  Traceback (most recent call last):"
    assert any("forged" in line for line in more)
    assert all(line.startswith("  ") for line in more)
    assert any("test_logs.py" in line for line in more)


def test_a_traceback_that_another_formatter_left_behind_is_escaped_too(stderr: io.StringIO) -> None:
    record = logging.LogRecord("wscluster.worker", logging.ERROR, "f.py", 1, "failed", None, None)
    record.exc_text = f"Traceback: {EVIL}"
    logging.getLogger("wscluster.worker").handle(record)
    first, *more = lines_of(stderr)
    assert first.endswith(" | failed")
    assert len(more) == 2
    assert all(line.startswith("  ") for line in more)


@given(st.text(st.characters()))
def test_every_text_becomes_printable_and_printable_text_stays(text: str) -> None:
    escaped = logs.escape_controls(text)
    assert escaped.isprintable()
    assert (escaped == text) == text.isprintable()


def test_the_level_decides_and_the_root_logger_is_left_alone(
    stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)  # pytest sets its own between a fixture and its test
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    logs.set_up("warning", "worker 1 slot 0 phase 2")
    logging.getLogger("wscluster.bus").info("not this")
    logging.getLogger("other").info("nor this")
    logging.getLogger("wscluster.bus").error("this")
    (line,) = lines_of(stderr)
    assert line.endswith("worker 1 slot 0 phase 2 | this")
    assert (root.handlers[:], root.level) == before


def test_what_a_handler_logs_of_its_connection_is_escaped_for_every_handler(stderr: io.StringIO) -> None:
    seen: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    collector = Collector()
    logger = logging.getLogger("wscluster.connection")
    logger.addHandler(collector)
    try:
        logger.info("path %s of %d", EVIL, 5)
        logger.info(EVIL.replace("%", ""))
        logger.info("%(path)s", {"path": "a"})
        logger.info(ValueError(5))
    finally:
        logger.removeHandler(collector)
    assert len(seen) == 4
    assert all(line.isprintable() for line in seen)
    assert len(lines_of(stderr)) == 4


@contextlib.contextmanager
def program(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """The root logger as a program finds it: without handlers; pytest has some while a test runs."""
    root = logging.getLogger()
    last = logging.lastResort
    assert last is not None
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        patch.setattr(root, "handlers", [])
        patch.setattr(last, "formatter", None)
        level = root.level
        root.setLevel(logging.WARNING)
        try:
            yield root
        finally:
            root.setLevel(level)


def test_a_program_without_logging_of_its_own_forges_no_line(
    stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    with program(stderr, monkeypatch):
        logs.guard_root("worker 1 slot 0 phase 2")
        logging.getLogger("shop").warning("path %s", EVIL)
        logging.getLogger("shop").info("not this")
        (line,) = lines_of(stderr)
        assert r"WARNING worker 1 slot 0 phase 2 | path \x1b]0;owned\x07\r\n2026" in line


def test_a_programs_own_format_stays_and_its_messages_are_escaped(
    stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    with program(stderr, monkeypatch):
        logging.basicConfig(format="[%(levelname)s] %(message)s", level="INFO", stream=stderr)
        logs.guard_root("worker 1 slot 0 phase 2")
        logs.guard_root("worker 1 slot 0 phase 2")
        logging.getLogger("shop").info("basket:\n%s", EVIL)
        try:
            raise ValueError(EVIL)
        except ValueError:
            logging.getLogger("shop").exception("failed")
        lines = lines_of(stderr)
        assert lines[0] == "[INFO] basket:"
        assert [line for line in lines if not line.startswith("  ")] == ["[INFO] basket:", "[ERROR] failed"]
        assert "  Traceback (most recent call last):" in lines


def test_a_programs_own_formatter_is_left_alone(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    with program(stderr, monkeypatch) as root:

        class Coloured(logging.Formatter):
            pass

        handler = logging.StreamHandler(stderr)
        handler.setFormatter(Coloured("\x1b[32m%(message)s\x1b[0m"))
        root.addHandler(handler)
        logs.guard_root("worker 1 slot 0 phase 2")
        logging.getLogger("shop").warning("hello")
        assert stderr.getvalue() == "\x1b[32mhello\x1b[0m\n"


def test_a_programs_own_colours_stay_in_a_plain_formatter(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    with program(stderr, monkeypatch):
        logging.basicConfig(format="\x1b[32m%(message)s\x1b[0m", stream=stderr)
        logs.guard_root("worker 1 slot 0 phase 2")
        logging.getLogger("shop").warning("a%sb", "\x1b[2J")
        assert stderr.getvalue() == "\x1b[32ma\\x1b[2Jb\x1b[0m\n"


def test_no_last_resort_is_no_fault(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    with program(stderr, monkeypatch) as root:
        monkeypatch.setattr(logging, "lastResort", None)
        logs.guard_root("worker 1 slot 0 phase 2")
        assert root.handlers == []


def test_json_is_one_object_a_line_whatever_was_logged(stderr: io.StringIO) -> None:
    logs.set_up("debug", "worker 3 slot 0 phase 2", "json")
    (handler,) = logging.getLogger("wscluster").handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stderr)
    try:
        try:
            raise ValueError(EVIL)
        except ValueError:
            logging.getLogger("wscluster.worker").exception("failed: %s", EVIL)
        logging.getLogger("wscluster.worker").info("fine")
        first, second = (json.loads(line) for line in stderr.getvalue().splitlines())
        assert (first["level"], first["role"]) == ("error", "worker")
        assert (first["worker"], first["slot"], first["phase"]) == (3, 0, 2)
        assert first["message"] == f"failed: {EVIL}"
        assert "ValueError" in first["exception"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
        assert second.keys() == {"time", "level", "role", "worker", "slot", "phase", "message"}
        assert (
            json.loads(logs.JsonFormatter("primary").format(logging.makeLogRecord({"msg": "x"})))["role"] == "primary"
        )
    finally:
        logs.set_up("debug", "primary")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variable", "coloured"), [(None, True), (("NO_COLOR", "1"), False), (("TERM", "dumb"), False)]
)
def test_a_level_is_coloured_on_a_terminal_unless_somebody_wants_none(
    monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str] | None, coloured: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    if variable is not None:
        monkeypatch.setenv(*variable)
    monkeypatch.setattr(sys, "stderr", Terminal())
    formatter = logs.LineFormatter("primary", colour=logs.use_colour())
    record = logging.makeLogRecord({"levelname": "WARNING", "msg": f"careful {EVIL}"})
    text = formatter.format(record)
    assert (" \x1b[33mWARNING\x1b[0m primary | careful" in text) == coloured
    assert text.count("\x1b") == (2 if coloured else 0), "what a client sent is escaped as ever"
