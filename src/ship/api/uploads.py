"""Repositories that a client sends instead of naming them."""

from fastapi import APIRouter, Request, Response

from ship.api import schemas
from ship.api.answers import encoded
from ship.api.dependencies import Caller, Serving

router = APIRouter(prefix="/api/v1", tags=["repositories"])


@router.put("/uploads", status_code=201, response_model=schemas.UploadOut)
async def put_upload(request: Request, serving: Serving, actor: Caller) -> Response:
    """Keep a git bundle; the answer is what ``repository.source`` takes."""
    sha256 = await serving.store_bundle(request.stream())
    return encoded({"source": f"upload:{sha256}"}, 201)
