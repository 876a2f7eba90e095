"""The choice beside the web app's search, on a server that can search by meaning, too."""

import asyncio
import re
from collections.abc import Iterator

import pytest
from playwright.async_api import expect
from tests.browser.conftest import PHONE, WIDE, Visitor
from tests.system.conftest import Ship, running_ship

from ship.words import words

pytest.importorskip("wordllama", reason="it has no wheel for this machine")
pytestmark = [pytest.mark.browser, pytest.mark.system]

SAID = "Fix the login form: users cannot authenticate"
WANTED = "people are unable to sign in"


@pytest.fixture(scope="module")
def ship(tmp_path_factory: pytest.TempPathFactory, model_url: str) -> Iterator[Ship]:
    """A running Ship that finds by meaning."""
    with running_ship(tmp_path_factory, model_url, SHIP_SEMANTIC_SEARCH="true") as running:
        yield running


async def has_vectors(ship: Ship) -> None:
    """Waits until what was said is found: its vectors are made behind the answers."""
    async with ship.client() as client, asyncio.timeout(20):
        asked = {"q": WANTED, "mode": "meaning"}
        while not (await client.get("/api/v1/search", params=asked)).json()["items"]:
            await asyncio.sleep(0.05)


async def test_what_means_the_same_is_found_until_the_server_offers_it_no_more(
    visitor: Visitor, ship: Ship
) -> None:
    page = visitor.page
    assert not set(words(WANTED)) & set(words(SAID))
    session_id = await ship.begin("echo", f"Monday's list\n{SAID}")
    await has_vectors(ship)
    found = page.get_by_role("list", name="Found").get_by_role("link")
    nothing = page.get_by_role("heading", name="Nothing was found")

    await page.get_by_role("searchbox").fill(WANTED)
    await expect(nothing).to_be_visible()
    await expect(page.get_by_text("End a word with *")).to_be_visible()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("radio", name="Words")).to_be_focused()
    await page.keyboard.press("ArrowRight")
    await expect(page.get_by_role("radio", name="Meaning")).to_be_focused()
    await page.keyboard.press("Space")
    await expect(page.get_by_role("radio", name="Meaning")).to_be_checked()
    await expect(found).to_have_count(1)
    await expect(found).to_contain_text(SAID)
    for size in (WIDE, PHONE):
        await page.set_viewport_size(size)
        for scheme in ("light", "dark"):
            await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            await page.reload()
            await expect(page.get_by_role("radio", name="Meaning")).to_be_checked()
            await expect(found).to_have_count(1)
            await visitor.accessible()
            await visitor.fits()

    await page.get_by_role("searchbox").fill("bananas and oranges")
    await expect(nothing).to_be_visible()
    await expect(page.get_by_text("near to this in meaning")).to_be_visible()

    # Started anew without, behind the open page.
    visitor.expected += ["409", "ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING"]
    await asyncio.to_thread(ship.kill)
    ship.set(SHIP_SEMANTIC_SEARCH="false")
    await asyncio.to_thread(ship.start)
    await page.get_by_role("searchbox").fill("authenticate")
    await expect(page.get_by_text("this server does not search by meaning")).to_be_visible()
    await page.get_by_role("button", name="Search by words").click()
    await found.click()
    await page.wait_for_url(re.compile(session_id))
