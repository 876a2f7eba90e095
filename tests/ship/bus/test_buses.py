"""The bus in one process and over a real NATS broker: one contract, and what a broker's faults do."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ship.bus import LocalBus
from ship.bus import nats as nats_bus
from ship.bus.nats import NatsBus
from ship.bus.nats_address import parse_address
from ship.bus.nats_connection import BUFFER_BYTES, BrokerConnection
from ship.errors import ConfigurationError
from ship.ports.bus import Notice
from ship.testing.bus_contract import check_bus, check_buses
from ship.testing.nats_server import NatsServer
from ship.testing.ports import free_port

WAIT_S = 15.0


@asynccontextmanager
async def opened(url: str, secret: bytes) -> AsyncIterator[NatsBus]:
    bus = NatsBus(url, secret)
    await bus.open()
    try:
        yield bus
    finally:
        await bus.close()


@pytest.fixture
def secret() -> bytes:
    """Each test is a cluster of its own on the shared broker."""
    return secrets.token_bytes(32)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[NatsServer]:
    """A broker to be hurt."""
    server = NatsServer(tmp_path)
    server.start()
    yield server
    server.kill()


async def test_the_bus_in_one_process_keeps_the_contract() -> None:
    await check_bus(LocalBus())


async def test_the_bus_over_nats_keeps_the_contract(nats_url: str, secret: bytes) -> None:
    async with opened(nats_url, secret) as one, opened(nats_url, secret) as other:
        await check_bus(one)
        await check_buses(one, other)
        assert not one.missed()


async def test_clusters_on_one_broker_do_not_hear_each_other(nats_url: str, secret: bytes) -> None:
    async with opened(nats_url, secret) as one, opened(nats_url, b"another" * 5) as stranger:
        async with one.listen("a") as listener:
            stranger.publish("a", [Notice(1, "event", b"")])
            await flushed(stranger)
            assert await listener.take(0) == []


async def test_a_node_has_one_subscription_to_a_topic(nats_url: str, secret: bytes) -> None:
    async with opened(nats_url, secret) as bus:
        async with bus.listen("a"), bus.listen("a"), bus.listen("b"):
            assert len(bus._subscriptions) == 3, "one for each topic, and the one that every node has"
        assert len(bus._subscriptions) == 1


async def test_what_strangers_say_on_the_subject_does_no_harm(
    nats_url: str, secret: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    address = parse_address(nats_url)
    async with opened(nats_url, secret) as one, opened(nats_url, secret) as other:
        stranger = await BrokerConnection.open(address, *address.hosts[0])
        reading = asyncio.create_task(stranger.read(lambda number, payload: None))
        async with one.listen("a") as listener:
            subject = one._subject("a")
            genuine = one._signed(one._subject("b"), [Notice(99, "head", b"")])
            for payload in (b"", b"\xff" * 200, bytes(200_000), genuine, b"{}"):
                stranger.publish(subject, payload)
                stranger.publish(one._subject(""), payload)
            await stranger.ping()
            other.publish("a", [Notice(1, "event", b"body")])
            assert await listener.take(WAIT_S) == [Notice(1, "event", b"body")]
        assert not one.missed()
        assert [record.message for record in caplog.records if "not of this cluster" in record.message]
        stranger.abort()
        await asyncio.gather(reading, return_exceptions=True)


async def test_a_topic_cannot_speak_to_the_broker(nats_url: str, secret: bytes) -> None:
    topic = "ses_1 1\r\nPUB ship.x 0\r\n\r\nSUB >"
    async with opened(nats_url, secret) as one, opened(nats_url, secret) as other:
        async with one.listen(topic) as listener:
            other.publish(topic, [Notice(1, "event", b"body")])
            assert await listener.take(WAIT_S) == [Notice(1, "event", b"body")]


async def test_nodes_go_on_without_their_broker_and_find_it_again(broker: NatsServer, secret: bytes) -> None:
    async with opened(broker.url, secret) as one, opened(broker.url, secret) as other:
        async with one.listen("a") as here, other.listen("a") as there:
            broker.kill()
            await until(lambda: one._connection is None and other._connection is None)
            one.publish("a", [Notice(1, "event", b"")])
            assert await here.take(WAIT_S) == [Notice(1, "event", b"")]
            assert one.missed()
            assert one.missed(), "as long as it is cut"
            async with one.listen("b") as late:
                broker.start()
                await until(lambda: one._connection is not None and other._connection is not None)
                await flushed(one)
                await until(other.missed)
                await until(lambda: not other.missed())
                other.publish("b", [Notice(2, "event", b"")])
                assert await late.take(WAIT_S) == [Notice(2, "event", b"")]
            assert await there.take(0) == []


async def test_a_node_starts_without_its_broker(broker: NatsServer, secret: bytes) -> None:
    broker.kill()
    async with opened(broker.url, secret) as one:
        async with one.listen("a") as listener:
            one.publish("a", [Notice(1, "event", b"")])
            assert await listener.take(WAIT_S)
            broker.start()
            async with opened(broker.url, secret) as other:
                await until(lambda: one._connection is not None)
                await flushed(one)
                other.publish("a", [Notice(2, "event", b"")])
                assert await listener.take(WAIT_S) == [Notice(2, "event", b"")]


async def test_a_broker_that_stands_still_blocks_nobody_and_is_left(
    broker: NatsServer, secret: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_bus, "PING_EVERY_S", 0.1)
    monkeypatch.setattr(nats_bus, "PONG_WITHIN_S", 0.3)
    async with opened(broker.url, secret) as one, opened(broker.url, secret) as other:
        async with one.listen("a") as listener:
            broker.halt()
            began = time.monotonic()
            for _ in range(100):
                one.publish("a", [Notice(1, "event", bytes(512 * 1024))])
                await asyncio.sleep(0)
            connection = one._connection
            waiting = connection._writer.transport.get_write_buffer_size() if connection else 0
            assert waiting < BUFFER_BYTES + 1024**2
            assert time.monotonic() - began < 2
            assert listener.lagged, "it was heard here"
            listener.lagged = False
            await listener.take(0)
            await until(lambda: one._connection is None)
            broker.go_on()
            await until(lambda: one._connection is not None and other._connection is not None)
            await flushed(one)
            other.publish("a", [Notice(2, "event", b"")])
            assert await listener.take(WAIT_S) == [Notice(2, "event", b"")]


async def test_what_is_no_broker_is_left_and_tried_again(secret: bytes) -> None:
    tries = 0

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        answers = (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"INFO {\r\n",
            b"INFO {}\r\nPONG\r\nMSG a 1 99999999999\r\n",
            b"INFO {}\r\nPONG\r\nMSG a\r\n",
            b"x" * 2 * 1024**2,
        )
        writer.write(answers[tries % len(answers)])
        writer.close()

    async with await asyncio.start_server(nonsense, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with opened(f"nats://127.0.0.1:{port}", secret) as bus:
            await until(lambda: tries > 6)
            assert bus.missed()


async def test_credentials_are_used_and_not_shown(
    tmp_path: Path, secret: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = NatsServer(tmp_path, "--user", "ship", "--pass", "p@ss:word", credentials="ship:p%40ss%3Aword@")
    server.start()
    try:
        async with opened(server.url, secret) as one, opened(server.url, secret) as other:
            await check_buses(one, other)
        wrong = server.url.replace("word", "guess")
        with pytest.raises(ConfigurationError) as refused:
            await NatsBus(wrong, secret).open()
        assert refused.value.code == "bus_refused"
        assert "p@ss" not in caplog.text + str(refused.value) and "p%40ss" not in caplog.text
    finally:
        server.kill()


async def test_a_token_signs_in(tmp_path: Path, secret: bytes) -> None:
    server = NatsServer(tmp_path, "--auth", "t0ken", credentials="t0ken@")
    server.start()
    try:
        async with opened(server.url, secret) as one, opened(server.url, secret) as other:
            await check_buses(one, other)
    finally:
        server.kill()


async def test_tls_is_spoken_and_cannot_be_talked_down(tmp_path: Path, secret: bytes, nats_url: str) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    process = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=broker"),
        *("-addext", "subjectAltName=IP:127.0.0.1"),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0
    server = NatsServer(tmp_path, "--tls", "--tlscert", str(certificate), "--tlskey", str(key), scheme="tls")
    server.start()
    try:
        url = f"{server.url}?ca={certificate}"
        async with opened(url, secret) as one, opened(url, secret) as other:
            await check_buses(one, other)
        for wrong in (f"nats://127.0.0.1:{server.port}", nats_url.replace("nats://", "tls://")):
            with pytest.raises(ConfigurationError) as refused:
                await NatsBus(wrong, secret).open()
            assert refused.value.code == "bus_refused"
    finally:
        server.kill()


@pytest.mark.parametrize(
    "url", ["", "http://x", "nats://", "nats://h:port", "nats://h/path", "nats://h?x=1", "tls://h?ca=/none"]
)
def test_a_url_that_names_no_broker_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_address(url)
    assert refused.value.code == "bus_url_invalid"


def test_several_brokers_of_a_cluster_may_be_named() -> None:
    address = parse_address("nats://a:b@one,two:4333,[::1]:5")
    assert address.hosts == (("one", 4222), ("two", 4333), ("::1", 5))
    assert "b" not in repr(address)


async def test_the_next_broker_of_a_cluster_takes_over(broker: NatsServer, secret: bytes) -> None:
    async with opened(f"nats://127.0.0.1:{free_port()},127.0.0.1:{broker.port}", secret) as bus:
        await until(lambda: bus._connection is not None)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not true():
            await asyncio.sleep(0.01)


async def flushed(bus: NatsBus) -> None:
    """The broker has taken what this node has said so far."""
    assert bus._connection
    await bus._connection.ping()
