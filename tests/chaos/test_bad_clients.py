"""Slow and hostile clients: the node's memory stays bounded, and those who behave do not notice."""

import asyncio
import contextlib
import http.client
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.chaos.load import Asker
from tests.chaos.nodes import Node
from tests.chaos.scene import Scene
from tests.chaos.single import single_node
from tests.chaos.wire import CLOSE, PING, PONG, TEXT, Wire, Wires

from ship.events import Record, encode, facts
from ship.model import Actor, ActorKind, Repository
from ship.ports.store import Append, NewEvent
from ship.store.sqlite import SqliteStore

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

ROOM_MB = 64.0
"""How much a node may grow by whatever clients do. It takes up to 50 of these; one that kept what comes, or what is not
taken, 90 and more."""
UNNOTICED_S = 2.0
"""How long an append may take meanwhile: some tenths of a second, and more where the machine does other work."""
SILENT = 30
"""So many clients take nothing of what they are sent."""


@contextlib.asynccontextmanager
async def bounded(node: Node) -> AsyncIterator[None]:
    """The node grows by no more than ``ROOM_MB``, for as long as the block runs."""
    before, most = node.memory_mb, 0.0
    watching = True

    async def watch() -> None:
        nonlocal most
        while watching:
            most = max(most, node.memory_mb)
            await asyncio.sleep(0.02)

    task = asyncio.create_task(watch())
    yield
    watching = False
    await task
    assert most - before < ROOM_MB, f"it grew from {before:.0f} MB to {most:.0f} MB"


async def appended(scene: Scene, asker: Asker, count: int, size: int = 10) -> float:
    """So many notes, each acknowledged; returns how long the slowest took, in seconds."""
    slowest = 0.0
    for number in range(count):
        began = time.monotonic()
        text = f"{number} {'x' * size}"
        answer = await asker.post(f"/sessions/{scene.sessions[0]}/messages", {"text": text})
        slowest = max(slowest, time.monotonic() - began)
        assert answer["text"] == text
    return slowest


async def read_on(wire: Wire, last: int) -> list[int]:
    """The seqs that come until that one, or until the server ends it."""
    seen: list[int] = []
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        async with asyncio.timeout(150):
            while not seen or seen[-1] < last:
                opcode, body = await wire.receive()
                if opcode == CLOSE:
                    break
                if opcode == PING:
                    await wire.send(PONG, body)
                if opcode == TEXT and "seq" in (message := json.loads(body)):
                    seen.append(message["seq"])
    return seen


async def test_who_never_reads_costs_the_others_nothing(tmp_path: Path) -> None:
    async with (
        single_node(tmp_path) as scene,
        Asker(scene.nodes) as asker,
        Wires(scene.nodes[0]) as wires,
    ):
        (node,) = scene.nodes
        await scene.begin(sessions=1, watchers=2)
        slow = [await wires.dial(scene.sessions[0], buffer_bytes=4096) for _ in range(SILENT)]
        async with bounded(node):
            assert await appended(scene, asker, 300, size=19_000) < UNNOTICED_S
            for watcher in scene.watchers:
                await watcher.seen(301)
                assert not watcher.wrong
        # What it gets when it reads after all is in order, and what is missing it gets when it comes back.
        last = len(scene.watchers[0].records)
        seen = await read_on(slow[0], last)
        back = await wires.dial(scene.sessions[0], after=len(seen))
        if len(seen) < last:
            seen += await read_on(back, last)
        assert seen[:last] == list(range(1, last + 1))


async def test_who_floods_is_not_heard_and_holds_nobody_up(tmp_path: Path) -> None:
    async with (
        single_node(tmp_path) as scene,
        Asker(scene.nodes) as asker,
        Wires(scene.nodes[0]) as wires,
    ):
        (node,) = scene.nodes
        await scene.begin(sessions=1, watchers=2)
        text, ping = await wires.dial(scene.sessions[0]), await wires.dial(scene.sessions[0])
        flooding = True

        async def flood(wire: Wire, opcode: int, body: bytes) -> None:
            with contextlib.suppress(ConnectionError):
                while flooding:
                    await wire.send(opcode, body)
                    await asyncio.sleep(0)

        floods = [
            asyncio.create_task(flood(text, TEXT, b"x" * 100_000)),
            asyncio.create_task(flood(ping, PING, b"x" * 100)),  # it never reads the answers
        ]
        async with bounded(node):
            assert await appended(scene, asker, 50) < UNNOTICED_S
            for watcher in scene.watchers:
                await watcher.seen(51)
        flooding = False
        text.close()
        ping.close()
        await asyncio.gather(*floods, return_exceptions=True)
        await appended(scene, asker, 1)


MALFORMED = {
    "unmasked": b"\x81\x05hello",
    "reserved bits": b"\xf1\x80abcd",
    "unknown opcode": b"\x83\x80abcd",
    "a continuation of nothing": b"\x80\x80abcd",
    "a long control frame": b"\x89\xfe\x10\x00abcd" + b"x" * 4096,
    "text that is none": b"\x81\x82\x00\x00\x00\x00\xff\xfe",
    "an endless frame": b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xffabcd" + b"x" * 65536,
    "no frame at all": b"GET / HTTP/1.1\r\n\r\n" * 10,
}


async def test_malformed_frames_cost_at_most_their_own_connection(tmp_path: Path) -> None:
    async with (
        single_node(tmp_path) as scene,
        Asker(scene.nodes) as asker,
        Wires(scene.nodes[0]) as wires,
    ):
        (node,) = scene.nodes
        await scene.begin(sessions=1, watchers=2)
        async with bounded(node):
            for content in MALFORMED.values():
                wire = await wires.dial(scene.sessions[0])
                with contextlib.suppress(ConnectionError):
                    await wire.raw(content)
                await appended(scene, asker, 1)
                last = (await asker.get(f"/sessions/{scene.sessions[0]}"))["head_seq"]
                seen = await read_on(wire, last)  # to the end, or until it is cut off
                assert seen == list(range(1, len(seen) + 1))
        assert not any(watcher.lost_at for watcher in scene.watchers)


async def test_prompts_of_thirty_megabytes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    async with single_node(tmp_path) as scene, Asker(scene.nodes) as asker:
        (node,) = scene.nodes
        await scene.begin(sessions=1, watchers=1)
        path = f"/sessions/{scene.sessions[0]}"
        body = json.dumps({"prompt": "x" * 30_000_000}).encode()
        async with bounded(node):
            prompts = [
                asyncio.create_task(asyncio.to_thread(sent, node, f"{path}/tasks", body)) for _ in range(6)
            ]
            assert await appended(scene, asker, 10) < UNNOTICED_S
            assert await asyncio.gather(*prompts) == [(413, "body_too_large")] * len(prompts)
        assert not (await asker.get(path))["tasks"]


def sent(node: Node, path: str, body: bytes) -> tuple[int, str]:
    """What is answered to the body: its status and code. The answer may come while we still send, and our sending be cut off."""
    host, _, port = node.url.removeprefix("http://").rpartition(":")
    headers = {"Authorization": f"Bearer {node.token}", "Content-Type": "application/json"}
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=60)) as connection:
        with contextlib.suppress(ConnectionError):
            connection.request("POST", f"/api/v1{path}", body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())["code"]


CROWD = 1_000


async def test_a_thousand_come_back_at_once_and_miss_nothing(tmp_path: Path) -> None:
    async with (
        single_node(tmp_path) as scene,
        Asker(scene.nodes) as asker,
        Wires(scene.nodes[0]) as wires,
    ):
        (node,) = scene.nodes
        await scene.begin(sessions=1, watchers=1)
        session_id = scene.sessions[0]
        await appended(scene, asker, 20)
        async with bounded(node):
            crowd = await asyncio.gather(*(wires.dial(session_id) for _ in range(CROWD)))
            heads = await asyncio.gather(*(read_on(wire, 21) for wire in crowd))
            for wire in crowd:
                wire.close()
            writing = asyncio.create_task(appended(scene, asker, 20))
            crowd = await asyncio.gather(*(wires.dial(session_id, after=head[-1]) for head in heads))
            await writing
            last = (await asker.get(f"/sessions/{session_id}"))["head_seq"]
            tails = await asyncio.gather(*(read_on(wire, last) for wire in crowd))
        for head, tail in zip(heads, tails, strict=True):
            assert head + tail == list(range(1, last + 1))


LONG = 100_000


async def test_a_log_of_a_hundred_thousand_events_is_replayed_in_bounded_memory(tmp_path: Path) -> None:
    async with (
        single_node(tmp_path) as scene,
        Asker(scene.nodes) as asker,
        Wires(scene.nodes[0]) as wires,
    ):
        (node,) = scene.nodes
        await scene.begin(sessions=1, watchers=1)
        node.kill()
        await write_long_log(node.data / "ship.db", "ses_long", LONG)
        await node.start()
        async with bounded(node):
            for _ in range(SILENT):
                await wires.dial("ses_long", buffer_bytes=4096)
            readers = [await wires.dial("ses_long") for _ in range(3)]
            replays = [asyncio.create_task(read_on(reader, LONG)) for reader in readers]
            slowest = 0.0
            while not all(replay.done() for replay in replays):
                slowest = max(slowest, await appended(scene, asker, 1))
            assert slowest < UNNOTICED_S
            for replay in replays:
                assert await replay == list(range(1, LONG + 1))


async def write_long_log(path: Path, session_id: str, count: int) -> None:
    """A session of notes, as the service would have written it."""
    store = SqliteStore(path)
    await store.open()
    me = Actor(kind=ActorKind.USER, name="me")
    created = facts.SessionCreated(title="long", repository=Repository(source="/r"), model="p/m")
    notes = (facts.MessagePosted(message_id=f"msg_{seq}", text=f"note {seq}") for seq in range(2, count + 1))
    head = 0
    batch: list[NewEvent] = []
    for seq, fact in enumerate((created, *notes), start=1):
        record = Record(seq=seq, at_ms=1, actor=me, fact=fact, frame=None)
        batch.append(NewEvent(fact.TYPE, encode(record)))
        if len(batch) == 5_000 or seq == count:
            await store.append(Append(session_id=session_id, expected_head=head, at_ms=1, events=batch))
            head, batch = seq, []
    await store.close()
