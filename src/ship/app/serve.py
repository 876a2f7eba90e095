"""The composition root: one process that serves everything, and the sandbox host beside it."""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from ship.accounts.sandbox_tokens import SandboxTokens
from ship.accounts.tokens import Tokens
from ship.api.late import LateApplication
from ship.api.server import listen, server
from ship.api.services import Services
from ship.app import adapters
from ship.app.folder import DataFolder
from ship.app.sandbox_host import SandboxHostProcess
from ship.app.tokens import SERVER_FILE, now_ms
from ship.config import Provider, Settings
from ship.errors import ConfigurationError, SandboxFailed, Unauthenticated
from ship.model import Limits
from ship.ports.store import Store
from ship.repositories import sources
from ship.repositories.uploads import Uploads
from ship.sandboxes.e2b_host import E2BHost
from ship.sandboxes.template import TEMPLATE, build_ship_template
from ship.sessions.effects import Effects, RunnerSettings
from ship.sessions.policy import Policy
from ship.sessions.service import Sessions
from ship.sessions.worker import Worker

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI

LOCAL_CREDENTIAL = "local"
GRACE_S = 2

_log = logging.getLogger("ship")


def serve(
    settings: Settings,
    *,
    report: Callable[[str], None] = print,
    on_ready: Callable[[str, str], None] = lambda url, link: None,
) -> None:
    """Serve until SIGINT or SIGTERM. ``report`` gets a line for each slow step of the start, ``on_ready`` the URL and the sign-in
    link.

    Raises:
        ConfigurationError: it cannot start here; the code and the hint say why and what to do.
    """
    _log_to_stderr(settings.log_level)
    asyncio.run(_serve(settings, report, on_ready))


async def _serve(
    settings: Settings, report: Callable[[str], None], on_ready: Callable[[str, str], None]
) -> None:
    folder = DataFolder(settings.data_path)
    async with contextlib.AsyncExitStack() as stack:
        store = await adapters.open_store(settings, folder, stack)
        secret = await adapters.signing_key(store, folder)
        bus = await adapters.open_bus(settings, secret, stack)
        blobs = await adapters.open_blobs(settings, folder)
        uploads = Uploads(folder.repositories, blobs, settings.repositories.upload_limit_bytes)
        embeddings = await adapters.open_embeddings(settings)
        listening = stack.enter_context(_listen(*settings.address))
        host, port = listening.getsockname()[:2]
        url = settings.public_url or f"http://{_shown(host)}:{port}"

        providers = await _providers(settings, stack)
        sandbox_host = await _sandbox_host(settings, folder, f"{_reachable(host)}:{port}", stack, report)
        tokens = Tokens(store, now_ms)
        sandbox_tokens = SandboxTokens(secret)
        sessions = Sessions(store, bus, now_ms, _policy(settings), blobs, embeddings)
        runner = RunnerSettings(
            settings.sandboxes.template, settings.sandboxes.control_url, sandbox_tokens.issue
        )
        services = Services(
            sessions=sessions,
            tokens=tokens,
            sandbox_tokens=sandbox_tokens,
            blobs=blobs,
            host=sandbox_host,
            limits=settings.limits,
            providers=providers,
            default_model=_default_model(settings, providers),
            control_url=settings.sandboxes.control_url,
            check_repository=partial(_check_repository, settings),
            store_bundle=uploads.store,
            ready=partial(_ready, store, sandbox_host),
        )
        if store.shared:
            _in_background(stack, sessions.reconcile())
        work = Worker(store, sessions, Effects(sessions, sandbox_host, runner)).run()
        working = _in_background(stack, work)

        token = await _local_token(folder, tokens)
        known = {"url": url, "token": token, "pid": os.getpid(), "database": settings.database}
        folder.write_json(SERVER_FILE, known)
        on_ready(url, f"{url}/login?token={await tokens.create_login('owner')}")
        app = LateApplication(partial(_application, services, settings, uploads, stack))
        # It begins when this task first waits, which is when the server listens.
        building = _in_background(stack, app.build())
        await _run(app, services, listening)
        for part in (building, working):
            if part.done():
                part.result()  # raises when it has failed, which is why we end


async def _application(
    services: Services, settings: Settings, uploads: Uploads, stack: contextlib.AsyncExitStack
) -> ASGIApp:
    app, http = await asyncio.to_thread(_built, services, settings, uploads)
    await stack.enter_async_context(http)
    return app


def _built(services: Services, settings: Settings, uploads: Uploads) -> "tuple[FastAPI, httpx.AsyncClient]":
    from ship.app import application  # takes longer to import than all the rest

    return application.build(services, settings, uploads)


async def _providers(settings: Settings, stack: contextlib.AsyncExitStack) -> tuple[Provider, ...]:
    providers = settings.models.providers
    if not settings.models.scripted:
        return providers
    from ship.testing import scripted_model

    url = await stack.enter_async_context(scripted_model.serve(scripted_model.ScriptedModel()))
    return (*providers, scripted_model.provider(url))


def _policy(settings: Settings) -> Policy:
    ours = settings.sessions
    return Policy(
        idle_pause_s=ours.idle_pause_s,
        stuck_s=ours.stuck_s,
        recoveries=ours.recoveries,
        child_depth=ours.child_depth,
        children=ours.children,
        children_at_once=ours.children_at_once,
        pack_after_s=ours.pack_after_s,
        limits=Limits(time_s=ours.task_time_s, tokens=ours.task_tokens, cost_usd=ours.task_cost_usd),
    )


def _default_model(settings: Settings, providers: tuple[Provider, ...]) -> str:
    if settings.models.default:
        return settings.models.default
    return next((f"{p.name}/{model.name}" for p in providers for model in p.models), "")


async def _sandbox_host(
    settings: Settings,
    folder: DataFolder,
    upstream_address: str,
    stack: contextlib.AsyncExitStack,
    report: Callable[[str], None],
) -> E2BHost:
    there = settings.sandboxes
    if there.api_url or there.api_key:
        return E2BHost(there.api_key, there.api_url, there.sandbox_url)
    templates, warm = folder.sandboxes / "templates", there.warm if there.template == TEMPLATE else 0
    await asyncio.to_thread(build_ship_template, templates, settings.cache_path, warm=warm, report=report)
    process = SandboxHostProcess(folder, upstream_address)
    await process.start()
    stack.push_async_callback(process.stop)
    _in_background(stack, process.keep())
    return E2BHost(process.api_key, process.url)


async def _local_token(folder: DataFolder, tokens: Tokens) -> str:
    """The command line's own token; the same at every start, so that who watches need not sign in again."""
    known = folder.read_json(SERVER_FILE).get("token", "")
    try:
        await tokens.authenticate(known)
    except Unauthenticated:
        return await tokens.create(LOCAL_CREDENTIAL)
    return str(known)


def _check_repository(settings: Settings, source: str) -> None:
    sources.check(sources.parse_source(source), settings.repositories.local_roots)


async def _ready(store: Store, host: E2BHost) -> None:
    await store.probe()
    try:
        async with asyncio.timeout(5):
            await host.find({"ship.session": "readiness"})
    except TimeoutError as error:
        raise SandboxFailed("the sandbox host does not answer", code="sandbox_host_unreachable") from error


def _in_background(
    stack: contextlib.AsyncExitStack, work: Coroutine[None, None, None]
) -> "asyncio.Task[None]":
    task = asyncio.create_task(work)

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def ended(done: asyncio.Task[None]) -> None:
        if not done.cancelled() and (error := done.exception()):
            _log.critical("a part of Ship has failed; ending", exc_info=error)
            signal.raise_signal(signal.SIGTERM)

    task.add_done_callback(ended)
    stack.push_async_callback(end)
    return task


async def _run(app: ASGIApp, services: Services, listening: socket.socket) -> None:
    running = server(app, services, grace_s=GRACE_S)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, setattr, running, "should_exit", True)
    await running.serve(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return listen(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"port {port} of {host} is in use",
                code="port_in_use",
                hint="Stop what listens there, or choose another one with --listen HOST:PORT.",
            ) from error
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}", code="listen_failed"
        ) from error


def _shown(host: str) -> str:
    if host in ("0.0.0.0", "::"):  # noqa: S104 — compared, not listened on
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _reachable(host: str) -> str:
    """Where this machine itself reaches the server."""
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 — compared, not listened on


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for noisy in ("httpx", "httpcore", "e2b", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
