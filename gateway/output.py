"""What the primary and its workers write: read from the workers' pipes, signed, kept, and written where it belongs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
import time
from pathlib import Path

from wscluster.errors import StartError
from wscluster.gateway.carried import Fd
from wscluster.gateway.log_lines import Line, Origin, Ring, Signer, Splitter
from wscluster.gateway.sink import Sink
from wscluster.gateway.state import OutputState, PipeState
from wscluster.log_text import COLOUR_CODES, json_time
from wscluster.logs import use_colour

READ_BYTES = 64 * 1024
MAX_LAST_READS = 32
"""What a worker that has ended leaves in its pipe is less; a child that it has left behind may write on."""
FLUSH_SECONDS = 1.0
ON_EVENT = 0
"""Stands for the process of ``--on-event`` where a worker's number would: those count from 1."""

logger = logging.getLogger("wscluster.primary")


class Output:
    """The log of a cluster.

    The primary's lines go to standard error. A worker's standard output goes to that of the primary, its standard error
    likewise; each pipe is always read, so no worker ever blocks on one. With a file, everything goes to it.

    Args:
        path: The file of ``--log-file``.
        form: ``text`` or ``json``, as ``--log-format`` says.

        state: What the process before has left; its file is gone on with.

    Raises:
        StartError: The file cannot be opened for writing.
    """

    def __init__(self, path: str | None, form: str, state: OutputState | None = None) -> None:
        self.ring = Ring()
        self.colour = path is None and form == "text" and use_colour()
        self._form = form
        # Whatever changes its working directory later, the file is where it was.
        self._path = None if path is None else Path(path).absolute()
        self._file: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.get_ident()
        self._pipes: dict[int, list[_Pipe]] = {}
        if state is not None and state.file is not None:
            self._file = state.file
        elif self._path is not None:
            try:
                self._file = _open(self._path)
            except OSError as exc:
                raise StartError(f"--log-file {path}: {exc.strerror}; name a file that can be written to") from exc
        self._make_sinks()
        if state is not None:
            self.ring.resume(state.kept, state.next)
            for stream, waiting in state.waiting.items():
                self._sinks[stream].resume(waiting)

    def carry(self) -> OutputState:
        """Return what the next process needs to go on."""
        waiting = {stream: sink.carry() for stream, sink in self._sinks.items()}
        if self._sinks["stdout"] is self._sinks["stderr"]:
            del waiting["stdout"]
        return OutputState(
            file=None if self._file is None else Fd(self._file),
            waiting=waiting,
            pipes=[pipe.carry() for pipes in self._pipes.values() for pipe in pipes],
            kept=self.ring.carry(),
            next=self.ring.next,
        )

    def resume(self, pipes: list[PipeState]) -> None:
        """Read the pipes of the process before."""
        assert self._loop is not None
        for state in pipes:
            signer = Signer(state.origin, state.stream, self._form, goes_on=state.goes_on)
            pipe = _Pipe(self, state.fd, signer, self._loop, state.part)
            self._pipes.setdefault(_key(state.origin), []).append(pipe)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have ``loop`` write what cannot be written at once."""
        self._loop = loop
        for sink in set(self._sinks.values()):
            sink.attach(loop)

    def write(self, text: str) -> None:
        """Write what the primary itself logs, as the stream of its handler; `flush` is there for the handler too."""
        if self._loop is not None and threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self.write, text)
            return
        text = text.rstrip("\n")
        at = time.time()
        self._sinks["stderr"].write(text)
        for line in COLOUR_CODES.sub("", text).split("\n"):
            self.ring.add(Line(at, None, "log", line))

    def show(self, text: str) -> None:
        """Write a traceback of the program that is served, as it is; as JSON it is one message."""
        if self._form == "json":
            facts = {"time": json_time(time.time()), "level": "error", "role": "primary", "message": text}
            self.write(json.dumps(facts))
        else:
            self.write(text)

    def flush(self) -> None:
        """Nothing: each line is written as soon as it is taken."""

    def pipes(self, origin: Origin | None) -> tuple[int, int]:
        """Return the ends that become the standard output and standard error of a worker; the caller closes them.

        Args:
            origin: None for the process of ``--on-event``.

        Raises:
            OSError: No descriptor is left.
        """
        assert self._loop is not None
        ours: list[int] = []
        theirs: list[int] = []
        try:
            for _ in range(2):
                reading, writing = os.pipe2(os.O_CLOEXEC)
                ours.append(reading)
                theirs.append(writing)
        except OSError:
            for fd in (*ours, *theirs):
                os.close(fd)
            raise
        # The process of --on-event may be started again while a child of the one before still has its pipes.
        self._pipes.setdefault(_key(origin), []).extend(
            _Pipe(self, fd, Signer(origin, stream, self._form), self._loop)
            for fd, stream in zip(ours, ("stdout", "stderr"), strict=True)
        )
        return theirs[0], theirs[1]

    def exited(self, worker: int) -> None:
        """Write the last words of ``worker``, or of ``ON_EVENT``. What its children say later is read too."""
        for pipe in self._pipes.get(worker, []):
            pipe.read_last()

    def reopen(self) -> None:
        """Write to a new file at the path of ``--log-file``: the old one was moved away."""
        if self._path is None:
            logger.info("USR1: the log goes to standard error; there is no file to open again")
            return
        try:
            fd = _open(self._path)
        except OSError as exc:
            logger.error("USR1: %s cannot be opened again, the log goes on in the old file: %s", self._path, exc)
            return
        old = self._file
        self._end_sinks(0.0)
        self._file = fd
        self._make_sinks()
        if old is not None:
            os.close(old)
        logger.info("USR1: the log goes on in %s", self._path)

    def close(self) -> None:
        """Write what is left, for a second at most, and read no more; lines that come later go to standard error."""
        for pipes in list(self._pipes.values()):
            for pipe in pipes:
                pipe.read_last()
                pipe.close()
        self._end_sinks(FLUSH_SECONDS)
        self._loop = None
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._make_sinks()  # for what is logged after the end

    def take(self, signed: list[tuple[str, Line]], stream: str) -> None:
        """Write lines of a worker to where its ``stream`` goes, and keep them."""
        self._sinks[stream].write(*(line for line, _ in signed))
        for _, kept in signed:
            self.ring.add(kept)

    def forget(self, pipe: _Pipe) -> None:
        """A pipe has come to its end."""
        for worker, pipes in list(self._pipes.items()):
            if pipe in pipes:
                pipes.remove(pipe)
                if not pipes:
                    del self._pipes[worker]

    def _make_sinks(self) -> None:
        if self._file is not None:
            file = Sink(self._file, _tell_lost)
            self._sinks = {"stdout": file, "stderr": file}
        else:
            errors = Sink(2, _tell_lost)
            # One file, one order.
            same = _same_file(1, 2)
            self._sinks = {"stdout": errors if same else Sink(1, _tell_lost), "stderr": errors}
        if self._loop is not None:
            self.attach(self._loop)

    def _end_sinks(self, seconds: float) -> None:
        for sink in set(self._sinks.values()):
            sink.flush(seconds)
            sink.close()


class _Pipe:
    """The end of a worker's pipe that the primary reads."""

    def __init__(
        self, output: Output, fd: int, signer: Signer, loop: asyncio.AbstractEventLoop, part: bytes = b""
    ) -> None:
        self._output = output
        self._fd = fd
        self._signer = signer
        self._loop = loop
        self._splitter = Splitter(part)
        os.set_blocking(fd, False)
        loop.add_reader(fd, self._read)

    def carry(self) -> PipeState:
        """Return what the next process needs to read on."""
        signer = self._signer
        return PipeState(Fd(self._fd), signer.origin, signer.stream, self._splitter.part, signer.goes_on)

    def read_last(self) -> None:
        """Read what is there; a last line is complete without its end."""
        for _ in range(MAX_LAST_READS):
            if self._fd < 0 or not self._read():
                break
        self._take(list(self._splitter.end()))

    def close(self) -> None:
        """Read no more."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._output.forget(self)

    def _read(self) -> bool:
        """Read once, so that one that writes without end keeps nobody else waiting; say whether there was anything."""
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return False
        self._take(list(self._splitter.feed(data)))
        if not data:
            self._take(list(self._splitter.end()))
            self.close()
        return bool(data)

    def _take(self, lines: list[bytes]) -> None:
        if lines:
            at = time.time()
            self._output.take([self._signer.sign(raw, at) for raw in lines], self._signer.stream)


def _key(origin: Origin | None) -> int:
    return ON_EVENT if origin is None else origin.worker


def _open(path: Path) -> int:
    # O_NONBLOCK: a named pipe that nobody reads is an error, not a wait.
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)


def _tell_lost(lines: int) -> None:
    logger.warning("%d lines of the log were lost: nobody took them", lines)


def _same_file(one: int, other: int) -> bool:
    with contextlib.suppress(OSError):
        return os.path.sameopenfile(one, other)
    return False
