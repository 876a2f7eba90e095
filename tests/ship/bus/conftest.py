"""The broker that these tests share."""

from tests.nats_server import nats_url

__all__ = ["nats_url"]
