"""No request is read past its limit: a body is counted before anything parses it, and before anybody is known."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ship.api.problems import problem

BODY_BYTES = 4 * 1024**2
"""For everything but the routes that stream a body and count it themselves."""

_STREAMING = ("/api/v1/uploads", "/gateway/", "/git/", "/runner/v1/artifacts/")


class BoundedBodies:
    """ASGI middleware that answers 413 to a body over the limit."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or _streams(scope["path"]):
            await self._app(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > BODY_BYTES:
                refusal = problem(413, "body_too_large", f"the body has more than {BODY_BYTES} bytes")
                refusal.headers["Connection"] = "close"
                await refusal(scope, receive, send)
                return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replayed() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replayed, send)


def _streams(path: str) -> bool:
    return path.startswith(_STREAMING) or "/artifacts/" in path
