"""The OpenAPI document: the routes, and the shape of every event by its type."""

from typing import Any

import msgspec
from fastapi import FastAPI

from ship.events import FACTS
from ship.events.frames import Delta

REFERENCES = "#/components/schemas/{name}"


def document(app: FastAPI) -> dict[str, Any]:
    """The document, with ``Record`` as the union of all events."""
    found = app.openapi()
    _, components = msgspec.json.schema_components([*FACTS, Delta], ref_template=REFERENCES)
    schemas = found["components"]["schemas"]
    schemas.update({name: shape for name, shape in components.items() if name not in schemas})
    for fact in FACTS:
        schemas[f"{fact.__name__}Record"] = _record(fact.TYPE, fact.VERSION, fact.__name__)
    schemas["Record"] = {
        "oneOf": [{"$ref": REFERENCES.format(name=f"{fact.__name__}Record")} for fact in FACTS],
        "discriminator": {"propertyName": "type"},
    }
    return found


def _record(type_name: str, version: int, data: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "seq": {"type": "integer"},
        "at_ms": {"type": "integer"},
        "type": {"type": "string", "const": type_name},
        "v": {"type": "integer", "const": version},
        "actor": {"$ref": REFERENCES.format(name="ActorOut")},
        "data": {"$ref": REFERENCES.format(name=data)},
        "frame": {"anyOf": [{"$ref": REFERENCES.format(name="CursorOut")}, {"type": "null"}]},
    }
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
