from collections.abc import Iterator

import pytest

from client.protocol_server import ProtocolServer, serving


@pytest.fixture
def server() -> Iterator[ProtocolServer]:
    with serving() as running:
        yield running
