"""A real server on a free port, over a real store, with a sandbox host in memory."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from ship.accounts.sandbox_tokens import SandboxTokens
from ship.accounts.tokens import Tokens
from ship.api.application import create_api
from ship.api.services import Services
from ship.blobs.folder import FolderBlobs
from ship.bus import LocalBus
from ship.config import LimitSettings, ModelSpec, Provider
from ship.errors import InvalidInput
from ship.ports.embeddings import EmbeddingModel
from ship.sessions.effects import Effects, RunnerSettings
from ship.sessions.service import Sessions
from ship.sessions.worker import Worker
from ship.store.sqlite import SqliteStore
from ship.testing.sandbox_hosts import PretendSandboxHost
from ship.testing.serving import serving

PROVIDER = Provider(
    name="scripted",
    protocol="openai",
    base_url="http://127.0.0.1:9/v1",
    models=(ModelSpec(name="demo"), ModelSpec(name="echo")),
)


class Served(NamedTuple):
    """A running server and what is behind it."""

    url: str
    client: httpx.AsyncClient
    services: Services
    host: PretendSandboxHost
    token: str


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def check_repository(source: str) -> None:
    if not source.startswith(("https://", "/")):
        raise InvalidInput(f"not a repository: {source}", code="repository_invalid")


async def store_bundle(stream: AsyncIterator[bytes]) -> str:
    return "a" * 64 if b"".join([piece async for piece in stream]) else ""


async def ready() -> None:
    return


@pytest.fixture
async def served(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """Finds by meaning where the test has a fixture ``embeddings``."""
    has_model = "embeddings" in request.fixturenames
    embeddings: EmbeddingModel | None = request.getfixturevalue("embeddings") if has_model else None
    store = SqliteStore(tmp_path / "ship.db")
    await store.open()
    sessions = Sessions(store, LocalBus(), now_ms, embeddings=embeddings)
    tokens = Tokens(store, now_ms)
    signer = SandboxTokens(b"s" * 32)
    host = PretendSandboxHost()
    services = Services(
        sessions=sessions,
        tokens=tokens,
        sandbox_tokens=signer,
        blobs=FolderBlobs(tmp_path / "blobs"),
        host=host,
        limits=LimitSettings(prompt_bytes=10_000, artifact_bytes=1_000_000),
        providers=(PROVIDER,),
        default_model="scripted/demo",
        control_url="http://ship.internal",
        check_repository=check_repository,
        store_bundle=store_bundle,
        ready=ready,
    )
    app = create_api()
    app.state.services = services
    runner = RunnerSettings("base", "http://ship.internal", signer.issue)
    worker = asyncio.create_task(Worker(store, sessions, Effects(sessions, host, runner)).run())
    token = await tokens.create("me")
    headers = {"Authorization": f"Bearer {token}"}
    async with serving(app, services) as url, httpx.AsyncClient(base_url=url, headers=headers) as client:
        yield Served(url, client, services, host, token)
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    await store.close()
