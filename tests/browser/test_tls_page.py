"""The page of examples/chat over https:// in a real browser, and its WebSocket over wss://."""

from pathlib import Path

import trustme
from playwright.async_api import async_playwright, expect

from tests.browser.test_chat_page import FLAGS, WAIT_MS, Person
from tests.certificate_support import write_server
from tests.support import require_program, run
from wscluster.testing import Cluster


def test_the_chat_works_over_https_and_wss(tmp_path: Path) -> None:
    certificate, key = write_server(tmp_path, trustme.CA())

    async def main() -> None:
        async with (
            Cluster("examples.chat.handlers:chat", workers=2, ssl_certfile=certificate, ssl_keyfile=key) as cluster,
            async_playwright() as playwright,
        ):
            browser = await playwright.chromium.launch(executable_path=require_program("chromium"), args=FLAGS)
            try:
                people = []
                for name in ("Ada", "Bob"):
                    # The browser does not know our authority.
                    context = await browser.new_context(ignore_https_errors=True)
                    context.set_default_timeout(WAIT_MS)
                    page = await context.new_page()
                    async with page.expect_websocket() as opened:
                        await page.goto(f"https://127.0.0.1:{cluster.port}/")
                    assert (await opened.value).url.startswith("wss://")
                    people.append(Person(name, page))
                    await people[-1].introduce()
                ada, bob = people
                await ada.say("hello over TLS")
                await expect(bob.messages.last.locator("p")).to_have_text("hello over TLS")
            finally:
                await browser.close()
            assert not [line for line in cluster.output if " WARNING " in line or " ERROR " in line]

    run(main())
