"""The log goes where it belongs without waiting for anybody, over real pipes and files."""

import asyncio
import fcntl
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.support import open_fds, run
from wscluster.errors import StartError
from wscluster.gateway.events import EventLog
from wscluster.gateway.log_lines import Origin
from wscluster.gateway.output import Output
from wscluster.gateway.sink import MAX_WAITING_BYTES, Sink

ORIGIN = Origin(worker=1, slot=0, phase=1)


@pytest.fixture(autouse=True)
def every_descriptor_is_closed() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - what the loop reads meanwhile has no event of its own
        await asyncio.sleep(0)


async def read_all(fd: int, size: int) -> bytes:
    data = b""
    os.set_blocking(fd, False)
    while len(data) < size:
        try:
            data += os.read(fd, 1 << 20)
        except BlockingIOError:
            await asyncio.sleep(0)
    return data


def with_pipe(test: Callable[[int, int], Awaitable[None]]) -> None:
    async def main() -> None:
        reading, writing = os.pipe()
        try:
            await test(reading, writing)
        finally:
            os.close(reading)
            os.close(writing)

    run(main())


def test_a_sink_that_nobody_reads_keeps_a_mebibyte_counts_the_rest_and_says_so_later() -> None:
    async def test(reading: int, writing: int) -> None:
        lost: list[int] = []
        sink = Sink(writing, lost.append)
        sink.attach(asyncio.get_running_loop())
        line = "x" * 999
        for _ in range(2000):
            sink.write(line)
        capacity = fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)
        kept = 0
        while not lost:
            kept += (await read_all(reading, 1)).count(b"\n")
            await asyncio.sleep(0)
        sink.write("last")
        rest = b""
        while not rest.endswith(b"last\n"):
            rest += await read_all(reading, 1)
            await asyncio.sleep(0)
        kept += rest.count(b"\n") - 1
        assert kept + sum(lost) == 2000
        assert (MAX_WAITING_BYTES // 1000) <= kept <= (MAX_WAITING_BYTES + capacity) // 1000 + 1
        assert os.get_blocking(writing), "whoever else has it must not feel this"
        sink.close()

    with_pipe(test)


def test_a_line_longer_than_a_pipe_arrives_whole_and_in_order() -> None:
    async def test(reading: int, writing: int) -> None:
        sink = Sink(writing, lambda lost: pytest.fail(f"{lost} lost"))
        sink.attach(asyncio.get_running_loop())
        sink.write("first")
        sink.write("ä" * 200_000)
        sink.write("last")
        wanted = ("first\n" + "ä" * 200_000 + "\nlast\n").encode()
        assert await read_all(reading, len(wanted)) == wanted
        sink.close()

    with_pipe(test)


def test_at_the_end_what_waits_is_written_or_given_up_in_time() -> None:
    async def test(reading: int, writing: int) -> None:
        loop = asyncio.get_running_loop()
        sink = Sink(writing, lambda _lost: None)
        for _ in range(100):
            sink.write("x" * 999)
        before = loop.time()
        sink.flush(0.1)
        assert 0.05 < loop.time() - before < 5
        reader = asyncio.create_task(asyncio.to_thread(os.read, reading, 1 << 20))
        await reader
        sink.flush(10)
        assert len(await read_all(reading, 1)) > 30_000, "the rest"
        sink.close()

    with_pipe(test)


def test_events_leave_the_descriptor_as_it_was() -> None:
    async def test(reading: int, writing: int) -> None:
        events = EventLog(writing, asyncio.get_running_loop())
        for number in range(300):
            events.emit("x", text="y" * 999, number=number)
        await asyncio.sleep(0)
        assert os.get_blocking(writing)
        read = b""
        while b'"number":299}' not in read:
            read += await read_all(reading, 1)
        events.close()

    with_pipe(test)


def written(path: Path) -> list[str]:
    return [line.partition(" | ")[2] for line in path.read_text().splitlines()]


async def has(path: Path, count: int) -> None:
    await until(lambda: len(written(path)) >= count)


def test_a_workers_streams_are_read_to_their_end_whoever_holds_them(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "log"
        output = Output(str(path), "text")
        output.attach(asyncio.get_running_loop())
        out, err = output.pipes(ORIGIN)
        child = os.dup(out)  # a process that the worker leaves behind
        os.write(out, b"one\ntw")
        os.write(err, b"three\n")
        await has(path, 2)
        os.write(out, b"o")
        output.exited(1)
        await has(path, 3)
        assert sorted(written(path)) == ["one", "three", "two"], "without its end too"
        os.close(out)
        os.close(err)
        os.write(child, b"later\n")
        await has(path, 4)
        fds = len(open_fds())
        os.close(child)
        await until(lambda: len(open_fds()) < fds - 1)
        assert output.ring.next == 5
        output.close()

    run(main())


def test_the_file_is_opened_again_and_where_it_cannot_be_the_old_one_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        folder = tmp_path / "logs"
        folder.mkdir()
        path = folder / "log"
        output = Output(str(path), "text")
        output.write("a | one\n")
        path.rename(folder / "log.1")
        output.write("a | two\n")
        output.reopen()
        output.write("a | three\n")
        assert (written(folder / "log.1"), written(path)) == (["one", "two"], ["three"])
        path.rename(folder / "log.2")
        folder.rename(tmp_path / "elsewhere")
        output.reopen()
        assert "cannot be opened again" in caplog.text
        output.write("a | four\n")
        assert written(tmp_path / "elsewhere" / "log.2") == ["three", "four"]
        output.close()

    with caplog.at_level(logging.INFO):
        run(main())


def test_a_file_that_cannot_be_written_to_ends_the_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "no" / "log", "No such file"), (tmp_path / "fifo", "")):
        with pytest.raises(StartError, match=f"--log-file .*{why}"):
            Output(str(path), "text")


def test_a_full_disk_loses_lines_and_nothing_else() -> None:
    async def main() -> None:
        output = Output("/dev/full", "text")
        for _ in range(10):
            output.write("lost\n")
        assert output.ring.next == 11
        output.close()

    run(main())
