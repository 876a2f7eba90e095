"""Templates: what there are, and how new ones are built."""

from .call import Route
from .router import unsupported


class TemplateRoutes:
    def table(self) -> list[Route]:
        one = "/templates/{templateID}"
        build = f"{one}/builds/{{buildID}}"
        return [
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
                ("DELETE", one),
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
        ]
