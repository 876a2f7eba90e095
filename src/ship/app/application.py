"""All that is served over HTTP: the API, the gateways beside it and the web app.

FastAPI and what else this imports takes longer to import than the rest of Ship, so ``serve`` does that when it listens already.
"""

import httpx
from fastapi import FastAPI

from ship.api.application import create_api
from ship.api.services import Services
from ship.app import web
from ship.app.grants import SessionGrants
from ship.config import Settings
from ship.gateway import git as git_gateway
from ship.gateway import models as model_gateway
from ship.gateway import upstream
from ship.repositories.uploads import Uploads


def build(services: Services, settings: Settings, uploads: Uploads) -> tuple[FastAPI, httpx.AsyncClient]:
    """The application, and the client of the gateways, which is to be closed after it."""
    grants = SessionGrants(services.sessions, services.sandbox_tokens)
    http = upstream.client()
    app = create_api()
    app.state.services = services
    app.router.routes += model_gateway.routes(grants, services.providers, http)
    app.router.routes += git_gateway.routes(
        grants, http, local_roots=settings.repositories.local_roots, uploads=uploads
    )
    app.router.routes += web.routes()
    return app, http
