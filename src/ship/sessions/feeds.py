"""What is streamed of sessions: one feed for each session that is followed on this node, shared by all who follow it.

A feed takes from the bus once, encodes once for all followers with the same encoding and filter, and hands each of them everything
that came in one turn of the event loop as one piece. Who comes late, falls behind or comes back reads the log in pages of bounded
size, each when the one before has left, and joins the others where they are. Nobody has a task or a timer while nothing happens.
"""

import asyncio
import enum
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from ship.errors import InvalidInput, ShipError, Unavailable
from ship.events import facts
from ship.ports.bus import DELTA, HEAD, Listener, Notice
from ship.ports.store import LogStore
from ship.sessions import metrics
from ship.sessions.growth import PART, Growth
from ship.sessions.logs import Logs

HEARTBEAT_S = 10.0
SLOW_S = 30.0
"""Who takes nothing for this long, or up to a heartbeat longer, is told to come back and resume."""

PAGE = 1_000
RECENT, RECENT_BYTES = 512, 256 * 1024
QUEUED, QUEUED_BYTES = 2_000, 4 * 1024**2
FEEDS_A_BEAT = 256

EVENT, LIVE = "event", "live"
_FRAMES = frozenset({LIVE, HEAD})

Encode = Callable[[Sequence[Notice]], Any]
"""Makes one piece of several notices. Those of seq 0 are the frames ``delta``, ``live`` and ``head``; records of the log have their
type as kind, or ``event``."""

_log = logging.getLogger("ship.feeds")


class End(enum.Enum):
    """Why a feed lets a follower go."""

    ARCHIVED = "archived"
    TOO_SLOW = "too_slow"
    UNAVAILABLE = "store_unavailable"


class Follower(Protocol):
    """Somebody who follows a session."""

    @property
    def encode(self) -> Encode:
        """The same for all who get the same bytes."""
        ...

    types: frozenset[str]
    """Only events of these types, and no deltas; all when it is empty."""
    seen: int
    """Kept by the feed: everything up to this seq was sent."""
    full: bool
    """It takes nothing now. Once it does again it says so by ``Feeds.resume``."""

    def send(self, piece: Any) -> None:
        """Take what ``encode`` made; never waits."""
        ...

    def end(self, why: End) -> None:
        """Nothing follows; the feed has forgotten it."""
        ...


class _Record(msgspec.Struct):
    type: str


_record = msgspec.json.Decoder(_Record)


class Feed:
    """One session's. All who are live have been told everything up to ``seen``."""

    __slots__ = (
        *(
            "_behind",
            "_catching",
            "_feeds",
            "_filling",
            "_listener",
            "_listening",
            "_live",
            "_over",
            "_reads",
        ),
        *("_recent", "_recent_bytes", "opened", "seen", "session_id", "unused"),
    )

    def __init__(self, session_id: str, feeds: "Feeds") -> None:
        self.session_id = session_id
        self.seen = 0
        self.unused = False
        self._feeds = feeds
        self._over = False
        self._listener: Listener
        self._live: dict[tuple[Encode, frozenset[str]], set[Follower]] = {}
        self._behind: dict[Follower, float] = {}
        self._catching: dict[Follower, asyncio.Task[None]] = {}
        self._filling: asyncio.Task[None] | None = None
        self._reads: dict[tuple[int, int, frozenset[str]], asyncio.Task[list[Notice]]] = {}
        self._recent: list[Notice] = []
        self._recent_bytes = 0
        self._listening = feeds.growth.listen(session_id)
        self.opened: asyncio.Task[None] | None = asyncio.create_task(self._open())

    async def _open(self) -> None:
        self._listener = await self._listening.__aenter__()
        try:
            self.seen = await self._feeds.head(self.session_id)
            last = _typed(await self._read(self.seen - 1, self.seen, frozenset(), limit=1))
            self._over = any(notice.kind == facts.SessionArchived.TYPE for notice in last)
        except BaseException:
            await self._listening.__aexit__(None, None, None)
            raise
        self._listener.on_arrival(self._arrived)
        self._turn()

    async def close(self) -> None:
        """Leave the bus."""
        if self._filling:
            self._filling.cancel()
        await self._listening.__aexit__(None, None, None)

    @property
    def followers(self) -> Iterator[Follower]:
        """Everybody."""
        yield from self._behind
        yield from self._catching
        for group in self._live.values():
            yield from group

    async def reach(self, head: int) -> None:
        """Tell everything up to that seq, which is in the log."""
        if self.seen < head:
            self._turn()
        if self.seen < head:
            await asyncio.shield(self._fill())

    def catch_up(self, follower: Follower) -> None:
        """Send what the follower has not seen, as long as it takes it; then it is live."""
        self._behind.pop(follower, None)
        self._catching[follower] = asyncio.create_task(self._catch_up(follower))

    def resume(self, follower: Follower) -> None:
        """It takes something again."""
        if follower in self._behind:
            self.catch_up(follower)

    def leave(self, follower: Follower) -> None:
        """It has gone."""
        self._behind.pop(follower, None)
        if task := self._catching.pop(follower, None):
            task.cancel()
        group = self._live.get((follower.encode, follower.types))
        if group is not None:
            group.discard(follower)
            if not group:
                del self._live[follower.encode, follower.types]

    def beat(self, head: int, now_s: float) -> None:
        """The heartbeat; the log ends at ``head``."""
        if head > self.seen and not self._filling:
            self._turn()
        if head > self.seen:
            self._fill()
        else:
            self._tell([Notice(0, HEAD, frame(HEAD, self.seen))], self.seen)
        for follower in [known for known, since_s in self._behind.items() if now_s - since_s > SLOW_S]:
            self._let_go(follower, End.TOO_SLOW)

    def _arrived(self) -> None:
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Tell what has come."""
        if self._filling:
            return
        notices = self._listener.drain()
        if self._listener.lagged:
            self._listener.lagged = False
            self._fill()
            return
        before, told = self.seen, []
        for notice in notices:
            if notice.seq == self.seen + 1 and notice.kind != HEAD:
                self.seen = notice.seq
                told.append(notice)
            elif notice.seq > self.seen:
                # The bus has lost something, or this was too large for it: the log has it, and all that follows.
                self._fill()
                break
            elif notice.kind in (DELTA, PART):
                told.append(notice._replace(kind=DELTA))
        self._tell(told, before)

    def _fill(self) -> "asyncio.Task[None]":
        """Tell what the log has and the bus did not bring."""
        if self._filling is None:
            self._filling = asyncio.create_task(self._read_on())
        return self._filling

    async def _read_on(self) -> None:
        try:
            head = await self._feeds.store.head(self.session_id)
            while self.seen < head:
                told = _typed(await self._read(self.seen, head, frozenset()))
                before, self.seen = self.seen, told[-1].seq
                self._tell(told, before)
        except ShipError as error:
            _log.warning("what the bus lost of %s cannot be read: %s", self.session_id, error)
            for follower in list(self.followers):
                self._let_go(follower, End.UNAVAILABLE)
        finally:
            self._filling = None
        self._turn()

    def _tell(self, told: list[Notice], before: int) -> None:
        """Send it to all who are live; who takes nothing now has seen everything up to ``before``."""
        if not told:
            return
        for (encode, types), group in list(self._live.items()):
            wanted = [n for n in told if n.kind in types or n.kind in _FRAMES] if types else told
            if not wanted:
                continue
            piece = encode(wanted)
            for follower in list(group):
                if follower.full:
                    self._fall_behind(follower, before)
                else:
                    follower.send(piece)
        self._remember(told)
        if any(notice.kind == facts.SessionArchived.TYPE for notice in told):
            self._over = True
            for follower in [known for group in self._live.values() for known in group]:
                self._let_go(follower, End.ARCHIVED)

    def _remember(self, told: list[Notice]) -> None:
        records = [notice for notice in told if notice.seq]
        self._recent += records
        self._recent_bytes += sum(len(notice.body) for notice in records)
        while self._recent_bytes > RECENT_BYTES or len(self._recent) > RECENT:
            half = len(self._recent) // 2 + 1
            self._recent_bytes -= sum(len(notice.body) for notice in self._recent[:half])
            del self._recent[:half]

    def _fall_behind(self, follower: Follower, seen: int) -> None:
        self.leave(follower)
        follower.seen = seen
        self._behind[follower] = asyncio.get_running_loop().time()

    def _let_go(self, follower: Follower, why: End) -> None:
        self._feeds.leave(follower)
        follower.end(why)

    async def _catch_up(self, follower: Follower) -> None:
        try:
            while not follower.full:
                self._turn()
                if follower.seen == self.seen:
                    self._join(follower)
                    return
                page = self._since(follower) or await self._page(follower)
                if page:
                    follower.send(follower.encode(page))
            del self._catching[follower]
            self._fall_behind(follower, follower.seen)
        except ShipError as error:
            _log.warning("%s cannot be read for who follows it: %s", self.session_id, error)
            self._let_go(follower, End.UNAVAILABLE)

    def _join(self, follower: Follower) -> None:
        del self._catching[follower]
        parts = self._feeds.growth.ask(self.session_id) if not follower.types else []
        frames = [Notice(0, DELTA, part) for part in parts]
        frames.append(Notice(0, LIVE, frame(LIVE, self.seen)))
        follower.send(follower.encode(frames))
        if self._over:
            self._let_go(follower, End.ARCHIVED)
        else:
            self._live.setdefault((follower.encode, follower.types), set()).add(follower)

    def _since(self, follower: Follower) -> list[Notice]:
        """What the follower has not seen, when all of it is remembered."""
        first = self._recent[0].seq if self._recent else self.seen + 1
        if first > follower.seen + 1 or follower.types:
            return []
        missing = self._recent[follower.seen + 1 - first :]
        follower.seen = self.seen
        return missing

    async def _page(self, follower: Follower) -> list[Notice]:
        """The follower's next page of the log. Who comes at the same time with the same wish shares it."""
        up_to = self.seen
        wish = (follower.seen, up_to, follower.types)
        reading = self._reads.get(wish)
        if reading is None:
            reading = self._reads[wish] = asyncio.create_task(self._read(*wish))
            reading.add_done_callback(lambda done: done.cancelled() or done.exception())
            reading.add_done_callback(lambda done: self._reads.pop(wish, None))
        page = await asyncio.shield(reading)
        follower.seen = page[-1].seq if page else up_to
        return page

    async def _read(
        self, after: int, up_to: int, types: frozenset[str], *, limit: int = PAGE
    ) -> list[Notice]:
        rows = await self._feeds.logs.events(self.session_id, after, limit, tuple(types), up_to)
        return [Notice(seq, EVENT, body) for seq, body in rows]


class Feeds:
    """All feeds of this node. Lives with its first follower, and ends by itself a heartbeat after the last."""

    def __init__(
        self, store: LogStore, logs: Logs, growth: Growth, head: Callable[[str], Awaitable[int]]
    ) -> None:
        """``head`` says where a session's log ends, or raises NotFound."""
        self.store = store
        self.logs = logs
        self.growth = growth
        self.head = head
        self._feeds: dict[str, Feed] = {}
        self._of: dict[Follower, Feed] = {}
        self._beating: asyncio.Task[None] | None = None

    async def join(self, session_id: str, after: int, follower: Follower) -> None:
        """Send the follower the log past ``after``, then what comes, without a gap or a duplicate.

        Raises:
            NotFound: ``session_not_found``.
            InvalidInput: ``after_past_head``: a seq that this log does not have yet.
            Unavailable: the store does not answer.
        """
        head = await self.head(session_id)
        check_after(after, head)
        feed = await self._opened(session_id)
        self._of[follower] = feed
        metrics.FOLLOWERS.inc()
        feed.unused = False
        try:
            await feed.reach(head)
            if feed.seen < head:
                raise Unavailable("the log cannot be read", code=End.UNAVAILABLE.value, hint="Try again.")
        except BaseException:
            self.leave(follower)
            raise
        follower.seen = after
        if follower in self._of:
            feed.catch_up(follower)

    def resume(self, follower: Follower) -> None:
        """It takes something again."""
        if feed := self._of.get(follower):
            feed.resume(follower)

    def leave(self, follower: Follower) -> None:
        """It follows no more."""
        if feed := self._of.pop(follower, None):
            metrics.FOLLOWERS.dec()
            feed.leave(follower)

    async def follow(
        self, session_id: str, after: int, types: Sequence[str] = ()
    ) -> AsyncGenerator[Notice, None]:
        """The session's stream past ``after``, for who takes it piece by piece. Ends when the session is archived. Raises as ``join``."""
        queue = _Queue(frozenset(types))
        await self.join(session_id, after, queue)
        try:
            async for notice in queue.notices(lambda: self.resume(queue)):
                yield notice
        finally:
            self.leave(queue)

    async def _opened(self, session_id: str) -> Feed:
        feed = self._feeds.get(session_id)
        if feed is None:
            feed = self._feeds[session_id] = Feed(session_id, self)
        if feed.opened:
            try:
                await asyncio.shield(feed.opened)
            except BaseException:
                if feed.opened and feed.opened.done() and self._feeds.get(session_id) is feed:
                    del self._feeds[session_id]
                raise
            feed.opened = None
        if self._beating is None or self._beating.done():
            self._beating = asyncio.create_task(self._beat())
        return feed

    async def _beat(self) -> None:
        while self._feeds:
            feeds = list(self._feeds.values())
            parts = [feeds[at : at + FEEDS_A_BEAT] for at in range(0, len(feeds), FEEDS_A_BEAT)]
            for part in parts:
                await asyncio.sleep(HEARTBEAT_S / len(parts))
                await self._beat_of([feed for feed in part if not feed.opened])

    async def _beat_of(self, feeds: list[Feed]) -> None:
        try:
            heads = await self.store.heads([feed.session_id for feed in feeds])
        except Unavailable as error:
            _log.warning("the heads of the logs cannot be read; trying again: %s", error)
            return
        now_s, followed = asyncio.get_running_loop().time(), set(self._of.values())
        for feed in feeds:
            if feed in followed:
                feed.beat(heads.get(feed.session_id, 0), now_s)
            elif feed.unused:
                del self._feeds[feed.session_id]
                await feed.close()
            else:
                feed.unused = True


def _as_it_is(notices: Sequence[Notice]) -> Sequence[Notice]:
    return notices


class _Queue:
    """A follower that is read by a loop."""

    encode = staticmethod(_as_it_is)

    def __init__(self, types: frozenset[str]) -> None:
        self.types = types
        self.seen = 0
        self.full = False
        self._waiting: list[Notice] = []
        self._size_bytes = 0
        self._ended: End | None = None
        self._wake = asyncio.Event()

    def send(self, piece: Sequence[Notice]) -> None:
        """As the protocol says."""
        self._waiting += piece
        self._size_bytes += sum(len(notice.body) for notice in piece)
        self.full = len(self._waiting) >= QUEUED or self._size_bytes > QUEUED_BYTES
        self._wake.set()

    def end(self, why: End) -> None:
        """As the protocol says."""
        self._ended = why
        self._wake.set()

    async def notices(self, resume: Callable[[], None]) -> AsyncGenerator[Notice, None]:
        """What was sent, until the end."""
        while True:
            taken, self._waiting = self._waiting, []
            self._size_bytes = 0
            for notice in taken:
                yield notice
            if self.full:
                self.full = bool(self._waiting)
                resume()
            if self._waiting:
                continue
            if self._ended is not None:
                break
            self._wake.clear()
            await self._wake.wait()
        if self._ended is not End.ARCHIVED:
            raise Unavailable("the stream broke off", code=self._ended.value, hint="Resume it.")


def _typed(notices: Sequence[Notice]) -> list[Notice]:
    return [notice._replace(kind=_record.decode(notice.body).type) for notice in notices]


def check_after(after: int, head: int) -> None:
    """Raises InvalidInput (``after_past_head``) for a seq that the log does not have yet."""
    if after > head:
        raise InvalidInput(
            f"this log ends at {head}, before {after}",
            code="after_past_head",
            hint="Start again from 0: the log may have been restored from a backup.",
        )


def frame(name: str, seq: int) -> bytes:
    """``live`` or ``head``, as it travels."""
    return msgspec.json.encode({"t": name, "head_seq": seq})
