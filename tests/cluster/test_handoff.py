"""Sockets on their way to a worker, while workers stop, die and come back: nobody is lost, nobody is served twice."""

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.churn import churn
from tests.cluster.raw import Raw, addresses_of, ask, frame, handshake, slots_of, unread_bytes
from tests.support import cannot_run, open_fds, run
from wscluster.gateway.handoff import WINDOW
from wscluster.testing import Cluster

WHO = "tests.cluster.handlers:who"
SOURCES = [f"127.1.0.{number}" for number in range(1, 41)]

GATED = """
import json, os, pathlib, time
folder = pathlib.Path(__file__).parent
while (folder / "hold").exists():
    time.sleep(0.01)
if (folder / "fail").exists():
    raise RuntimeError("asked to fail")

async def who(ws):
    await ws.send(json.dumps({"slot": ws.slot, "pid": os.getpid(), "client": ws.client}))
    async for message in ws:
        await ws.send(message)
"""
"""A module whose next worker does not boot while ``hold`` is there, and fails to while ``fail`` is."""


def gated(folder: Path, **options: Any) -> Cluster:
    (folder / "gated.py").write_text(GATED)
    return Cluster("gated:who", app_dir=folder, **options)


async def visit(cluster: Cluster, source: str, token: str = "token") -> dict[str, Any]:
    """Be served once: a greeting, the own message back, nothing more. Returns the greeting."""
    async with cluster.connect(source=source, open_timeout=30) as ws:
        told: dict[str, Any] = json.loads(await ws.recv())
        assert told["client"] == list(ws.local_address)
        await ws.send(token)
        assert await ws.recv() == token
        await ws.close()
        assert [message async for message in ws] == []
    return told


async def visit_all(cluster: Cluster, sources: Iterable[str]) -> dict[str, dict[str, Any]]:
    sources = list(sources)
    told = await asyncio.gather(*(visit(cluster, source, f"I am {source}") for source in sources))
    return dict(zip(sources, told, strict=True))


def start_visits(cluster: Cluster, source: str, count: int) -> list[asyncio.Task[dict[str, Any]]]:
    return [asyncio.create_task(visit(cluster, source, f"visit {number}")) for number in range(count)]


async def wait_accepted(cluster: Cluster, count: int) -> dict[str, Any]:
    status = await cluster.wait_status(lambda status: status["totals"]["accepted"] >= count)
    totals: dict[str, Any] = status["totals"]
    assert totals["accepted"] == count
    return totals


async def settled_totals(cluster: Cluster) -> dict[str, Any]:
    """Wait until nothing is pending."""
    status = await cluster.wait_status(
        lambda status: status["totals"]["accepted"] == status["totals"]["adopted"] + status["totals"]["rejected"]
    )
    totals: dict[str, Any] = status["totals"]
    return totals


def kill(cluster: Cluster, slot: int) -> int:
    pid = cluster.worker_pids()[slot]
    os.kill(pid, signal.SIGKILL)
    return pid


# Stickiness


def test_an_address_stays_with_its_worker_and_a_death_moves_only_the_dead_ones_addresses_and_back() -> None:
    async def main() -> None:
        async with Cluster(WHO, workers=4, slot_wait=20) as cluster:
            pids = cluster.worker_pids()
            first = await visit_all(cluster, SOURCES)
            for _ in range(2):
                again = await visit_all(cluster, SOURCES)
                assert {source: told["pid"] for source, told in again.items()} == {
                    source: told["pid"] for source, told in first.items()
                }
            used = Counter(told["slot"] for told in first.values())
            assert sorted(used) == [0, 1, 2, 3]
            assert {told["slot"]: told["pid"] for told in first.values()} == pids
            victim = used.most_common(1)[0][0]
            dead = kill(cluster, victim)
            # While the slot is empty, and then when its replacement is there.
            for _ in range(2):
                told = await visit_all(cluster, SOURCES)
                for source in SOURCES:
                    assert told[source]["slot"] == first[source]["slot"]
                    assert (told[source]["pid"] == first[source]["pid"]) == (first[source]["slot"] != victim)
                await cluster.wait_event("worker_ready", slot=victim, count=2)
            assert cluster.worker_pids()[victim] != dead
            totals = await settled_totals(cluster)
            assert (totals["accepted"], totals["rejected"], totals["workers_restarted"]) == (200, 0, 1)

    run(main())


def test_ipv6_clients_are_served_and_stay_with_their_worker() -> None:
    addresses = Path("/proc/net/if_inet6")
    if not addresses.exists() or not addresses.read_text():
        cannot_run("this machine has no IPv6")

    async def main() -> None:
        async with Cluster(WHO, workers=3, host="::1") as cluster:
            listener = (await cluster.wait_event("ready"))["listeners"]
            assert listener == [f"[::1]:{cluster.port}"]
            (slot, *_) = slots_of("::1", 3)
            for _ in range(5):
                reader, writer = await asyncio.open_connection("::1", cluster.port)
                raw = Raw(reader, writer)
                writer.write(handshake())
                assert "101" in await raw.head()
                told = json.loads(await raw.message())
                assert told["client"] == ["::1", raw.port]
                assert told["slot"] == slot
                await raw.close()

    run(main())


# A slow worker is not a dead one


def test_a_worker_stopped_for_two_seconds_serves_every_client_once_when_it_goes_on() -> None:
    async def main() -> None:
        async with Cluster(WHO, workers=3) as cluster:
            (source, *_) = addresses_of(1, 3)
            pid = cluster.worker_pids()[1]
            os.kill(pid, signal.SIGSTOP)
            count = WINDOW + 30
            visits = start_visits(cluster, source, count)
            totals = await wait_accepted(cluster, count)
            assert (totals["adopted"], totals["rejected"]) == (0, 0)
            done, _ = await asyncio.wait(visits, timeout=2)
            assert not done, "somebody else served a connection that was offered"
            os.kill(pid, signal.SIGCONT)
            for told in await asyncio.gather(*visits):
                assert (told["slot"], told["pid"]) == (1, pid)
            totals = await settled_totals(cluster)
            assert (totals["accepted"], totals["adopted"]) == (count, count)
            assert (totals["placed_again"], totals["workers_restarted"]) == (0, 0)

    run(main())


def test_a_stopped_worker_delays_nobody_elsewhere() -> None:
    async def main() -> None:
        async with Cluster(WHO, workers=3) as cluster:
            pid = cluster.worker_pids()[1]
            os.kill(pid, signal.SIGSTOP)
            (source, *_) = addresses_of(1, 3)
            waiting = start_visits(cluster, source, WINDOW + 5)
            await wait_accepted(cluster, WINDOW + 5)
            told = await visit_all(cluster, [source for source in SOURCES if slots_of(source, 3)[0] != 1])
            assert {one["slot"] for one in told.values()} == {0, 2}
            os.kill(pid, signal.SIGCONT)
            await asyncio.gather(*waiting)

    run(main())


def test_the_primary_reads_no_byte_of_a_client_that_it_hands_off() -> None:
    """Handshake and frames are sent before the worker adopts; they stay in the kernel until it does."""

    async def main() -> None:
        async with Cluster(WHO, workers=1) as cluster:
            (pid,) = cluster.worker_pids().values()
            os.kill(pid, signal.SIGSTOP)
            data = handshake("/early") + b"".join(frame(f"early {number}") for number in range(100))
            raws = [await Raw.connect(cluster.port, data=data) for _ in range(WINDOW + 2)]
            totals = await wait_accepted(cluster, len(raws))
            assert totals["adopted"] == 0
            assert {unread_bytes(cluster.port, raw.port) for raw in raws} == {len(data)}
            os.kill(pid, signal.SIGCONT)
            for raw in raws:
                assert "101" in await raw.head()
                assert json.loads(await raw.message())["path"] == "/early"
                assert [await raw.message() for _ in range(100)] == [f"early {number}" for number in range(100)]
                await raw.close()

    run(main())


# A worker that dies gives back what it has not adopted


def test_the_primary_keeps_no_copy_of_an_adopted_socket_so_a_reset_is_seen_at_once(tmp_path: Path) -> None:
    """With a copy left open somewhere, a worker's abort would be invisible to the client."""
    (tmp_path / "aborts.py").write_text("async def aborts(ws):\n    await ws.recv()\n    ws.transport.abort()\n")

    async def main() -> None:
        async with Cluster("aborts:aborts", workers=1, app_dir=tmp_path) as cluster:
            await cluster.status()
            idle = len(open_fds(cluster.pid))
            raws = [await Raw.connect(cluster.port, source, handshake()) for source in SOURCES]
            for raw in raws:
                assert " 101 " in await raw.head()
            await cluster.wait_status(lambda status: status["totals"]["adopted"] == len(raws))
            assert len(open_fds(cluster.pid)) <= idle
            for raw in raws:
                raw.writer.write(frame("abort"))
                began = time.monotonic()
                assert await raw.rest() == b""
                assert time.monotonic() - began < 2
                await raw.close()

    run(main())


@pytest.mark.parametrize(("slot_wait", "served_by"), [(20.0, "the replacement"), (0.0, "the next in order")])
def test_a_worker_killed_with_unread_offers_loses_nobody(slot_wait: float, served_by: str) -> None:
    async def main() -> None:
        async with Cluster(WHO, workers=3, slot_wait=slot_wait) as cluster:
            (source, *_) = addresses_of(2, 3)
            pids = cluster.worker_pids()
            os.kill(pids[2], signal.SIGSTOP)
            count = WINDOW + 20
            visits = start_visits(cluster, source, count)
            totals = await wait_accepted(cluster, count)
            assert totals["adopted"] == 0
            kill(cluster, 2)
            for told in await asyncio.gather(*visits):
                if served_by == "the replacement":
                    assert told["slot"] == 2
                    assert told["pid"] not in pids.values()
                else:
                    assert told["pid"] == pids[slots_of(source, 3)[1]]
            totals = await settled_totals(cluster)
            assert (totals["accepted"], totals["adopted"], totals["rejected"]) == (count, count, 0)
            assert totals["placed_again"] == WINDOW

    run(main())


def test_clients_that_left_while_their_offer_was_unread_harm_nobody() -> None:
    async def main() -> None:
        async with Cluster(WHO, workers=1) as cluster:
            (pid,) = cluster.worker_pids().values()
            os.kill(pid, signal.SIGSTOP)
            raws = [await Raw.connect(cluster.port, data=handshake()) for _ in range(20)]
            await wait_accepted(cluster, 20)
            for number, raw in enumerate(raws):
                if number % 2:
                    raw.reset()
                else:
                    await raw.close()
            visits = start_visits(cluster, "127.0.0.1", 20)
            await wait_accepted(cluster, 40)
            os.kill(pid, signal.SIGCONT)
            for told in await asyncio.gather(*visits):
                assert told["pid"] == pid
            await cluster.wait_status(lambda status: status["totals"]["connections"] == 0)
            assert (await settled_totals(cluster))["adopted"] == 40

    run(main())


# A slot without a worker


def test_connections_wait_for_their_slot_and_then_go_to_the_next_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        wait = 1.0
        async with gated(tmp_path, workers=3, slot_wait=wait) as cluster:
            pids = cluster.worker_pids()
            (tmp_path / "hold").touch()
            killed_at = time.monotonic()
            kill(cluster, 0)
            await cluster.wait_event("worker_exited", slot=0)
            sources = list(addresses_of(0, 3))[:10]
            told = await visit_all(cluster, sources)
            assert time.monotonic() - killed_at >= wait
            for source, one in told.items():
                assert one["pid"] == pids[slots_of(source, 3)[1]]
            assert {one["slot"] for one in told.values()} == {1, 2}
            # Who comes later does not wait any more.
            began = time.monotonic()
            await visit(cluster, sources[0])
            assert time.monotonic() - began < wait
            # Not an instant longer than needed: the slot takes its own again.
            (tmp_path / "hold").unlink()
            await cluster.wait_event("worker_ready", slot=0, count=2)
            told = await visit_all(cluster, sources)
            assert {one["slot"] for one in told.values()} == {0}
            assert (await settled_totals(cluster))["rejected"] == 0

    run(main())


def test_a_slot_that_has_failed_makes_nobody_wait_and_moves_nobody_else(tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path, workers=3, slot_wait=20) as cluster:
            before = await visit_all(cluster, SOURCES)
            (tmp_path / "fail").touch()
            kill(cluster, 1)
            await cluster.wait_event("worker_exited", slot=1)
            # One waits already when the slot is given up.
            (source, *_) = addresses_of(1, 3)
            waiting = asyncio.create_task(visit(cluster, source))
            await cluster.wait_status(lambda status: status["workers"][1]["state"] == "failed")
            began = time.monotonic()
            after = await visit_all(cluster, SOURCES)
            assert time.monotonic() - began < 10
            for source, told in after.items():
                order = slots_of(source, 3)
                assert told["slot"] == (order[1] if order[0] == 1 else order[0])
                assert (told["pid"] == before[source]["pid"]) == (order[0] != 1)
            assert (await waiting)["slot"] in (0, 2)
            assert (await settled_totals(cluster))["rejected"] == 0

    run(main())


# Nobody can serve


async def send_until_reset(raw: Raw) -> int:
    """Send a KiB now and then until the other end has had enough; returns how many bytes went."""
    sent = 0
    async with asyncio.timeout(5):
        while True:
            raw.writer.write(bytes(1024))
            try:
                await raw.writer.drain()
            except ConnectionError:
                return sent
            sent += 1024
            await asyncio.sleep(0.02)


def test_a_client_that_nobody_can_serve_is_told_so_and_may_finish_speaking(tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path, workers=2, slot_wait=0.2) as cluster:
            (tmp_path / "hold").touch()
            for slot in (0, 1):
                kill(cluster, slot)
                await cluster.wait_event("worker_exited", slot=slot)
            await cluster.wait_status(lambda status: all(worker["pid"] for worker in status["workers"]))
            fds = len(open_fds(cluster.pid))
            head, body = await ask(cluster.port, handshake())
            assert head.startswith("HTTP/1.1 503 ")
            assert "\r\nRetry-After: 1\r\n" in head
            assert f"Content-Length: {len(body)}\r\n" in head
            # One that goes on sending: not reset for a while, and not for ever.
            raw = await Raw.connect(cluster.port, data=handshake())
            assert "503" in await raw.head()
            # 16 KiB at most, and what was under way when it was cut off.
            assert 2048 <= await send_until_reset(raw) <= 32 * 1024
            await raw.close()
            # One that is silent and does not close: gone after a second.
            raw = await Raw.connect(cluster.port, data=handshake())
            assert "503" in await raw.head()
            assert await raw.rest() == body
            async with asyncio.timeout(5):
                while len(open_fds(cluster.pid)) > fds:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            await raw.close()
            totals = await settled_totals(cluster)
            assert (totals["accepted"], totals["rejected"], totals["adopted"]) == (3, 3, 0)
            (tmp_path / "hold").unlink()
            await cluster.wait_event("worker_ready", count=4)
            await visit_all(cluster, SOURCES[:4])

    run(main())


def test_of_more_than_256_clients_at_once_that_nobody_can_serve_the_others_are_reset(tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path, workers=1, slot_wait=2.0) as cluster:
            (tmp_path / "hold").touch()
            kill(cluster, 0)
            await cluster.wait_event("worker_exited", slot=0)
            raws = await asyncio.gather(*(Raw.connect(cluster.port, data=handshake()) for _ in range(300)))
            heads = await asyncio.gather(*(raw.head() for raw in raws))
            assert Counter(head[:12] for head in heads) == {"HTTP/1.1 503": 256, "": 44}
            await asyncio.gather(*(raw.close() for raw in raws))
            assert (await settled_totals(cluster))["rejected"] == 300
            (tmp_path / "hold").unlink()
            await cluster.wait_event("worker_ready", count=2)
            await visit(cluster, "127.0.0.1")

    run(main())


# All of it at once


def test_under_churn_no_client_is_lost_that_was_not_adopted() -> None:
    """The short form of ``python -m benchmarks.churn``."""

    async def main() -> None:
        report = await churn(seconds=5, rate=100, workers=4, kill_every=0.5)
        assert report.faults() == []
        assert report.kills > 3
        assert report.outcomes["served"] > 200

    run(main())
