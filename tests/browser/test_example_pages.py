"""The pages of the examples in a real browser, its visitors on several workers by their addresses."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from playwright.async_api import Browser, FilePayload, Page, async_playwright, expect

from tests.browser.test_chat_page import DESKTOP, FLAGS, WAIT_MS
from tests.cluster.example_support import http_from, on_different_workers
from tests.nemesis.relay import Relay
from tests.support import require_program, run
from wscluster.testing import Cluster


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=require_program("chromium"), args=FLAGS)
        try:
            yield chromium
        finally:
            await chromium.close()


@contextlib.asynccontextmanager
async def visitor(chromium: Browser, cluster: Cluster, address: str, complaints: list[str]) -> AsyncIterator[Page]:
    """Open the first page from ``address``; what the browser complains of, or fetches from elsewhere, is added."""
    async with Relay(cluster.port, address) as relay:
        context = await chromium.new_context(viewport=DESKTOP)
        context.set_default_timeout(WAIT_MS)
        page = await context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(f"{request.url}: {request.failure}"))
        page.on(
            "console",
            lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None,
        )
        await page.goto(f"http://127.0.0.1:{relay.port}/")
        yield page
        assert not complaints
        await context.close()


def test_nicegui_pages_of_two_users_live_on_two_workers_with_their_uploads_and_websockets(tmp_path: Path) -> None:
    poem = FilePayload(name="poem.txt", mimeType="text/plain", buffer=b"the cat and the dog and the bird")
    list_ = FilePayload(name="list.txt", mimeType="text/plain", buffer=b"bread, butter")

    async def main() -> None:
        env = {"NICEGUI_STORAGE_PATH": str(tmp_path)}
        async with Cluster("examples.nicegui_app.main:app", workers=2, env=env) as cluster:

            async def worker(address: str) -> int:
                async with http_from(address, cluster.port) as http:
                    page = (await http.get("/")).raise_for_status().text
                return int(page.partition("process ")[2].partition('"')[0])

            addresses = await on_different_workers(worker)
            assert set(addresses) == set(cluster.worker_pids().values())
            async with browser() as chromium, contextlib.AsyncExitStack() as stack:
                complaints: list[str] = []
                pages = {}
                for pid, address in addresses.items():
                    page = await stack.enter_async_context(visitor(chromium, cluster, address, complaints))
                    await expect(page.get_by_text(f"process {pid}")).to_be_visible()
                    pages[pid] = page
                (first, second) = pages.values()
                for page in (first, second):
                    await page.locator("input[type=file]").set_input_files([poem])
                    await expect(page.get_by_text("8 words of poem.txt")).to_be_visible()
                await first.locator("input[type=file]").set_input_files([list_])
                await expect(first.get_by_text("10 words of poem.txt, list.txt")).to_be_visible()
                await expect(first.get_by_role("cell", name="butter")).to_be_visible()
                await expect(second.get_by_text("8 words of poem.txt")).to_be_visible()
                await expect(second.get_by_role("cell", name="butter")).to_have_count(0)
                for pid, page in pages.items():
                    await expect(page.get_by_text(f"process {pid}")).to_be_visible()

    run(main())


def test_the_page_of_the_fastapi_chat_talks_across_workers() -> None:
    async def main() -> None:
        async with Cluster("examples.fastapi_chat.main:app", workers=2) as cluster:

            async def worker(address: str) -> str:
                async with cluster.connect("/rooms/elsewhere", source=address) as ws:
                    return str(await ws.recv())

            here, there = (await on_different_workers(worker)).values()
            async with browser() as chromium:
                complaints: list[str] = []
                async with (
                    visitor(chromium, cluster, here, complaints) as ada,
                    visitor(chromium, cluster, there, complaints) as bob,
                ):
                    shown = []
                    for name, page in (("Ada", ada), ("Bob", bob)):
                        await expect(page.get_by_role("button", name="Send")).to_be_enabled()
                        shown.append(await page.get_by_role("status").inner_text())
                        await page.get_by_label("Name").fill(name)
                    assert set(shown) == {"worker 0", "worker 1"}
                    for page, text in ((ada, "Good morning"), (bob, "<b>hello</b> " + "wide" * 100)):
                        await page.get_by_label("Message", exact=True).fill(text)
                        await page.get_by_role("button", name="Send").click()
                        for reader in (ada, bob):
                            await expect(reader.get_by_role("listitem").last).to_contain_text(text)
                    for page in (ada, bob):
                        await expect(page.get_by_role("listitem")).to_have_count(2)
                        assert await page.evaluate("document.body.scrollWidth <= innerWidth")

    run(main())
