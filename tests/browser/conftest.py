"""A real Chromium against a whole Ship. A test fails when the page's console shows an error that it did not expect."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.async_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    ViewportSize,
    async_playwright,
    expect,
)
from tests.system.conftest import Ship
from tests.system.conftest import model_url as model_url
from tests.system.conftest import ship as ship

from ship.app import tokens

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE: ViewportSize = {"width": 1440, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}
AXE = Path(__file__).parents[2] / "web/node_modules/axe-core/axe.min.js"
TASK_MS = 90_000

expect.set_options(timeout=20_000)


@dataclass
class Visitor:
    """One signed-in person at one window."""

    ship: Ship
    page: Page
    expected: list[str] = field(default_factory=list)
    """Patterns of console errors that belong to the test."""
    errors: list[str] = field(default_factory=list)

    def hear(self, message: ConsoleMessage) -> None:
        """Keeps what the console complains about."""
        if message.type in ("error", "warning"):
            self.errors.append(f"{message.text} ({message.location['url']})")

    async def sign_in(self) -> None:
        """Opens a one-time link, as `ship login-link` prints it."""
        await self.page.goto(await asyncio.to_thread(tokens.login_link, self.ship.data))
        await expect(self.page.get_by_role("heading", name="What should be done?")).to_be_visible()

    async def start(self, prompt: str, model: str = "demo", *, approval: str = "") -> str:
        """Fills the form in and sends it; returns the session's id."""
        page = self.page
        await page.goto(self.ship.url)
        await page.get_by_label("Repository").fill(str(self.ship.repository))
        await self.choose("Model", model)
        if approval:
            await self.choose("Approval", approval)
        await page.get_by_label("Task", exact=True).fill(prompt)
        await page.keyboard.press("Control+Enter")
        await page.wait_for_url("**/sessions/*")
        return page.url.rpartition("/")[2]

    async def choose(self, name: str, option: str) -> None:
        """Picks an option of a select."""
        await self.page.get_by_role("combobox", name=name).click()
        await self.page.get_by_role("option", name=re.compile(rf"^{re.escape(option)}(?!\w|\+)")).click()

    @property
    def status(self) -> Locator:
        """The session's state in a word."""
        return self.page.locator("header [role=status]").first

    @property
    def log(self) -> Locator:
        """The conversation."""
        return self.page.get_by_role("log")

    async def done(self) -> None:
        """Waits until the task has ended well."""
        await expect(self.log.get_by_text("Done", exact=True).last).to_be_visible(timeout=TASK_MS)

    async def accessible(self) -> None:
        """Fails on anything that axe finds, once nothing fades or rises any more: half seen, no text has its contrast."""
        await self.page.evaluate(AXE.read_text())
        await self.page.evaluate(
            """document.getAnimations().forEach((animation) => {
                if (animation.effect.getComputedTiming().endTime !== Infinity) animation.finish();
            })"""
        )
        found = await self.page.evaluate(
            "axe.run().then(({violations}) => violations.map(({id, nodes}) => [id, nodes.map(({html}) => html)]))"
        )
        assert found == []

    async def fits(self) -> None:
        """Fails when the page scrolls sideways."""
        width = await self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert width <= 0


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """A Chromium of the test's own."""
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        await opened.close()


@pytest.fixture
async def visitor(ship: Ship, browser: Browser) -> AsyncIterator[Visitor]:
    """Somebody signed in, at a wide window."""
    page = await browser.new_page(viewport=WIDE)
    one = Visitor(ship, page)
    page.on("console", one.hear)
    page.on("pageerror", lambda error: one.errors.append(str(error)))
    await one.sign_in()
    yield one
    unexpected = [text for text in one.errors if not any(re.search(known, text) for known in one.expected)]
    assert unexpected == []
