"""What every store keeps, table by table, in the form in which it is carried from one to another."""

from collections.abc import Mapping

TABLES: Mapping[str, tuple[str, ...]] = {
    "sessions": ("id", "status", "created_at_ms", "body", "repository"),
    "events": ("session_id", "seq", "type", "body"),
    "messages": ("session_id", "seq", "body"),
    "snapshots": ("session_id", "seq", "shape", "body"),
    "packed": ("session_id", "head", "sha256", "pages"),
    "outbox": ("effect_id", "session_id", "body", "attempts", "due_at_ms"),
    "alarms": ("session_id", "name", "due_at_ms"),
    "idempotency": ("scope", "key", "fingerprint", "answer", "at_ms"),
    "all_texts": ("session_id", "seq", "text"),
    "tokens": ("digest", "kind", "name", "created_at_ms", "expires_at_ms"),
    "secrets": ("name", "value"),
}
"""The columns of each table, in the order of a row. What is not named here is derived, and made anew."""

QUEUES: Mapping[str, str] = {"all_texts": "unindexed"}
"""What is put elsewhere than it is read: texts are indexed where they arrive."""

PAGE = 200
"""So many rows are carried at once."""

MEANINGS = 2_000
"""The vectors of so many texts are read at once."""
