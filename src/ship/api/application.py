"""The application with every route. A server need not wait for it: ``door.py`` answers what is asked most without it."""

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ship.api import (
    account,
    artifacts,
    lifecycle,
    operations,
    runner,
    schemas,
    search,
    sessions,
    streams,
    uploads,
    workspace,
)
from ship.api.limits import BoundedBodies
from ship.api.problems import answer, problem
from ship.errors import ShipError


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
        responses={"default": {"model": schemas.Problem, "description": "What went wrong."}},
    )
    _say_problems(app)
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


def _say_problems(app: FastAPI) -> None:
    """Turn every error that leaves a route into a problem."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        found = "; ".join(
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()
        )
        return problem(400, "invalid_input", found, "Send what openapi.json says for this route.")

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        code = {404: "route_not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        return problem(error.status_code, code, str(error.detail))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        """Who sent the body has left in the middle: no defect, and nobody reads the answer."""
        return problem(400, "body_incomplete", "the body ended too early")

    @app.exception_handler(ShipError)
    @app.exception_handler(Exception)
    async def other(request: Request, error: Exception) -> Response:
        return answer(error, request)
