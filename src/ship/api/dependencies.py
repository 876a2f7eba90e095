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


async def _key(
    request: Request,
    actor: Caller,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=KEY_CHARACTERS)] = None,
) -> IdempotencyKey | None:
    return key_of(actor, request, await request.body())


Key = Annotated[IdempotencyKey | None, Depends(_key)]


async def _runner(connection: HTTPConnection, serving: Serving) -> RunnerCaller:
    return await services.runner(connection, serving)


Runner = Annotated[RunnerCaller, Depends(_runner)]
