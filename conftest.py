"""Real services, shared by all tests that ask for one: a PostgreSQL server, a NATS broker."""

import os
from collections.abc import AsyncIterator, Iterator

import pytest

from ship.testing import postgres_server as postgres
from ship.testing.nats_server import NatsServer


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.PostgresServer]:
    """A server of our own, durable as in earnest; ``SHIP_TEST_DATABASE`` is not asked."""
    with postgres.postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_address(request: pytest.FixtureRequest) -> str:
    """The URL of a database in which schemas may be made: of ``SHIP_TEST_DATABASE``, or of our own server."""
    given = os.environ.get("SHIP_TEST_DATABASE", "")
    return given or str(request.getfixturevalue("postgres_server").url("postgres"))


@pytest.fixture
async def postgres_url(postgres_address: str) -> AsyncIterator[str]:
    """The URL of an empty database, for one test."""
    async with postgres.fresh_database(postgres_address) as url:
        yield url


@pytest.fixture(scope="session")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker for tests that do it no harm: of ``SHIP_TEST_NATS``, or of our own."""
    if given := os.environ.get("SHIP_TEST_NATS", ""):
        yield given
        return
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server.url
    server.kill()
