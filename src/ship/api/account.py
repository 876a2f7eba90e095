"""Signing in."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from ship.accounts.tokens import BROWSER_LIFE_MS
from ship.api import schemas
from ship.api.answers import encoded
from ship.api.dependencies import Caller, Serving
from ship.api.services import cookie_name

router = APIRouter(tags=["account"])


@router.get("/login", status_code=303, response_class=RedirectResponse)
async def sign_in(token: str, request: Request, serving: Serving) -> Response:
    """Trade a one-time link for a cookie."""
    secret = await serving.tokens.sign_in(token)
    answer = RedirectResponse(
        "/", 303, headers={"Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
    )
    answer.set_cookie(
        cookie_name(request),
        secret,
        max_age=BROWSER_LIFE_MS // 1000,
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return answer


@router.get("/api/v1/me", response_model=schemas.MeOut)
async def get_me(actor: Caller, serving: Serving) -> Response:
    """Who is signed in, and how sessions can be searched here."""
    return encoded({"name": actor.name, "search_modes": serving.sessions.search_modes})
