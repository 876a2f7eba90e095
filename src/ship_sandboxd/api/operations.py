"""What is told of the host itself, and the parts of E2B's protocol that no other module offers."""

from collections.abc import Callable
from typing import Any

from ..errors import Unauthorized
from ..telemetry.metrics import CONTENT_TYPE, Metrics
from . import pages
from .call import Answer, Call, Handler, Route
from .router import NotOffered, presented_key

_VOLUMES = "files that several sandboxes share belong into a template's mounts or into a snapshot"
_SECRETS = "pass what a sandbox must know in envVars, and keep the rest outside of it"
_KEYS = "keys are in the file of the option --keys"
_USERS = "there are no users here, only tenants and their keys"
_CLUSTER = "one host is one machine; see GET /health and GET /metrics"
_OLD_TAGS = "which builds a tag pointed to before is not kept; see GET /templates/{templateID}/tags"
_NOT_OFFERED = (
    ("GET", "/volumes", _VOLUMES),
    ("POST", "/volumes", _VOLUMES),
    ("GET", "/volumes/{volumeID}", _VOLUMES),
    ("DELETE", "/volumes/{volumeID}", _VOLUMES),
    ("GET", "/secrets", _SECRETS),
    ("POST", "/secrets", _SECRETS),
    ("GET", "/secrets/{secretID}", _SECRETS),
    ("POST", "/secrets/{secretID}", _SECRETS),
    ("DELETE", "/secrets/{secretID}", _SECRETS),
    ("GET", "/api-keys", _KEYS),
    ("POST", "/api-keys", _KEYS),
    ("PATCH", "/api-keys/{apiKeyID}", _KEYS),
    ("DELETE", "/api-keys/{apiKeyID}", _KEYS),
    ("POST", "/access-tokens", _USERS),
    ("DELETE", "/access-tokens/{accessTokenID}", _USERS),
    ("GET", "/teams/{teamID}/metrics", _CLUSTER),
    ("GET", "/teams/{teamID}/metrics/max", _CLUSTER),
    ("GET", "/templates/{templateID}/tags/groups", _OLD_TAGS),
    ("GET", "/templates/{templateID}/tags/{tag}/assignments", _OLD_TAGS),
    ("GET", "/nodes", _CLUSTER),
    ("GET", "/nodes/{nodeID}", _CLUSTER),
    ("POST", "/nodes/{nodeID}", _CLUSTER),
)


class OperationRoutes:
    """`about` gives what `GET /health` tells; `may_read_metrics` says who may see numbers about the whole host, by the key
    that was shown."""

    def __init__(
        self, about: Callable[[], dict[str, Any]], metrics: Metrics, may_read_metrics: Callable[[str], bool]
    ) -> None:
        self._about = about
        self._metrics = metrics
        self._may_read_metrics = may_read_metrics

    def table(self) -> list[Route]:
        return [
            Route("GET", "/health", self._health, open=True),
            Route("GET", "/metrics", self._read_metrics, open=True),
            Route("GET", "/", _page("index.html"), open=True),
            *(Route("GET", f"/{name}", _page(name), open=True) for name in ("status.css", "status.js")),
            Route("GET", "/teams", self._teams),
            *(Route(method, path, NotOffered(why)) for method, path, why in _NOT_OFFERED),
        ]

    async def _teams(self, call: Call) -> Answer:
        """A key belongs to one tenant, which is the one team that its holder sees."""
        team = {
            "teamID": call.tenant,
            "name": call.tenant,
            "apiKey": presented_key(call.exchange.request),
            "isDefault": True,
        }
        return Answer(200, [team])

    async def _read_metrics(self, call: Call) -> Answer:
        if not self._may_read_metrics(presented_key(call.exchange.request)):
            raise Unauthorized(
                "metrics need their key, or that of the tenant 'default', as Authorization: Bearer"
            )
        return Answer(200, self._metrics.text(), content_type=CONTENT_TYPE)

    async def _health(self, call: Call) -> Answer:
        return Answer(200, self._about())


def _page(name: str) -> Handler:
    """The handler of a file of the status page, which holds no secret: it asks for a key itself."""

    async def show(call: Call) -> Answer:
        body, content_type = pages.status(name)
        return Answer(200, body, pages.STATUS_FIELDS, content_type)

    return show
