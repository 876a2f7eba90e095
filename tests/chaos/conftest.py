"""The servers below the nodes, shared by the tests of a file."""

from collections.abc import Iterator

import pytest

from ship.testing.postgres_server import PostgresServer, postgres_server
from ship.testing.s3_servers import S3Server, moto_server


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """One that may be stopped under those who use it."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def bucket() -> Iterator[S3Server]:
    """An S3 server with a bucket."""
    with moto_server() as server:
        yield server
