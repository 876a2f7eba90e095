"""Templates: what there are, and how new ones are built."""

from ..snapshots import Snapshots
from .call import Answer, Call, Route
from .router import unsupported


class TemplateRoutes:
    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    def table(self) -> list[Route]:
        one = "/templates/{templateID}"
        build = f"{one}/builds/{{buildID}}"
        return [
            Route("DELETE", one, self._delete),
            *(
                Route(method, path, unsupported)
                for method, path in (
                    ("GET", "/templates"),
                    ("GET", "/v2/templates"),
                    ("POST", "/templates"),
                    ("POST", "/v2/templates"),
                    ("POST", "/v3/templates"),
                    ("GET", one),
                    ("POST", one),
                    ("PATCH", one),
                    ("PATCH", f"/v2{one}"),
                    ("GET", f"{one}/files/{{hash}}"),
                    ("POST", build),
                    ("POST", f"/v2{build}"),
                    ("GET", f"{build}/status"),
                    ("GET", f"{build}/logs"),
                    ("GET", f"{one}/tags"),
                    ("POST", "/templates/tags"),
                    ("DELETE", "/templates/tags"),
                    ("GET", "/templates/aliases/{alias}"),
                )
            ),
        ]

    async def _delete(self, call: Call) -> Answer:
        """A snapshot is a template to its users."""
        await self._snapshots.delete(call.variables["templateID"], call.tenant)
        return Answer(204)
