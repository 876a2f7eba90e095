"""What FastAPI hands to a route: the services, and who is asking, as ``services.py`` tells them."""

from typing import Annotated

from fastapi import Depends, Header, Request
from starlette.requests import HTTPConnection

from ship.api import services
from ship.api.services import KEY_CHARACTERS, RunnerCaller, Services, key_of
from ship.model import Actor
from ship.sessions.service import IdempotencyKey

Serving = Annotated[Services, Depends(services.services)]


async def _caller(connection: HTTPConnection, serving: Serving) -> Actor:
    return await services.caller(connection, serving)


Caller = Annotated[Actor, Depends(_caller)]


KeyHeader = Annotated[str | None, Header(min_length=1, max_length=KEY_CHARACTERS)]


async def _key(request: Request, actor: Caller, idempotency_key: KeyHeader = None) -> IdempotencyKey | None:
    return key_of(actor.name, request, await request.body())


Key = Annotated[IdempotencyKey | None, Depends(_key)]


async def _runner(connection: HTTPConnection, serving: Serving) -> RunnerCaller:
    return await services.runner(connection, serving)


Runner = Annotated[RunnerCaller, Depends(_runner)]


async def _runner_key(
    request: Request, caller: Runner, idempotency_key: KeyHeader = None
) -> IdempotencyKey | None:
    return key_of(caller.session_id, request, await request.body())


RunnerKey = Annotated[IdempotencyKey | None, Depends(_runner_key)]
