"""The web app: static files from the package, and its page for every address that is not a file."""

from importlib import resources
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
        "connect-src 'self'; worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

_NOT_BUILT = "The web app is not built here. Run `make setup` in a checkout, or install the wheel.\n"
_RESERVED = ("api/", "gateway/", "git/", "runner/")


def web_folder() -> Path:
    """Where the built web app lies."""
    return Path(str(resources.files("ship").joinpath("web_dist")))


def routes() -> list[Route | Mount]:
    """Routes of the web app; they come last."""
    folder = web_folder()
    index = folder / "index.html"

    async def page(request: Request) -> Response:
        path = request.path_params.get("path", "")
        if path.startswith(_RESERVED):
            raise HTTPException(404, "Not Found")
        if not index.is_file():
            return Response(_NOT_BUILT, 503, media_type="text/plain")
        if found := _file(folder, path):
            return FileResponse(found, headers=SECURITY)
        return FileResponse(index, headers={**SECURITY, "Cache-Control": "no-cache"})

    assets = Mount("/assets", _Immutable(StaticFiles(directory=folder / "assets", check_dir=False)))
    return [assets, Route("/{path:path}", page, methods=["GET", "HEAD"])]


def _file(folder: Path, path: str) -> Path | None:
    """The file below the folder, if there is one; a name that no file can have names none."""
    try:
        found = (folder / path).resolve()
        return found if found.is_file() and found.is_relative_to(folder.resolve()) else None
    except (OSError, ValueError):
        return None


class _Immutable:
    """Assets carry a digest in their names: they never change."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                message["headers"] += [
                    (b"cache-control", b"public, max-age=31536000, immutable"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self._app(scope, receive, with_headers)
