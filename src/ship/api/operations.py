"""For who runs Ship: is it alive, can it serve, how is it."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ship.api.answers import encoded
from ship.api.dependencies import Serving

router = APIRouter(tags=["operations"])


@router.get("/healthz", response_class=Response)
async def healthz() -> Response:
    """The process answers."""
    return encoded({"status": "ok"})


@router.get("/readyz", response_class=Response)
async def readyz(serving: Serving) -> Response:
    """The store and the sandbox host answer too; 503 with the reason otherwise."""
    await serving.ready()
    return encoded({"status": "ready"})


@router.get("/metrics", response_class=Response)
async def metrics() -> Response:
    """Prometheus metrics."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
