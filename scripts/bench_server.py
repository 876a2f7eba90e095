"""The control plane without sandboxes, for measurements: the real store, bus, service, routes and server on a data folder.

What a session would ask of the sandbox host stays in the outbox, as it does while no sandbox host answers. Prints
``{"url", "token", "pid"}`` as one line when it takes requests, and serves until SIGTERM. With a database and a bus it is a node among others.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from starlette.types import ASGIApp

from ship.accounts.sandbox_tokens import SandboxTokens
from ship.accounts.tokens import Tokens
from ship.api.late import LateApplication
from ship.api.server import listen, server
from ship.api.services import Services
from ship.app import adapters, storage
from ship.app.folder import DataFolder
from ship.app.tokens import now_ms
from ship.blobs.folder import FolderBlobs
from ship.config import LimitSettings, ModelSpec, Provider, Settings
from ship.ports.store import Store
from ship.sessions.service import Sessions
from ship.testing.sandbox_hosts import PretendSandboxHost

MODEL = Provider(
    name="scripted", protocol="openai", base_url="http://127.0.0.1:9/v1", models=(ModelSpec(name="echo"),)
)
CREDENTIAL = "bench.json"


async def serve(data: Path, port: int, database: str, bus: str) -> None:
    """Serves on that port of 127.0.0.1."""
    folder = DataFolder(data)
    async with contextlib.AsyncExitStack() as stack:
        store = storage.store(database, folder)
        await store.open()
        stack.push_async_callback(store.close)
        await store.join(alone=not bus)
        secret = await adapters.signing_key(store, folder)
        sessions = Sessions(store, await adapters.open_bus(Settings(bus=bus), secret, stack), now_ms)
        await _serve(folder, port, store, sessions, SandboxTokens(secret))


async def _serve(
    folder: DataFolder, port: int, store: Store, sessions: Sessions, sandbox_tokens: SandboxTokens
) -> None:
    tokens = Tokens(store, now_ms)
    services = Services(
        sessions=sessions,
        tokens=tokens,
        sandbox_tokens=sandbox_tokens,
        blobs=FolderBlobs(folder.blobs),
        host=PretendSandboxHost(),
        limits=LimitSettings(),
        providers=(MODEL,),
        default_model="scripted/echo",
        control_url="http://ship.internal",
        check_repository=lambda source: None,
        store_bundle=_no_bundle,
        ready=store.probe,
    )
    token = folder.read_json(CREDENTIAL).get("token") or await tokens.create("bench")
    folder.write_json(CREDENTIAL, {"token": token})
    with listen("127.0.0.1", port) as listening:
        app = LateApplication(partial(asyncio.to_thread, _application, services))
        running = server(app, services)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, setattr, running, "should_exit", True)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        sys.stdout.write(json.dumps({"url": url, "token": token, "pid": os.getpid()}) + "\n")
        sys.stdout.flush()
        async with asyncio.TaskGroup() as parts:
            parts.create_task(
                app.build()
            )  # begins when this task first waits, which is when the server listens
            reconciling = parts.create_task(sessions.reconcile()) if store.shared else None
            await running.serve(sockets=[listening])
            if reconciling:
                reconciling.cancel()


def _application(services: Services) -> ASGIApp:
    from ship.api.application import create_api  # takes longer to import than all the rest

    app = create_api()
    app.state.services = services
    return app


async def _no_bundle(stream: AsyncIterator[bytes]) -> str:
    raise NotImplementedError("nothing is uploaded in a measurement")


def main() -> None:
    """Parses and serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--database", default="")
    parser.add_argument("--bus", default="")
    parser.add_argument("--core", type=int, default=-1, help="the only core to run on")
    arguments = parser.parse_args()
    if arguments.core >= 0:
        os.sched_setaffinity(0, {arguments.core})
    asyncio.run(serve(arguments.data, arguments.port, arguments.database, arguments.bus))


if __name__ == "__main__":
    main()
