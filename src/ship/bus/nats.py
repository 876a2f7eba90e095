"""The bus over a NATS broker: one subscription for each topic that is listened to on this node.

Nothing here waits for the broker. A node without it goes on by itself: its own listeners hear all that it publishes, and what the
others published is read from the log. Each message is signed with the cluster's secret and sent on a subject that only who has the
secret knows, so that a stranger on the broker can neither speak to the nodes nor tell what is spoken of.
"""

import asyncio
import hashlib
import hmac
import itertools
import logging
import random
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from ship.bus.local import BoundedListener, LocalBus
from ship.bus.nats_address import BrokerAddress, parse_address
from ship.bus.nats_connection import BrokerConnection, BrokerRefused
from ship.errors import ConfigurationError
from ship.ports.bus import HEAD, Notice

CONNECT_S = 5.0
STANDING_S = 1.0
PING_EVERY_S, PONG_WITHIN_S = 2.0, 5.0
BACKOFF_S = (0.05, 0.2, 0.5, 1.0, 2.0)
SIGNATURE_BYTES = 16
STRANGERS_EVERY_S = 60.0
GAPS = 0
"""The subscription that every node has: who could not send something for a while says so there."""

_log = logging.getLogger("ship.bus")


class _Message(msgspec.Struct, frozen=True, array_like=True):
    node: str
    notices: list[Notice]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Message)


class _Subscription:
    """One topic of this node. ``standing`` is done when the broker has taken the subscription."""

    def __init__(self, topic: str, subject: str) -> None:
        self.topic = topic
        self.subject = subject
        self.listeners = 0
        self.standing: asyncio.Future[None] | None = None


class NatsBus:
    """A ``Bus`` between all nodes that have the same secret."""

    def __init__(self, url: str, secret: bytes) -> None:
        """Raises ConfigurationError (``bus_url_invalid``)."""
        self._address: BrokerAddress = parse_address(url)
        self._key = hashlib.blake2b(secret, digest_size=32, person=b"ship bus").digest()
        self._node = secrets.token_hex(8)
        self._local = LocalBus()
        self._hear: Callable[[str, list[Notice]], None] = lambda topic, notices: None
        self._numbers = itertools.count(1)
        self._subscriptions = {GAPS: _Subscription("", self._subject(""))}
        self._by_topic: dict[str, int] = {}
        self._connection: BrokerConnection | None = None
        self._missed = False
        self._dropped = False
        self._stranger_at_s = -STRANGERS_EVERY_S
        self._keeping: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, and stay connected until ``close``. A broker that does not answer yet is no error.

        Raises:
            ConfigurationError: ``bus_refused``: the broker does not let us in.
        """
        try:
            await self._connect(self._address.hosts[0])
        except BrokerRefused as error:
            raise ConfigurationError(
                f"the bus at {self._address} refuses us: {error}",
                code="bus_refused",
                hint="Look at the user, the password and the scheme in the URL of the bus.",
            ) from error
        except (OSError, TimeoutError, ValueError) as error:
            _log.error(
                "the bus at %r does not answer; going on without it until it does: %s", self._address, error
            )
        self._keeping = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Leave."""
        if self._keeping:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._connection:
            self._connection.abort()

    def publish(self, topic: str, notices: list[Notice]) -> None:
        """As the port says."""
        self._local.publish(topic, notices)
        self._send(topic, notices)

    def publish_here(self, topic: str, notices: list[Notice]) -> None:
        """As the port says."""
        self._local.publish(topic, notices)

    @asynccontextmanager
    async def listen(self, topic: str) -> AsyncIterator[BoundedListener]:
        """As the port says."""
        async with self._local.listen(topic) as listener:
            subscription = self._subscribe(topic)
            subscription.listeners += 1
            try:
                if subscription.standing and not subscription.standing.done():
                    await asyncio.wait([subscription.standing], timeout=STANDING_S)
                yield listener
            finally:
                subscription.listeners -= 1
                if not subscription.listeners:
                    self._unsubscribe(topic)

    def topics(self) -> list[str]:
        """As the port says."""
        return self._local.topics()

    def overhear(self, hear: Callable[[str, list[Notice]], None]) -> None:
        """As the port says."""
        self._hear = hear

    def missed(self) -> bool:
        """As the port says."""
        missed = self._missed or self._connection is None
        self._missed = False
        return missed

    def _subscribe(self, topic: str) -> _Subscription:
        if topic in self._by_topic:
            return self._subscriptions[self._by_topic[topic]]
        number = self._by_topic[topic] = next(self._numbers)
        subscription = self._subscriptions[number] = _Subscription(topic, self._subject(topic))
        if self._connection:
            subscription.standing = self._connection.subscribe(subscription.subject, number)
        return subscription

    def _unsubscribe(self, topic: str) -> None:
        number = self._by_topic.pop(topic)
        del self._subscriptions[number]
        if self._connection:
            self._connection.unsubscribe(number)

    def _send(self, topic: str, notices: list[Notice]) -> None:
        """To the other nodes: together, or each by itself when together they are too large."""
        connection = self._connection
        subject = self._subject(topic)
        message = self._signed(subject, notices)
        if connection and len(message) > connection.largest_bytes:
            if len(notices) > 1:
                for notice in notices:
                    self._send(topic, [notice])
                return
            message = self._signed(subject, [Notice(notices[0].seq, HEAD, b"")])
        if not connection or not connection.publish(subject, message):
            self._dropped = True
        elif self._dropped:
            self._tell_of_the_gap(connection)

    def _tell_of_the_gap(self, connection: BrokerConnection) -> None:
        subject = self._subscriptions[GAPS].subject
        self._dropped = not connection.publish(subject, self._signed(subject, [Notice(0, HEAD, b"")]))

    def _receive(self, number: int, payload: bytes) -> None:
        subscription = self._subscriptions.get(number)
        if subscription is None:
            return
        notices = self._genuine(subscription.subject, payload)
        if notices and number == GAPS:
            self._missed = True
        elif notices:
            try:
                self._hear(subscription.topic, notices)
            except Exception:  # what one node says must not end another's connection
                _log.exception("what another node said could not be used")
            self._local.publish(subscription.topic, notices)

    async def _keep(self) -> None:
        """Stay connected."""
        hosts = itertools.cycle(self._address.hosts)
        failures = 0
        while True:
            try:
                connection = self._connection or await self._connect(next(hosts))
                failures = 0
                await self._use(connection)
            except (OSError, TimeoutError, ValueError, BrokerRefused) as error:
                if failures == 0:
                    _log.warning("the bus at %r is cut: %s", self._address, error)
            wait_s = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
            failures += 1
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311 - spreads the nodes, keeps no secret

    async def _connect(self, host: tuple[str, int]) -> BrokerConnection:
        async with asyncio.timeout(CONNECT_S):
            connection = await BrokerConnection.open(self._address, *host)
        self._connection = connection
        for number, subscription in self._subscriptions.items():
            subscription.standing = connection.subscribe(subscription.subject, number)
        if self._dropped:
            self._tell_of_the_gap(connection)
        _log.info("the bus at %r is connected", self._address)
        return connection

    async def _use(self, connection: BrokerConnection) -> None:
        pinging = asyncio.create_task(_ping(connection))
        try:
            await connection.read(self._receive)
        finally:
            self._connection = None
            # What the socket had taken and the broker had not is lost, too.
            self._missed = self._dropped = True
            pinging.cancel()
            await asyncio.gather(pinging, return_exceptions=True)

    def _subject(self, topic: str) -> str:
        return "ship." + hashlib.blake2b(topic.encode(), key=self._key, digest_size=16).hexdigest()

    def _signature(self, subject: str, body: bytes) -> bytes:
        digest = hashlib.blake2b(subject.encode(), key=self._key, digest_size=SIGNATURE_BYTES)
        digest.update(body)
        return digest.digest()

    def _signed(self, subject: str, notices: list[Notice]) -> bytes:
        body = _encoder.encode(_Message(self._node, notices))
        return self._signature(subject, body) + body

    def _genuine(self, subject: str, payload: bytes) -> list[Notice]:
        """What another node of ours said; nothing when it was somebody else, or ourselves."""
        signature, body = payload[:SIGNATURE_BYTES], payload[SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(subject, body)):
            self._warn_of_strangers()
            return []
        try:
            message = _decoder.decode(body)
        except msgspec.DecodeError:
            _log.warning("a message on the bus is of another version of Ship; it is dropped")
            return []
        return [] if message.node == self._node else message.notices

    def _warn_of_strangers(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._stranger_at_s > STRANGERS_EVERY_S:
            self._stranger_at_s = now_s
            _log.warning("somebody who is not of this cluster speaks on the bus; it is not heard")


async def _ping(connection: BrokerConnection) -> None:
    """See that the broker answers: one that stands still looks alive to the socket."""
    while True:
        await asyncio.sleep(PING_EVERY_S)
        try:
            async with asyncio.timeout(PONG_WITHIN_S):
                await connection.ping()
        except TimeoutError:
            connection.abort()
            return
