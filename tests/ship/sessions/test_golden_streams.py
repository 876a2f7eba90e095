"""Whole logs and what they fold to. The web app's tests read the same files: the two folds agree, event by event."""

from pathlib import Path

import msgspec
import pytest

from ship.events import decode
from ship.sessions import views
from ship.sessions.fold import fold

STREAMS = Path(__file__).parents[2] / "golden" / "streams"


@pytest.mark.parametrize("name", ["whole", "life"])
def test_a_log_folds_to_the_session_that_was_kept_with_it(name: str) -> None:
    records = [decode(line) for line in (STREAMS / f"{name}.jsonl").read_bytes().splitlines()]
    kept = msgspec.json.decode((STREAMS / f"{name}.session.json").read_bytes())
    state = fold(records)
    assert state is not None
    view = views.session(kept["id"], state)
    assert msgspec.json.decode(msgspec.json.encode(view)) == kept
