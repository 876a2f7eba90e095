"""What is done to the parts. Each fault strikes once, waits until everybody is served again, and says how it was felt."""

import asyncio
import functools
import signal
import time
from collections.abc import Awaitable, Callable, Mapping

from tests.chaos import lab, points
from tests.chaos.nodes import Node
from tests.chaos.scene import Recovery, Scene

from ship.testing.nats_server import NatsServer
from ship.testing.postgres_server import PostgresServer

PROVISIONING = ("effect_claimed", "sandbox_made", "effect_reported")
ALARMS = ("alarm_claimed", "alarm_fired")

Fault = Callable[[], Awaitable[Recovery]]


async def killed(scene: Scene, point: str) -> Recovery:
    """A node gets SIGKILL at that point, and is started again: at once where it is the only one, else when the others have gone on."""
    async with asyncio.TaskGroup() as group:
        node, since = await _strike(scene, group, point, signal.SIGKILL)
        node.reap()
        if len(scene.nodes) > 1:
            felt = await scene.recovery(since)
            await node.start()
        else:
            await node.start()
            felt = await scene.recovery(since)
    await scene.acknowledged(5)
    return felt


async def halted(scene: Scene, point: str, halt_s: float) -> Recovery:
    """A node gets SIGSTOP at that point, and SIGCONT after a while: it wakes up believing that no time has passed."""
    async with asyncio.TaskGroup() as group:
        node, since = await _strike(scene, group, point, signal.SIGSTOP)
        await asyncio.sleep(halt_s)
        node.signal(signal.SIGCONT)
        return await scene.recovery(since)


async def _strike(
    scene: Scene, group: asyncio.TaskGroup, point: str, how: signal.Signals
) -> tuple[Node, float]:
    await scene.acknowledged(5)
    scene.arm(point, how)
    if point in PROVISIONING:
        group.create_task(scene.begin(sessions=1, watchers=1))
    if point in ALARMS:
        await scene.runners.drop_links()
    return await scene.struck(point), scene.struck_at(point)


async def broker_killed(scene: Scene, nats: NatsServer, away_s: float) -> Recovery:
    """NATS gets SIGKILL and stays away for a while."""
    since = time.monotonic()
    nats.kill()
    await asyncio.sleep(away_s)
    nats.start()
    return await scene.recovery(since)


async def broker_halted(scene: Scene, nats: NatsServer, away_s: float) -> Recovery:
    """NATS stands still for a while, with its connections open."""
    since = time.monotonic()
    nats.halt()
    await asyncio.sleep(away_s)
    nats.go_on()
    return await scene.recovery(since)


async def database_stopped(scene: Scene, postgres: PostgresServer, away_s: float) -> Recovery:
    """PostgreSQL ends as in a crash, and is started again after a while; felt from the moment of its start."""
    await asyncio.to_thread(postgres.stop, immediately=True)  # what was acknowledged before is heard before
    await asyncio.sleep(away_s)
    postgres.start()
    since = time.monotonic()
    await asyncio.to_thread(postgres.wait)
    return await scene.recovery(since)


async def cut_off(scene: Scene, network: lab.Lab, address: str, node: Node, away_s: float) -> Recovery:
    """What that address sends to the node is lost on the way for a while."""
    since = time.monotonic()
    network.cut(address, node.address)
    try:
        await asyncio.sleep(away_s)
    finally:
        network.mend(address, node.address)
    return await scene.recovery(since)


def of_one_node(scene: Scene) -> Mapping[str, Fault]:
    """What a single node on SQLite must bear."""
    faults: dict[str, Fault] = {}
    for point, meaning in points.POINTS.items():
        faults[f"kill -9: {meaning}"] = functools.partial(killed, scene, point)
        faults[f"SIGSTOP 2 s: {meaning}"] = functools.partial(halted, scene, point, 2.0)
    return faults


def of_three_nodes(
    scene: Scene, postgres: PostgresServer, nats: NatsServer, network: lab.Lab | None
) -> Mapping[str, Fault]:
    """What nodes that share everything must bear, network cuts included where there is one to cut."""
    faults = dict(of_one_node(scene))
    for point in ("mid_append", "sandbox_made", "alarm_claimed"):
        faults[f"SIGSTOP 20 s: {points.POINTS[point]}"] = functools.partial(halted, scene, point, 20.0)
    for away_s in (2.0, 60.0):
        faults[f"NATS killed for {away_s:.0f} s"] = functools.partial(broker_killed, scene, nats, away_s)
    faults["NATS halted for 10 s"] = functools.partial(broker_halted, scene, nats, 10.0)
    for away_s in (0.0, 5.0):
        faults[f"PostgreSQL stopped at once, back after {away_s:.0f} s"] = functools.partial(
            database_stopped, scene, postgres, away_s
        )
    if network is not None:
        for name, address in CUTS.items():
            for away_s in (3.0, 20.0):
                faults[f"{name} for {away_s:.0f} s"] = functools.partial(
                    cut_off, scene, network, address, scene.nodes[0], away_s
                )
    return faults


CUTS = {
    "a node cut off from the database": lab.DATABASE,
    "a node cut off from the bus": lab.BUS,
    "sandboxes cut off from a node": lab.SANDBOXES,
    "people cut off from a node": lab.PEOPLE,
}
