from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from ship.app import web


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A built web app, with a secret beside it."""
    (tmp_path / "secret.txt").write_text("secret")
    folder = tmp_path / "web_dist"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("the page")
    (folder / "favicon.svg").write_text("the icon")
    (folder / "assets/app.js").write_text("the script")
    monkeypatch.setattr(web, "web_folder", lambda: folder)
    return folder


async def get(path: str) -> httpx.Response:
    transport = httpx.ASGITransport(Starlette(routes=web.routes()))
    async with httpx.AsyncClient(transport=transport, base_url="http://ship") as client:
        return await client.get(path)


async def test_files_are_served_and_assets_are_kept_for_good(folder: Path) -> None:
    icon, script = await get("/favicon.svg"), await get("/assets/app.js")

    assert (icon.text, script.text) == ("the icon", "the script")
    assert "immutable" in script.headers["cache-control"]
    assert "default-src 'self'" in icon.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/sessions/ses_1",
        "/%00",
        "/a%00b",
        "/" + "x" * 300,
        "/" + "x/" * 3000,
        "/%ff",
        "/..%2fsecret.txt",
        "/%2e%2e%2fsecret.txt",
        "/assets",
    ],
)
async def test_every_other_address_is_answered_with_the_page(folder: Path, path: str) -> None:
    answer = await get(path)

    assert (answer.status_code, answer.text) == (200, "the page")
    assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path", ["/assets/%00", "/assets/" + "x" * 300, "/assets/..%2f..%2fsecret.txt", "/api/x"]
)
async def test_assets_and_routes_that_are_not_there_are_not_found(folder: Path, path: str) -> None:
    assert (await get(path)).status_code == 404
