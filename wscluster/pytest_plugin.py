"""The pytest fixture `wscluster_cluster`; pytest finds it by itself where wscluster is installed.

Loading it loads nothing of wscluster but this module: a run of tests that never asks for the fixture pays nothing.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from wscluster.testing import Cluster

MAX_REPORTED_LINES = 200
"""Of each cluster's output, the last; the others stay in `wscluster.testing.Cluster.output`."""


class ClusterFactory:
    """What the fixture `wscluster_cluster` gives a test; it remembers every cluster that it has made."""

    def __init__(self) -> None:
        self._made: list[tuple[str, Cluster]] = []

    def __call__(self, target: str, **options: Any) -> Cluster:
        """Return `wscluster.testing.Cluster` for a handler or an ASGI app, with these options."""
        from wscluster.testing import Cluster

        return self._remember(f"serve {target}", Cluster(target, **options))

    def run(self, *program: str | os.PathLike[str], **options: Any) -> Cluster:
        """Return `wscluster.testing.Cluster.run` for a program, with these options."""
        from wscluster.testing import Cluster

        words = " ".join(os.fspath(word) for word in program)
        return self._remember(f"run {words}", Cluster.run(*program, **options))

    def kill_all(self) -> list[str]:
        """End what still runs, remove what is left, and return what it was: ``serve main:app``."""
        running = [name for name, cluster in self._made if cluster.running]
        for _, cluster in self._made:
            cluster.kill()
        return running

    def reports(self) -> list[tuple[str, str]]:
        """Return a title and the last 200 lines of output for each cluster that has printed something."""
        return [
            (f"Output of wscluster {name}", "\n".join(cluster.output[-MAX_REPORTED_LINES:]))
            for name, cluster in self._made
            if cluster.output
        ]

    def _remember(self, name: str, cluster: Cluster) -> Cluster:
        self._made.append((name, cluster))
        return cluster


_FACTORY = pytest.StashKey[ClusterFactory]()


@pytest.fixture
def wscluster_cluster(request: pytest.FixtureRequest) -> Iterator[ClusterFactory]:
    """Make real clusters for a test: `wscluster_cluster(target, **options)`, to be entered with `async with`.

    The arguments are those of `wscluster.testing.Cluster`; `wscluster_cluster.run("server.py", "argument", **options)`
    is for programs. It works in any test with an asyncio loop: `asyncio.run()` in a plain one, pytest-asyncio, anyio::

        async def test_hello(wscluster_cluster):
            async with wscluster_cluster("main:app", workers=2) as cluster:
                async with cluster.connect() as ws:
                    ...

    When the test is over, a cluster that still runs is ended with all its processes, and that is an error of the test.
    The report of a test that has failed shows what its clusters have printed.
    """
    factory = request.node.stash[_FACTORY] = ClusterFactory()
    yield factory
    if left := factory.kill_all():
        running = ", ".join(f"wscluster {name}" for name in left)
        pytest.fail(f"the test has left this running, and it was killed: {running}. Use `async with`.", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the output of a failed test's clusters to its report."""
    report = yield
    factory = item.stash.get(_FACTORY, None)
    if factory is not None:
        if report.failed:
            report.sections += factory.reports()
        if call.when == "teardown":
            del item.stash[_FACTORY]
    return report
