"""What a search found, as clients see it."""

from collections.abc import Sequence
from typing import Any

import msgspec

from ship.ports.store import Found
from ship.words import Term, snippet


def view(found: Found, terms: Sequence[Term]) -> dict[str, Any]:
    """A session, and the best of what was said in it."""
    return {
        "session": msgspec.Raw(found.body),
        "seq": found.seq,
        "matches": found.matches,
        "snippet": [mark._asdict() for mark in snippet(found.text, terms)],
    }
