"""A real cluster for a test: primary, workers and sockets of their own, awaited by their lifecycle events.

::

    async with Cluster("handlers:chat", workers=2) as cluster:
        async with cluster.connect() as ws:
            await ws.send("hello")

    async with Cluster.run("server.py", "--verbose", workers=2) as cluster: ...

The fixture of `wscluster.pytest_plugin` makes such clusters too, and ends what a test has left running.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from websockets.asyncio.client import connect, unix_connect

from wscluster.control_client import ask, stop
from wscluster.errors import WsclusterError
from wscluster.primary_command import COMMAND, as_flags, check_options, clean_environment, reached
from wscluster.primary_process import PrimaryProcess

START_SECONDS = 60.0
WAIT_SECONDS = 20.0
STOP_SECONDS = 15.0
"""What a primary gets to end beyond its graceful timeout before it is killed."""
MAX_OUTPUT_LINES = 10_000
_STATUS_SECONDS = 0.02
Event = dict[str, Any]


class ClusterFailed(WsclusterError):
    """The cluster did not start, ended early or did not stop; ``exit_code`` is None where it had to be killed."""

    def __init__(self, what: str, exit_code: int | None, output: str) -> None:
        super().__init__(f"{what} (exit code {exit_code})\n{output}")
        self.exit_code = exit_code
        self.output = output


class Cluster:
    """``wscluster serve TARGET`` on a port that the kernel chooses; use it as an async context manager.

    Variables of the environment that would change the configuration (``WSCLUSTER_*``, ``REDIS_URL``, ``PORT``,
    ``WEB_CONCURRENCY``) are not handed on, unless they stand in ``env``.

    Args:
        target: ``module:attribute``, a handler or an ASGI app.
        workers: Number of workers; None: what the configuration says.
        app_dir: Folder from which the target is imported; the working directory where it is None.
        cwd: Working directory of primary and workers; that of this process where it is None.
        env: Variables for the primary and its workers, beside those of this process.
        pass_fds: Descriptors that the primary inherits, such as the one of ``fd``.
        command: What comes before ``serve``, to run it under another program.
        options: Any flag of ``serve`` under its name: ``graceful_timeout=1`` is ``--graceful-timeout 1``. A list gives
            the flag once for each of its items, None does not give it, a truth value turns a switch on or off.

    Attributes:
        target: As it was given; empty for a program.
        events: The lifecycle events so far, oldest first.
        output: What primary and workers have printed, the last 10,000 lines.

    Raises:
        TypeError: There is no such option.
    """

    def __init__(
        self,
        target: str,
        *,
        workers: int | None = 2,
        app_dir: str | os.PathLike[str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
        command: tuple[str, ...] = COMMAND,
        **options: Any,
    ) -> None:
        where = {} if options.keys() & {"bind", "uds", "fd"} else {"host": "127.0.0.1", "port": 0}
        if app_dir is not None:
            options["app_dir"] = os.fspath(app_dir)
        self._set_up("serve", (target,), cwd, env, pass_fds, command, {"workers": workers, **where, **options})

    @classmethod
    def run(
        cls,
        *program: str | os.PathLike[str],
        workers: int | None = 2,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
        command: tuple[str, ...] = COMMAND,
        **options: Any,
    ) -> Self:
        """Return a cluster of ``wscluster run PROGRAM ARGUMENTS``: it listens where the program does.

        Args:
            program: A file and the program's own arguments, or ``"-m"``, a module and its arguments.
            workers, cwd, env, pass_fds, command: As for a target.
            options: Any flag of ``run`` under its name.

        Raises:
            TypeError: No program was given, or there is no such option.
        """
        if not program:
            raise TypeError("Cluster.run() wants a program, or '-m' and a module")
        cluster = cls.__new__(cls)
        words = tuple(os.fspath(word) for word in program)
        cluster._set_up("run", words, cwd, env, pass_fds, command, {"workers": workers, **options})
        return cluster

    def _set_up(
        self,
        verb: str,
        words: tuple[str, ...],
        cwd: str | os.PathLike[str] | None,
        env: Mapping[str, str] | None,
        pass_fds: tuple[int, ...],
        command: tuple[str, ...],
        options: dict[str, Any],
    ) -> None:
        check_options(verb, options)
        self.target = words[0] if verb == "serve" else ""
        self.events: list[Event] = []
        self.output: list[str] = []
        self._verb = verb
        self._words = words
        self._command = command
        self._pass_fds = pass_fds
        self._options = {"graceful_timeout": 5.0, **options}
        self._cwd = None if cwd is None else os.fspath(cwd)
        self._env = clean_environment() | dict(env or {})
        self._folder: Path | None = None
        self._process: PrimaryProcess | None = None
        # Done at the next event or line of output, and then another.
        self._news: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        try:
            await self.wait_event("ready", timeout=START_SECONDS)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            if self.running:
                self.process.terminate()
            await self.wait_exit(float(self._options["graceful_timeout"]) + STOP_SECONDS)
        finally:
            await self._end()

    async def start(self) -> None:
        """Start the primary without waiting for anything; entering the context does it too."""
        self._folder = Path(tempfile.mkdtemp(prefix="wscluster-test-"))
        self._options.setdefault("control_socket", str(self._folder / "control.sock"))
        flags = as_flags(self._options)
        self._news = asyncio.get_running_loop().create_future()
        self._process = PrimaryProcess(
            # The flags come first: what follows a program is the program's own.
            lambda fd: [*self._command, self._verb, "--ready-fd", str(fd), *flags, *self._words],
            cwd=self._cwd, env=self._env, pass_fds=self._pass_fds,
            on_event=self._take_event, on_output=self._take_output, on_end=self._tell,
        )  # fmt: skip

    def kill(self) -> None:
        """End primary, workers and all that they have started, at once, and remove what they left.

        It blocks until they have ended, up to ten seconds, and needs no event loop: it is for what was never left as a
        context manager is. Nothing is done where nothing runs.
        """
        if self._process is not None:
            self._process.end()
        self._remove_folder()

    # What it is

    @property
    def process(self) -> PrimaryProcess:
        """The primary."""
        assert self._process is not None, "the cluster was not started"
        return self._process

    @property
    def pid(self) -> int:
        """Process id of the primary."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """True from the start of the primary to its end."""
        return self._process is not None and self._process.returncode is None

    @property
    def port(self) -> int:
        """Port that the primary listens on, of its first TCP listener."""
        return int(next(event["port"] for event in self.events if event["event"] == "ready"))

    @property
    def listeners(self) -> list[str]:
        """Where the primary listens: ``host:port``, ``[v6]:port``, ``unix:/path``; what it bound later comes last."""
        ready = next(list(event["listeners"]) for event in self.events if event["event"] == "ready")
        bound = (event["listener"] for event in self.events if event["event"] == "bound")
        return list(dict.fromkeys([*ready, *bound]))

    @property
    def ports(self) -> list[int]:
        """The ports of all TCP listeners, in the order of `listeners`."""
        return [int(name.rpartition(":")[2]) for name in self.listeners if not name.startswith("unix:")]

    @property
    def url(self) -> str:
        """``ws://HOST:PORT`` of the first TCP listener; of the host that was asked for, where one was.

        With ``ssl_certfile`` it is ``wss://HOST:PORT``.

        Raises:
            LookupError: There is none.
        """
        return f"{'ws' if self._options.get('ssl_certfile') is None else 'wss'}://{self._host_and_port()}"

    @property
    def http_url(self) -> str:
        """``http://HOST:PORT``, or ``https://HOST:PORT``, where `url` has ``ws`` or ``wss``."""
        return f"http{self.url.removeprefix('ws')}"

    def _host_and_port(self) -> str:
        host = self._options.get("host")
        if host is not None:
            return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        return reached(self.listeners)

    @property
    def control_socket(self) -> Path:
        """Path of the control socket."""
        return Path(str(self._options["control_socket"]))

    def worker_pids(self) -> dict[int, int]:
        """Return, for each slot, the process id of the worker that became ready there last and has not ended."""
        pids: dict[int, int] = {}
        for event in self.events:
            if event["event"] == "worker_ready":
                pids[event["slot"]] = event["pid"]
            elif event["event"] == "worker_exited" and pids.get(event["slot"]) == event["pid"]:
                del pids[event["slot"]]
        return pids

    # What a test does

    def connect(self, path: str = "/", *, source: str | None = None, **options: Any) -> connect:
        """Connect a client of `websockets` to ``path``; ``source`` is the address that it comes from (127.1.0.7).

        Where the first listener is a Unix socket, it connects to that, and there is no source.

        ``options`` are those of `websockets.asyncio.client.connect`.
        """
        first = self.listeners[0]
        if first.startswith("unix:"):
            return unix_connect(first.removeprefix("unix:"), f"ws://localhost{path}", **options)
        if source is not None:
            options["local_addr"] = (source, 0)
        return connect(self.url + path, **{"proxy": None, **options})

    async def status(self) -> dict[str, Any]:
        """Return what ``wscluster status --json`` says.

        Raises:
            ControlError: The primary does not answer.
        """
        status: dict[str, Any] = await asyncio.to_thread(ask, self.control_socket, "status")
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the primary."""
        self.process.send_signal(number)

    async def stop(self, *, force: bool = False) -> int:
        """Stop the cluster over its control socket and wait for its end; returns the exit code."""
        await asyncio.to_thread(stop, self.control_socket, force=force)
        return await self.wait_exit()

    async def wait_event(self, event: str, *, count: int = 1, timeout: float = WAIT_SECONDS, **facts: Any) -> Event:
        """Wait for the ``count``-th event of this name that has these facts, and return it; past ones count.

        Raises:
            ClusterFailed: The primary ended before.
            TimeoutError: It did not come in ``timeout`` seconds.
        """

        def find() -> Event | None:
            found = [item for item in self.events if {"event": event, **facts}.items() <= item.items()]
            return found[count - 1] if len(found) >= count else None

        await self._wait(lambda: find() is not None, timeout, f"no event {event!r} {facts or ''}")
        found = find()
        assert found is not None
        return found

    async def wait_output(self, text: str, *, timeout: float = WAIT_SECONDS) -> str:
        """Wait for a line of output that has ``text`` in it, and return it; past ones count.

        Raises:
            ClusterFailed: The primary ended before.
            TimeoutError: It did not come in ``timeout`` seconds.
        """
        await self._wait(lambda: any(text in line for line in self.output), timeout, f"no output {text!r}")
        return next(line for line in self.output if text in line)

    async def wait_status(
        self, condition: Callable[[dict[str, Any]], object], *, timeout: float = WAIT_SECONDS
    ) -> dict[str, Any]:
        """Ask for the status until ``condition`` holds for it, and return it.

        Raises:
            TimeoutError: It did not hold within ``timeout`` seconds.
        """
        async with asyncio.timeout(timeout):
            while not condition(status := await self.status()):  # noqa: ASYNC110
                await asyncio.sleep(_STATUS_SECONDS)
        return status

    async def wait_exit(self, timeout: float = WAIT_SECONDS) -> int:
        """Wait until the primary has ended and all that it wrote was read; returns its exit code.

        Raises:
            ClusterFailed: It has not ended in ``timeout`` seconds; it was killed.
        """
        try:
            async with asyncio.timeout(timeout):
                code = await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            raise ClusterFailed(f"the primary did not end within {timeout:g} s", None, self._tail()) from None
        # A worker that outlives its primary would keep the pipes open: that is for the test to find, not to wait for.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while self.process.reading:
                    await self._wait_news()
        return code

    # Reading

    async def _wait(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    if not self.process.reading:
                        raise ClusterFailed(f"{what}: the primary ended", await self.process.wait(), self._tail())
                    await self._wait_news()
        except TimeoutError:
            raise TimeoutError(f"{what} within {timeout:g} s\n{self._tail()}") from None

    async def _wait_news(self) -> None:
        assert self._news is not None
        await asyncio.wait([self._news])

    def _take_event(self, line: bytes) -> None:
        self.events.append(json.loads(line))
        self._tell()

    def _take_output(self, line: bytes) -> None:
        self.output.append(line.decode(errors="replace"))
        del self.output[:-MAX_OUTPUT_LINES]
        self._tell()

    def _tell(self) -> None:
        assert self._news is not None
        loop = self._news.get_loop()
        if not loop.is_closed():
            self._news.set_result(None)
            self._news = loop.create_future()

    def _tail(self) -> str:
        return "\n".join(self.output[-50:])

    async def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process.close()
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
