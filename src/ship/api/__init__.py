"""HTTP: a route parses, makes one service call and answers."""

from fastapi import FastAPI

from ship.api import (
    account,
    artifacts,
    lifecycle,
    operations,
    problems,
    runner,
    search,
    sessions,
    streams,
    uploads,
    workspace,
)
from ship.api.limits import BoundedBodies
from ship.api.services import Services

__all__ = ["Services", "create_api"]


def create_api() -> FastAPI:
    """The application with every route; the composition root sets ``app.state.services``."""
    app = FastAPI(
        title="Ship",
        version="1",
        description="A self-hosted platform for background coding agents.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        separate_input_output_schemas=False,
        responses={"default": {"model": problems.Problem, "description": "What went wrong."}},
    )
    problems.install(app)
    app.add_middleware(BoundedBodies)
    for module in (
        streams,
        sessions,
        search,
        lifecycle,
        workspace,
        artifacts,
        uploads,
        account,
        operations,
        runner,
    ):
        app.include_router(module.router)
    return app
