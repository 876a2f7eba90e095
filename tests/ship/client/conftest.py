from collections.abc import Iterator

import pytest
from tests.ship.client.protocol_server import ProtocolServer, serving


@pytest.fixture
def server() -> Iterator[ProtocolServer]:
    with serving() as running:
        yield running
