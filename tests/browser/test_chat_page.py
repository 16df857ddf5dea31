"""The page of examples/chat in a real browser: two tabs on two workers of one cluster."""

import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from playwright.async_api import Browser, Locator, Page, ViewportSize, async_playwright, expect
from websockets.asyncio.client import ClientConnection

from tests.support import require_program, run
from wscluster.testing import Cluster

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE = ViewportSize(width=390, height=844)
DESKTOP = ViewportSize(width=1280, height=800)
WAIT_MS = 20_000.0
Scheme = Literal["light", "dark"]

expect.set_options(timeout=WAIT_MS)


@dataclass
class Person:
    """One tab, and who sits before it.

    Attributes:
        complaints: What the browser wrote to the console as an error or a warning, and exceptions of the page.
    """

    name: str
    page: Page
    complaints: list[str] = field(default_factory=list)

    @property
    def messages(self) -> Locator:
        """The messages of the room that is shown, oldest first."""
        return self.page.locator(".log:not([hidden]) li:not(.note)")

    @property
    def banner(self) -> Locator:
        return self.page.locator("#banner")

    async def slot(self) -> int:
        """The worker that the page says it is on."""
        chip = self.page.locator("#my-chip")
        await expect(chip).to_be_visible()
        return int((await chip.inner_text()).removeprefix("worker "))

    async def introduce(self) -> None:
        """Answer what the page asks at the first visit."""
        await self.page.get_by_label("Name", exact=True).fill(self.name)
        await self.page.get_by_role("button", name="Continue").click()
        await expect(self.page.get_by_text(f"You joined as {self.name}")).to_be_visible()

    async def say(self, text: str) -> None:
        await self.page.get_by_label("Message", exact=True).fill(text)
        send = self.page.get_by_role("button", name="Send")
        await expect(send).to_have_attribute("aria-disabled", "false")
        await send.click()
        await expect(self.messages.last.locator("p")).to_have_text(text)

    async def enter(self, room: str) -> None:
        """Join ``room`` by its name, or go back to it."""
        box = self.page.get_by_label("Join a room")
        await box.fill(room)
        await box.press("Enter")
        await expect(self.page.get_by_role("heading", level=1)).to_have_text(room)
        await expect(self.page.get_by_label("Message", exact=True)).to_have_attribute("placeholder", f"Message #{room}")

    async def hears(self, author: "Person", text: str, slot: int) -> None:
        """See ``text`` as the newest message, with its author's name and the worker that it was written on."""
        last = self.messages.last
        await expect(last.locator("p")).to_have_text(text)
        await expect(last.locator(".who b")).to_have_text(author.name)
        await expect(last.locator(".who .chip")).to_have_text(f"worker {slot}")


@contextlib.asynccontextmanager
async def cluster_and_browser(workers: int = 2, **options: Any) -> AsyncIterator[tuple[Cluster, Browser]]:
    """Tabs of one browser have one address: it is not what chooses the worker here."""
    chromium = require_program("chromium")
    async with (
        Cluster(
            "examples.chat.handlers:chat", workers=workers, sticky="none", balance="round-robin", **options
        ) as cluster,
        async_playwright() as playwright,
    ):
        browser = await playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        try:
            yield cluster, browser
        finally:
            await browser.close()


async def visit(cluster: Cluster, browser: Browser, name: str, size: ViewportSize, scheme: Scheme) -> Person:
    context = await browser.new_context(viewport=size, color_scheme=scheme)
    context.set_default_timeout(WAIT_MS)
    page = await context.new_page()
    person = Person(name, page)
    page.on("pageerror", lambda error: person.complaints.append(str(error)))
    page.on(
        "console",
        lambda message: person.complaints.append(message.text) if message.type in {"error", "warning"} else None,
    )
    await page.goto(f"http://127.0.0.1:{cluster.port}/")
    return person


async def two_on_two_workers(
    cluster: Cluster, browser: Browser, *, sizes: tuple[ViewportSize, ViewportSize] = (DESKTOP, PHONE), scheme: Scheme
) -> tuple[Person, Person]:
    """A browser may open a spare connection, so which worker is next is not known: Bob asks until it is another."""
    ada = await visit(cluster, browser, "Ada", sizes[0], scheme)
    await ada.introduce()
    bob = await visit(cluster, browser, "Bob", sizes[1], scheme)
    for _ in range(8):
        if await bob.slot() != await ada.slot():
            break
        async with cluster.connect():  # one turn more, since page and WebSocket take two
            await bob.page.reload()
    await bob.introduce()
    assert await bob.slot() != await ada.slot()
    return ada, bob


async def no_sideways_scroll(page: Page) -> bool:
    """Nothing is wider than the window, neither the page nor the conversation."""
    fits: bool = await page.evaluate(
        """() => [document.documentElement, document.getElementById("logs")]
                     .every((it) => it.scrollWidth <= it.clientWidth)"""
    )
    return fits


def test_tabs_on_two_workers_talk_in_light_and_dark_and_nothing_is_wider_than_a_phone() -> None:
    wide = "x" * 300 + " " + "words " * 60

    async def main() -> None:
        async with cluster_and_browser(workers=4) as (cluster, browser):
            for scheme in get_args(Scheme):
                ada, bob = await two_on_two_workers(cluster, browser, scheme=scheme)
                await expect(ada.page.get_by_text("Bob joined")).to_be_visible()
                await ada.say("Good morning")
                await bob.hears(ada, "Good morning", await ada.slot())
                await bob.say(wide.strip())
                await ada.hears(bob, wide.strip(), await bob.slot())

                hues = [await bob.messages.nth(number).evaluate("it => it.style.cssText") for number in range(2)]
                assert hues[0] != hues[1], "each worker has a colour of its own"
                paper = await ada.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
                assert (int(paper.removeprefix("rgb(").split(",")[0]) < 64) == (scheme == "dark")
                for person in (ada, bob):
                    assert await no_sideways_scroll(person.page)
                    assert not person.complaints
                    await person.page.context.close()

    run(main())


def test_hostile_text_and_names_are_shown_as_text() -> None:
    hostile = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"

    async def main() -> None:
        async with cluster_and_browser() as (cluster, browser):
            ada, bob = await two_on_two_workers(cluster, browser, scheme="light")
            await ada.say(hostile)
            await bob.hears(ada, hostile, await ada.slot())
            async with cluster.connect() as raw:
                await raw.send('{"join": "lobby", "name": "<b>Eve</b>"}')
                await expect(bob.page.get_by_text("<b>Eve</b> joined")).to_be_visible()
            await bob.enter("<i>den</i>")
            for person in (ada, bob):
                assert (
                    await person.page.locator(".log img, .log script, .log b b, #rooms i:not([hidden]), h1 i").count()
                    == 0
                )
                assert await person.page.title() != "broken"
                assert not person.complaints

    run(main())


def test_rooms_are_joined_switched_between_and_left() -> None:
    async def main() -> None:
        async with cluster_and_browser() as (cluster, browser):
            ada, bob = await two_on_two_workers(cluster, browser, scheme="light")
            await ada.enter("games")
            await bob.say("only in the lobby")
            unread = ada.page.get_by_role("link", name="lobby").locator("i")
            await expect(unread).to_have_text("1")
            await expect(ada.messages).to_have_count(0)

            await bob.enter("games")
            await expect(ada.page.get_by_text("Bob joined").last).to_be_visible()
            await ada.say("chess?")
            await bob.hears(ada, "chess?", await ada.slot())

            await ada.page.get_by_role("link", name="lobby").click()
            await ada.hears(bob, "only in the lobby", await bob.slot())
            await expect(unread).to_be_hidden()

            # By keyboard alone, since the button shows itself at its focus.
            await bob.page.get_by_role("button", name="Leave games").focus()
            await bob.page.keyboard.press("Enter")
            await expect(bob.page.get_by_role("heading", level=1)).to_have_text("lobby")
            await expect(bob.page.get_by_role("link", name="games")).to_have_count(0)
            await ada.page.get_by_role("link", name="games").click()
            await expect(ada.page.get_by_text("Bob left")).to_be_visible()

            # The rooms and the name are remembered.
            await ada.page.reload()
            await expect(ada.page.get_by_role("button", name="Change your name: Ada")).to_be_visible()
            await expect(ada.page.get_by_role("link", name="lobby")).to_be_visible()
            await expect(ada.page.get_by_text("You joined as Ada").locator("visible=true")).to_be_visible()
            for person in (ada, bob):
                assert not person.complaints

    run(main())


def test_a_name_is_changed_and_the_others_see_it() -> None:
    async def main() -> None:
        async with cluster_and_browser() as (cluster, browser):
            ada, bob = await two_on_two_workers(cluster, browser, scheme="light")
            await ada.page.get_by_role("button", name="Change your name: Ada").click()
            ada.name = "Augusta"
            await ada.page.get_by_label("Name", exact=True).fill(ada.name)
            await ada.page.keyboard.press("Enter")
            await expect(ada.page.get_by_text("You are Augusta now")).to_be_visible()
            await ada.say("still me")
            await bob.hears(ada, "still me", await ada.slot())
            for person in (ada, bob):
                assert not person.complaints

    run(main())


def test_the_page_comes_back_by_itself_after_its_worker_was_killed_and_says_so_meanwhile() -> None:
    async def main() -> None:
        async with cluster_and_browser() as (cluster, browser):
            ada, bob = await two_on_two_workers(cluster, browser, sizes=(PHONE, DESKTOP), scheme="dark")
            await ada.say("before")
            await bob.hears(ada, "before", await ada.slot())
            # Whatever it shows for a moment is seen, however fast it is.
            await ada.page.evaluate(
                """() => {
                    window.told = [];
                    const look = () => { if (!banner.hidden) told.push(banner.innerText.replace(/\\s+/g, " ")); };
                    const banner = document.getElementById("banner");
                    new MutationObserver(look).observe(banner, { attributes: true, subtree: true, childList: true });
                }"""
            )
            # A message that reaches a worker which is stopped, and is lost with it.
            victim = cluster.worker_pids()[await ada.slot()]
            os.kill(victim, signal.SIGSTOP)
            await ada.page.get_by_label("Message", exact=True).fill("into the void")
            await ada.page.get_by_role("button", name="Send").click()
            os.kill(victim, signal.SIGKILL)

            await expect(ada.page.get_by_text("You are back")).to_be_visible()
            assert "The connection is lost." in " ".join(await ada.page.evaluate("told"))
            await expect(ada.page.get_by_text("Perhaps not delivered: “into the void”")).to_be_visible()
            await expect(ada.banner).to_be_hidden()
            await expect(ada.page.get_by_label("Message", exact=True)).to_have_value("into the void")
            assert await no_sideways_scroll(ada.page)

            await ada.say("and after")
            await bob.hears(ada, "and after", await ada.slot())
            await bob.say("welcome back")
            await ada.hears(bob, "welcome back", await bob.slot())
            assert not ada.complaints
            assert not bob.complaints

    run(main())


async def say_many(ws: ClientConnection, texts: Iterable[str]) -> None:
    for text in texts:
        await ws.send(json.dumps({"say": text, "room": "lobby"}))
        while (json.loads(await ws.recv())).get("text") != text:
            pass


@contextlib.asynccontextmanager
async def plain_client(cluster: Cluster, name: str, *, not_on: int) -> AsyncIterator[ClientConnection]:
    """A member of the lobby that is no page, on another worker than ``not_on``."""
    while True:
        async with cluster.connect() as ws:
            if json.loads(await ws.recv())["slot"] == not_on:
                continue
            await ws.send(json.dumps({"join": "lobby", "name": name}))
            yield ws
            return


async def position_known(person: Person) -> None:
    """Wait until the page knows the position of the last that it has heard."""
    await person.page.wait_for_function(
        "() => { const it = rooms.get('lobby'); return it.position !== null && it.beyond === 0; }"
    )


def test_what_is_said_while_the_pages_worker_is_killed_is_shown_once_and_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with cluster_and_browser() as (cluster, browser):
            ada = await visit(cluster, browser, "Ada", PHONE, "light")
            await ada.introduce()
            slot = await ada.slot()
            async with plain_client(cluster, "Bob", not_on=slot) as bob:
                await say_many(bob, (f"before {number}" for number in range(3)))
                await position_known(ada)
                # The page has these, and knows no position after them: they come again, and are shown once.
                await ada.page.evaluate("() => { marking = setTimeout(() => {}, 1e8); }")
                await say_many(bob, (f"heard {number}" for number in range(3)))
                await expect(ada.messages).to_have_count(6)
                await ada.page.evaluate("() => { wait = 4; }")
                os.kill(cluster.worker_pids()[slot], signal.SIGKILL)
                await say_many(bob, (f"missed {number}" for number in range(10)))
                await expect(ada.page.get_by_text("You are back; that is all you missed")).to_be_visible()
                await expect(ada.page.get_by_text("While you were away")).to_have_count(1)
                await ada.page.evaluate("() => { marking = 0; }")
                await say_many(bob, ["after"])
                await expect(ada.messages.last.locator("p")).to_have_text("after")
                assert await ada.messages.locator("p").all_inner_texts() == [
                    *(f"before {number}" for number in range(3)),
                    *(f"heard {number}" for number in range(3)),
                    *(f"missed {number}" for number in range(10)),
                    "after",
                ]
                assert await no_sideways_scroll(ada.page)
                await ada.page.screenshot(path=os.environ.get("WSCLUSTER_SCREENSHOT", str(tmp_path / "back.png")))

                # The same once more, now that nothing is said.
                await position_known(ada)
                os.kill(cluster.worker_pids()[await ada.slot()], signal.SIGKILL)
                await expect(ada.page.get_by_text("You are back and missed nothing")).to_be_visible()
            assert not ada.complaints

    run(main())


def test_a_page_that_was_away_for_too_long_says_that_it_cannot_show_what_was_said() -> None:
    async def main() -> None:
        async with cluster_and_browser(room_log=10) as (cluster, browser):
            ada = await visit(cluster, browser, "Ada", DESKTOP, "dark")
            await ada.introduce()
            await position_known(ada)
            slot = await ada.slot()
            async with plain_client(cluster, "Bob", not_on=slot) as bob:
                await ada.page.evaluate("() => { wait = 600; }")
                os.kill(cluster.worker_pids()[slot], signal.SIGKILL)
                await expect(ada.banner).to_be_visible()
                await say_many(bob, (f"missed {number}" for number in range(300)))
                await ada.page.get_by_role("button", name="Try now").click()
                await expect(ada.page.get_by_text("what was written meanwhile is not kept any more")).to_be_visible()
                await expect(ada.messages).to_have_count(0)
                await say_many(bob, ["after"])
                await expect(ada.messages).to_have_count(1)
            assert not ada.complaints

    run(main())


def test_the_page_waits_for_a_server_that_is_away_and_can_be_told_to_try_now() -> None:
    async def main() -> None:
        async with cluster_and_browser() as (cluster, browser):
            ada = await visit(cluster, browser, "Ada", PHONE, "light")
            await ada.introduce()
            port = cluster.port
            assert await cluster.stop() == 0
            await expect(ada.banner).to_be_visible()
            await expect(ada.page.locator("#state")).to_have_text("Offline")
            await expect(ada.page.get_by_label("Message", exact=True)).to_have_attribute("placeholder", "Not connected")
            assert await no_sideways_scroll(ada.page)
            # Waits grow to seconds; a second cluster at the same place is found at once by the button.
            await ada.page.evaluate("() => { retryAt = Date.now() + 600_000; }")
            async with Cluster("examples.chat.handlers:chat", workers=1, port=port):
                await ada.page.get_by_role("button", name="Try now").click()
                await expect(ada.page.get_by_text("You are back")).to_be_visible()
                await ada.say("hello again")

    run(main())


def test_the_newest_message_is_in_sight_unless_one_reads_older_ones() -> None:
    async def main() -> None:
        async with cluster_and_browser() as (cluster, browser):
            ada, bob = await two_on_two_workers(cluster, browser, scheme="light")
            for number in range(4):
                await ada.say(f"message {number}" + "\nand another line" * 9)
            await expect(bob.messages.last).to_be_in_viewport()
            await bob.page.locator("#logs").evaluate("it => it.scrollTo(0, 0)")
            await expect(bob.messages.last).not_to_be_in_viewport()
            await ada.say("news")
            newer = bob.page.get_by_role("button", name="Newer messages")
            await expect(newer).to_be_visible()
            await newer.click()
            await expect(bob.messages.last).to_be_in_viewport()
            await bob.hears(ada, "news", await ada.slot())
            assert not bob.complaints

    run(main())
