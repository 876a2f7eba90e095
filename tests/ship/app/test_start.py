"""The start: what is asked most is answered before the application is there, and one that cannot be built ends the process."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import httpx
from starlette.types import ASGIApp
from tests.ship.api.conftest import Served, served  # noqa: F401 - a fixture

from ship.api.application import create_api
from ship.api.late import LateApplication
from ship.testing.serving import serving

SLOW_TO_IMPORT = ("fastapi", "httpx", "e2b", "websockets", "starlette.routing")
DEADLINE_S = 60


def test_a_start_imports_nothing_that_it_needs_only_later() -> None:
    said = f"import sys; import ship.app.serve; print([name for name in {SLOW_TO_IMPORT} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_hot_requests_are_answered_and_cold_ones_wait_while_the_application_is_built(
    served: Served,  # noqa: F811 - the fixture
) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def make() -> ASGIApp:
        begun.set()
        await may_end.wait()
        app = await asyncio.to_thread(create_api)
        app.state.services = served.services
        return app

    late = LateApplication(make)
    headers = {"Authorization": f"Bearer {served.token}"}
    async with (
        asyncio.timeout(DEADLINE_S),
        serving(late, served.services) as url,
        httpx.AsyncClient(base_url=url, headers=headers) as client,
    ):
        building = asyncio.create_task(late.build())
        await begun.wait()
        cold = [
            asyncio.create_task(client.get("/api/v1/me")),
            asyncio.create_task(client.post("/api/v1/sessions", content=b"{")),
        ]
        repository = {"repository": {"source": "https://example.org/a.git"}}
        session = await client.post("/api/v1/sessions", json=repository)
        there = f"/api/v1/sessions/{session.json()['id']}"
        said = await client.post(f"{there}/messages", json={"text": "early"})
        read = [await client.get(f"{there}/{what}") for what in ("messages", "events")]
        assert [answer.status_code for answer in (session, said, *read)] == [201, 201, 200, 200]
        assert not any(waiting.done() for waiting in cold)
        may_end.set()
        assert [(await waiting).status_code for waiting in cold] == [200, 400]
        await building


def test_an_application_that_cannot_be_built_ends_the_process_with_its_reason(tmp_path: Path) -> None:
    broken = "import sys; sys.modules['fastapi'] = None; from ship.cli import main; main()"
    environment = {
        **os.environ,
        "SHIP_SANDBOX_API_URL": "http://127.0.0.1:9",
        "SHIP_SANDBOX_API_KEY": "e2b_" + "0" * 40,
    }
    arguments = ["up", "--listen", "127.0.0.1:0", "--data", str(tmp_path / "data")]
    done = subprocess.run(
        [sys.executable, "-c", broken, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode not in (0, None)
    assert "a part of Ship has failed" in done.stderr
    assert "fastapi" in done.stderr
