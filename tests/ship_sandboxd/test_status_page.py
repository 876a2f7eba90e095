"""The status page of a host, in a real browser."""

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import API_KEY, Host, eventually
from e2b import Sandbox
from e2b.exceptions import NotFoundException
from playwright.sync_api import Browser, Page, expect, sync_playwright

pytestmark = pytest.mark.browser

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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that must not complain, but about a key that it was given."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert [text for text in complaints if "401" not in text] == []


def enter(page: Page, host: Host, key: str = API_KEY) -> None:
    page.goto(host.url)
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Open").click()


def test_sandboxes_are_shown_and_ended_by_who_has_a_key(page: Page, own_host: Callable[..., Host]) -> None:
    host, asked = own_host(), set()
    page.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
    enter(page, host, "wrong")
    expect(page.get_by_text("This key is not known here.")).to_be_visible()
    enter(page, host)
    expect(page.get_by_text("No sandboxes")).to_be_visible()
    sandbox = host.create(metadata={"task": "<b>bold</b>"})
    sandbox.commands.run("curl -sx http://127.0.0.1:3128 http://10.1.2.3/ || true")
    row = page.get_by_role("listitem").filter(has_text=sandbox.sandbox_id)
    expect(row.get_by_text("base · task=<b>bold</b>")).to_be_visible()
    expect(row.get_by_text("running")).to_be_visible()
    expect(row.get_by_text("MiB").first).to_be_visible()
    row.get_by_role("button", name="Log").click()
    expect(row.get_by_text("egress refused").first).to_be_visible()
    page.get_by_label("Filter").fill("nothing like it")
    expect(row).to_be_hidden()
    page.get_by_label("Filter").fill("bold")
    row.get_by_role("button", name="Kill").click()
    row.get_by_role("button", name="Really kill").click()
    expect(row).to_have_count(0)

    def gone() -> bool:
        try:
            Sandbox.get_info(sandbox.sandbox_id, **host.options_of_sdk)
        except NotFoundException:
            return True
        return False

    assert eventually(gone)
    assert asked == {host.listen}


def test_the_key_is_forgotten_with_the_tab(page: Page, host: Host) -> None:
    enter(page, host)
    expect(page.get_by_role("button", name="Forget the key")).to_be_visible()
    page.reload()
    expect(page.get_by_role("button", name="Forget the key")).to_be_visible()
    other = page.context.new_page()
    other.goto(host.url)
    expect(other.get_by_label("API key")).to_be_visible()
    other.close()
    page.get_by_role("button", name="Forget the key").click()
    expect(page.get_by_label("API key")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_the_page_may_load_and_run_nothing_but_its_own_files(host: Host) -> None:
    answer = httpx.get(host.url)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "<script>" not in answer.text and "style=" not in answer.text
