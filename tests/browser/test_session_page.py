"""The life of a session, seen and steered from the browser."""

import re

import pytest
from playwright.async_api import expect
from tests.browser.conftest import TASK_MS, Visitor
from tests.system.conftest import Ship, check_whole

pytestmark = [pytest.mark.browser, pytest.mark.system]

OFFLINE = (
    r"ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED_ENCODING|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE"
    r"|WebSocket connection to"
)


async def test_a_task_from_the_form_to_the_diff(visitor: Visitor) -> None:
    page = visitor.page
    await visitor.start("A test fails. Find the bug, fix it, and show that all tests pass.")
    await visitor.done()
    await expect(visitor.status).to_have_text("Ready")
    await expect(visitor.log.get_by_text("All tests pass now.")).to_be_visible()

    diff = page.get_by_role("region", name="timesheet/durations.py")
    await expect(diff).to_contain_text("round(float(amount)")
    said = await visitor.log.inner_text()
    assert said.index("I'll start with the tests") < said.index("python3 -m unittest")
    tests = visitor.log.get_by_role("button", name="Run python3 -m unittest").first
    await tests.click()
    await expect(visitor.log.get_by_text("FAIL: test_decimal_hours")).to_be_visible()
    await page.get_by_role("button", name="Plan 4/4").click()
    await expect(page.get_by_role("region", name="Plan").get_by_text("Find the cause")).to_be_visible()

    await page.get_by_role("tab", name="Sandbox").click()
    await expect(page.get_by_role("tabpanel", name="Sandbox").get_by_label("done")).to_have_count(4)
    await page.get_by_role("tab", name="Files").click()
    files = page.get_by_role("tabpanel", name="Files")
    await files.get_by_role("button", name="timesheet").click()
    await files.get_by_role("button", name="durations.py").click()
    await expect(files).to_contain_text("MINUTES = ")
    await page.get_by_role("tab", name="Details").click()
    await expect(page.get_by_role("tabpanel", name="Details")).to_contain_text("openai/demo")

    await page.get_by_role("link", name="All sessions").click()
    row = page.get_by_role("link", name=re.compile("A test fails")).first
    await expect(row).to_contain_text("+2")
    await expect(row).to_contain_text("Ready")


async def test_a_reload_in_mid_stream_and_a_killed_server_leave_no_gap(visitor: Visitor, ship: Ship) -> None:
    visitor.expected.append(OFFLINE)
    session_id = await visitor.start("Talk for 15 seconds", "long")
    await expect(visitor.log).to_contain_text("line 5", timeout=TASK_MS)
    await visitor.page.reload()
    await expect(visitor.log).to_contain_text("line 1 line 2 line 3 line 4 line 5")
    ship.kill()
    await expect(visitor.page.get_by_text("Reconnecting")).to_be_visible()
    ship.start()
    await expect(visitor.page.get_by_text("Reconnecting")).to_be_hidden()
    await visitor.done()
    check_whole(await ship.events(session_id))
    shown = await visitor.log.inner_text()
    said = [int(number) for number in re.findall(r"\bline (\d+)\b", shown)]
    assert said == list(range(1, len(said) + 1))
    assert len(said) > 5
    assert shown.count("That was all.") == 1


async def test_follow_ups_are_queued_taken_out_steered_noted_and_stopped(visitor: Visitor) -> None:
    page = visitor.page
    await visitor.start("Talk for 60 seconds", "long")
    await expect(visitor.log).to_contain_text("line 2", timeout=TASK_MS)

    composer = page.get_by_role("textbox", name="What next?")
    for text in ("First thing after", "Second thing after"):
        await composer.fill(text)
        await page.keyboard.press("Control+Enter")
        await expect(page.get_by_role("region", name="Queue").get_by_text(text)).to_be_visible()
    await page.get_by_role("button", name="Take out of the queue").first.click()
    await expect(page.get_by_role("region", name="Queue").get_by_text("First thing after")).to_be_hidden()
    await page.get_by_role("button", name="Take out of the queue").first.click()
    await expect(page.get_by_role("region", name="Queue")).to_be_hidden()

    await page.get_by_role("radio", name=re.compile("^Note")).click()
    await page.get_by_role("textbox", name="A note to the people here").fill("Look at this, Jo")
    await page.keyboard.press("Control+Enter")
    await expect(visitor.log.get_by_text("note, not for the agent")).to_be_visible()
    await page.get_by_role("radio", name=re.compile("^Steer")).click()
    await page.get_by_role("textbox", name="Tell the running task").fill("Be brief")
    await page.keyboard.press("Control+Enter")
    await expect(visitor.log.get_by_text("to the running task")).to_be_visible()

    await page.get_by_role("button", name="Stop").click()
    await expect(visitor.log.get_by_text("Stopped", exact=True).last).to_be_visible()
    await expect(visitor.status).to_have_text("Ready")


async def test_a_permission_is_given_and_another_refused_with_a_reason(visitor: Visitor) -> None:
    await visitor.start("Please run it", "permission", approval="Asks first")
    await expect(visitor.status).to_have_text("Needs you", timeout=TASK_MS)
    asked = visitor.page.get_by_role("alert", name="The agent needs you")
    await expect(asked).to_contain_text("echo granted")
    await visitor.accessible()
    await asked.get_by_role("button", name="Allow once").click()
    await visitor.done()
    await expect(visitor.log.get_by_text("Done, it ran.")).to_be_visible()
    await expect(visitor.log).to_contain_text("allowed")

    await visitor.page.get_by_role("textbox", name="What next?").fill("Please run it again")
    await visitor.page.get_by_role("button", name="Send").click()
    await asked.get_by_label("Why not, for the agent").fill("Not today", timeout=TASK_MS)
    await asked.get_by_role("button", name="Refuse").click()
    await expect(visitor.log).to_contain_text("refused")
    await expect(visitor.log).to_contain_text("Not today")


async def test_a_question_is_answered(visitor: Visitor) -> None:
    await visitor.start("Write a greeting", "question")
    asked = visitor.page.get_by_role("alert", name="The agent needs you")
    await asked.get_by_label("Good day").check(timeout=TASK_MS)
    await asked.get_by_role("button", name="Answer").click()
    await visitor.done()
    await expect(visitor.log).to_contain_text("Good day")


async def test_a_repository_that_cannot_be_cloned_says_so_and_can_be_retried(
    visitor: Visitor, ship: Ship
) -> None:
    page = visitor.page
    away = ship.repository.with_name("away")
    ship.repository.rename(away)
    try:
        visitor.expected.append("Failed to load resource")
        await page.goto(ship.url)
        await page.get_by_label("Repository").fill(str(ship.repository))
        await page.get_by_label("Task", exact=True).fill("Fix it")
        await page.get_by_role("button", name="Start").click()
        failure = page.get_by_role("alert")
        await expect(failure.first).to_be_visible(timeout=TASK_MS)
        await expect(page.get_by_role("button", name=re.compile("Retry|Try again"))).to_be_visible()
    finally:
        away.rename(ship.repository)
    await page.get_by_role("button", name=re.compile("Retry|Try again")).click()
    await visitor.done()


async def test_archiving_asks_first_and_ends_the_session(visitor: Visitor, ship: Ship) -> None:
    page = visitor.page
    session_id = await ship.begin("echo", prompt="")
    await page.goto(f"{ship.url}/sessions/{session_id}")
    await page.get_by_role("button", name="Archive").click()
    await page.get_by_role("alertdialog").get_by_role("button", name="Keep it").click()
    await expect(page.get_by_role("alertdialog")).to_be_hidden()
    await expect(visitor.status).not_to_have_text("Archived")
    await page.get_by_role("button", name="Archive").click()
    await page.get_by_role("alertdialog").get_by_role("button", name="Archive").click()
    await expect(visitor.status).to_have_text("Archived")
    await page.reload()
    await expect(page.get_by_text("This session is archived")).to_be_visible()
