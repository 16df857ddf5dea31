"""The dashboard of the metrics port in a real browser."""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright, expect

from tests.browser.test_chat_page import DESKTOP, FLAGS, PHONE, Scheme
from tests.cluster.process_support import cli, connect_to_slot
from tests.support import require_program, run
from wscluster.testing import Cluster

SERVED = "tests.cluster.obeying:obey"


@contextlib.asynccontextmanager
async def watching(cluster: Cluster, scheme: Scheme = "light", *, phone: bool = False) -> AsyncIterator[Page]:
    """The dashboard in a browser; nothing may be complained about in its console."""
    where = (await cluster.wait_event("metrics"))["address"]
    complaints: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=require_program("chromium"), args=FLAGS)
        page = await browser.new_page(viewport=PHONE if phone else DESKTOP, color_scheme=scheme)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto(f"http://{where}/")
        await expect(page.locator("#feed")).to_have_text("live")
        yield page
        await browser.close()
    assert [one for one in complaints if "WebSocket connection" not in one] == []


def test_slots_connections_and_messages_are_shown_as_they_change(tmp_path: Path) -> None:
    async def main() -> None:
        made = Cluster(SERVED, workers=2, metrics=True, metrics_port=0)
        async with made as cluster, watching(cluster) as page:
            rows = page.locator("#workers tr")
            await expect(rows).to_have_count(2)
            await expect(rows.nth(0).locator(".state")).to_have_text("ready")
            await expect(page.locator("#connections")).to_have_text("0")
            ws = await connect_to_slot(cluster, 0)
            await expect(page.locator("#connections")).to_have_text("1")
            for _ in range(300):
                await ws.send("phase")
                await ws.recv()
            await expect(page.locator("#messages-in")).not_to_have_text(re.compile("^(0|\\u2013)$"))
            await expect(page.locator("#chart-connections path.line")).to_have_attribute("d", re.compile("^M"))
            done = await asyncio.to_thread(
                cli, "scale", "3", "--control-socket", str(cluster.control_socket), folder=tmp_path
            )
            assert done.returncode == 0
            await expect(rows).to_have_count(3)
            os.kill(cluster.worker_pids()[1], signal.SIGKILL)
            await expect(page.locator("#totals")).to_contain_text("workers restarted1")
            await ws.close()

    run(main(), timeout=90)


def test_a_feed_that_is_gone_is_said_and_comes_back() -> None:
    async def main() -> None:
        async with Cluster(SERVED, workers=1, metrics=True, metrics_port=0) as cluster, watching(cluster) as page:
            cluster.signal(signal.SIGSTOP)
            await expect(page.locator("#feed")).to_have_text(re.compile("nothing heard for"))
            cluster.signal(signal.SIGCONT)
            await expect(page.locator("#feed")).to_have_text("live")

    run(main(), timeout=90)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
def test_it_fits_and_can_be_read(tmp_path: Path, scheme: Scheme, phone: bool) -> None:
    async def main() -> None:
        made = Cluster(SERVED, workers=4, metrics=True, metrics_port=0)
        async with made as cluster, watching(cluster, scheme, phone=phone) as page:
            await expect(page.locator("#workers tr")).to_have_count(4)
            width = await page.evaluate("document.documentElement.scrollWidth")
            assert width <= (PHONE if phone else DESKTOP)["width"], "the page itself never scrolls sideways"
            ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (ground == "rgb(18, 21, 28)") == (scheme == "dark")
            shots = os.environ.get("WSCLUSTER_SCREENSHOTS")
            folder = Path(shots) if shots else tmp_path
            await page.screenshot(path=folder / f"dashboard-{scheme}-{'phone' if phone else 'desktop'}.png")

    run(main(), timeout=90)
