"""Every page at every size: usable, without complaints from the console or from axe."""

import re

import pytest
from playwright.async_api import Browser, expect
from tests.browser.conftest import PHONE, WIDE, Visitor
from tests.system.conftest import Ship

pytestmark = [pytest.mark.browser, pytest.mark.system]


async def test_each_view_fits_and_is_accessible(visitor: Visitor) -> None:
    await visitor.start("A test fails. Find the bug, fix it, and show that all tests pass.")
    await visitor.done()
    session = visitor.page.url
    for size in (WIDE, PHONE):
        await visitor.page.set_viewport_size(size)
        for scheme in ("light", "dark"):
            await visitor.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            await visitor.page.goto(visitor.ship.url)
            await expect(visitor.page.get_by_role("link", name="A test fails").first).to_be_visible()
            await check(visitor)
            await visitor.page.goto(session)
            await visitor.done()
            for tab in await visitor.page.get_by_role("tab").all():
                await tab.click()
                await expect(visitor.page.get_by_role("tabpanel")).to_be_visible()
                await check(visitor)


async def check(visitor: Visitor) -> None:
    """The view as it stands fits its window and is accessible."""
    await visitor.page.wait_for_load_state("networkidle")
    await visitor.accessible()
    await visitor.fits()


async def test_a_browser_that_is_not_signed_in_is_told_how(ship: Ship, browser: Browser) -> None:
    page = await browser.new_page(viewport=PHONE)
    for path in ("/", "/sessions/ses_nothing"):
        await page.goto(ship.url + path)
        await expect(page.get_by_role("heading", name="Sign in with a link")).to_be_visible()
        await expect(page.get_by_text("ship login-link")).to_be_visible()


async def test_an_address_that_leads_nowhere_says_so(visitor: Visitor) -> None:
    visitor.expected.append("404")
    for path in ("/nowhere", "/sessions/ses_nothing"):
        await visitor.page.goto(visitor.ship.url + path)
        await expect(
            visitor.page.get_by_role("heading", name="There is nothing at this address")
        ).to_be_visible()
        await visitor.page.get_by_role("link", name="All sessions").click()
        await expect(visitor.page.get_by_role("heading", name="What should be done?")).to_be_visible()


async def test_the_theme_is_chosen_and_kept(visitor: Visitor) -> None:
    page = visitor.page
    # A locator: `wait_for_function` evaluates a string in the page, which its policy forbids.
    document, dark = page.locator("html"), re.compile(r"\bdark\b")
    await page.emulate_media(color_scheme="dark")
    await expect(document).to_have_class(dark)
    await page.get_by_role("button", name="Theme: system").click()
    await expect(document).not_to_have_class(dark)
    await page.reload()
    await expect(page.get_by_role("button", name="Theme: light")).to_be_visible()
    await expect(document).not_to_have_class(dark)


async def test_the_slash_key_leads_to_the_prompt(visitor: Visitor) -> None:
    await visitor.page.keyboard.press("/")
    await expect(visitor.page.get_by_label("Task", exact=True)).to_be_focused()
    await visitor.page.keyboard.type("a/b")
    await expect(visitor.page.get_by_label("Task", exact=True)).to_have_value("a/b")


async def test_the_list_follows_without_a_reload(visitor: Visitor, ship: Ship) -> None:
    await expect(visitor.page.get_by_role("heading", name="Sessions")).to_be_visible()
    await visitor.page.wait_for_load_state("load")
    await ship.begin("echo", "A task from elsewhere")
    row = visitor.page.get_by_role("link", name="A task from elsewhere")
    await expect(row).to_contain_text("Ready", timeout=60_000)
