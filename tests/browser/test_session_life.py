"""The queue, the pause, the past, forks and search, from the browser."""

import re

import pytest
from playwright.async_api import expect
from tests.browser.conftest import PHONE, TASK_MS, WIDE, Visitor
from tests.system.conftest import Ship

pytestmark = [pytest.mark.browser, pytest.mark.system]


async def test_waiting_tasks_are_edited_limited_and_put_in_another_order(visitor: Visitor) -> None:
    page = visitor.page
    await visitor.start("Talk for 60 seconds", "long")
    await expect(visitor.log).to_contain_text("line 2", timeout=TASK_MS)
    queue = page.get_by_role("region", name="Queue")
    waiting = queue.get_by_role("listitem")
    for place, text in enumerate(("First thing", "Second thing", "Third thing")):
        await page.get_by_role("textbox", name="What next?").fill(text)
        await page.keyboard.press("Control+Enter")
        await expect(waiting.nth(place)).to_contain_text(text)

    await waiting.nth(2).get_by_role("button", name="Earlier").press("Enter")
    await expect(waiting.nth(1)).to_contain_text("Third thing")
    await expect(waiting.nth(1).get_by_role("button", name="Earlier")).to_be_focused()
    await page.keyboard.press("Alt+ArrowUp")
    await expect(waiting.nth(0)).to_contain_text("Third thing")
    await expect(waiting.nth(2)).to_contain_text("Second thing")

    await waiting.nth(0).get_by_role("button", name="Edit").click()
    await queue.get_by_role("textbox", name="What the task says").fill("Another thing")
    await queue.get_by_role("button", name="Limits").click()
    await page.get_by_label("Working time").fill("30")
    await visitor.accessible()
    await page.keyboard.press("Enter")
    await queue.get_by_role("button", name="Save").click()
    await expect(waiting.nth(0)).to_contain_text("Another thing")
    await expect(waiting.nth(0)).to_contain_text("30m")
    await page.get_by_role("button", name="Stop").click()
    await expect(visitor.log).to_contain_text("at most 30m", timeout=TASK_MS)


async def test_a_session_is_paused_in_mid_task_and_goes_on(visitor: Visitor, ship: Ship) -> None:
    page = visitor.page
    await visitor.start("Talk for 15 seconds", "long")
    await expect(visitor.log).to_contain_text("line 3", timeout=TASK_MS)
    await page.get_by_role("button", name="Pause").click()
    await expect(visitor.status).to_have_text("Paused", timeout=TASK_MS)
    await expect(page.get_by_text("Paused. A message resumes it.")).to_be_visible()
    await visitor.accessible()
    session = page.url
    await page.goto(ship.url)
    row = page.get_by_role("link", name=re.compile("Talk for 15 seconds"))
    await expect(row.first).to_contain_text("Paused")
    await page.goto(session)
    await page.get_by_role("button", name="Resume").last.click()
    await visitor.done()
    await expect(visitor.log.get_by_text("resumed the session")).to_be_visible()


async def test_the_past_is_looked_at_and_forked(visitor: Visitor) -> None:
    page = visitor.page
    session_id = await visitor.start("A test fails. Find the bug, fix it, and show that all tests pass.")
    await visitor.done()
    await page.get_by_role("tab", name="History").click()
    history = page.get_by_role("tabpanel", name="History")
    point = history.get_by_role("link", name=re.compile("^After"))
    await point.click()
    past = page.get_by_role("region", name="The past")
    await expect(past).to_contain_text("You look at the past")
    await expect(visitor.log.get_by_text("Done", exact=True)).to_be_hidden()
    await expect(page.get_by_role("textbox", name="What next?")).to_be_hidden()
    await visitor.accessible()
    await page.set_viewport_size(PHONE)
    await visitor.fits()
    await visitor.accessible()
    await page.set_viewport_size(WIDE)

    await history.get_by_role("link", name=re.compile("^Diff of")).click()
    await expect(page.get_by_role("region", name="timesheet/durations.py")).to_be_visible()
    await page.get_by_role("tab", name="History").click()
    await history.get_by_role("slider", name="Moment").press("Home")
    await expect(past).to_contain_text("event 1 of")
    await expect(visitor.log.get_by_text("I'll start with the tests")).to_be_hidden()
    await page.wait_for_url("**at=1")
    await page.reload()
    await expect(past).to_contain_text("event 1 of")
    await past.get_by_role("button", name="Back to now").click()
    await expect(past).to_be_hidden()
    await visitor.done()

    await history.get_by_role("button", name="Take a checkpoint").click()
    await expect(history.get_by_role("link", name=re.compile("^Asked for"))).to_be_visible(timeout=TASK_MS)
    await history.get_by_role("button", name=re.compile("^Fork from: After")).click()
    dialog = page.get_by_role("dialog", name="Fork the session")
    await expect(dialog.get_by_role("textbox", name="First task")).to_be_focused()
    await visitor.accessible()
    await dialog.get_by_label("Title").fill("Another way")
    await dialog.get_by_role("button", name="Fork").click()
    await expect(page.get_by_role("heading", name="Another way")).to_be_visible()
    await expect(visitor.status).to_have_text("Ready", timeout=TASK_MS)
    await expect(page.get_by_role("region", name="timesheet/durations.py")).to_be_visible()
    await visitor.log.get_by_role("link", name="See where it left").click()
    await page.wait_for_url(re.compile(session_id))
    await expect(past).to_be_visible()


async def test_what_was_said_is_found_from_the_keyboard(visitor: Visitor, ship: Ship) -> None:
    page = visitor.page
    session_id = await ship.begin("echo", "Say something about albatrosses")
    await page.goto(ship.url)
    await expect(page.get_by_role("searchbox")).to_be_visible()
    await page.keyboard.press("Control+k")
    await expect(page.get_by_role("searchbox")).to_be_focused()
    await expect(
        page.get_by_role("radio", name="Meaning"), "this server searches by words alone"
    ).to_have_count(0)
    found = page.get_by_role("list", name="Found").get_by_role("link")
    await page.keyboard.type("zebra")
    await expect(page.get_by_role("heading", name="Nothing was found")).to_be_visible()
    await page.get_by_role("searchbox").fill("albatross*")
    await expect(found.first).to_contain_text("albatrosses")
    await visitor.accessible()
    await page.keyboard.press("ArrowDown")
    await expect(found.first).to_be_focused()
    await page.keyboard.press("Enter")
    await page.wait_for_url(re.compile(session_id))
    await page.go_back()
    await expect(page.get_by_role("searchbox")).to_have_value("albatross*")
