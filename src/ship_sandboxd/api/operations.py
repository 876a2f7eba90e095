"""What is told of the host itself, and the parts of E2B's protocol that no other module offers."""

from typing import Any

from .call import Answer, Call, Route
from .router import unsupported


class OperationRoutes:
    """`about` is what `GET /health` tells."""

    def __init__(self, about: dict[str, Any]) -> None:
        self._about = about

    def table(self) -> list[Route]:
        return [
            Route("GET", "/health", self._health, open=True),
            *(
                Route(method, path, unsupported)
                for resource, variable in (("volumes", "{volumeID}"), ("secrets", "{secretID}"))
                for method, path in (
                    ("GET", f"/{resource}"),
                    ("POST", f"/{resource}"),
                    ("GET", f"/{resource}/{variable}"),
                    ("POST", f"/{resource}/{variable}"),
                    ("DELETE", f"/{resource}/{variable}"),
                )
            ),
        ]

    async def _health(self, call: Call) -> Answer:
        return Answer(200, self._about)
