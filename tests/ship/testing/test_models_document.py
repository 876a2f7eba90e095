"""docs/models.md names every scenario, fault and failure that there is."""

from pathlib import Path

import pytest

from ship.gateway import model_errors
from ship.gateway.model_errors import ModelError
from ship.testing.builtin import SCENARIOS
from ship.testing.scenario import Fault

DOCUMENT = (Path(__file__).parents[3] / "docs/models.md").read_text()
ERRORS = [
    each for each in vars(model_errors).values() if isinstance(each, type) and issubclass(each, ModelError)
]


@pytest.mark.parametrize("name", [*(each.name for each in SCENARIOS), *Fault])
def test_every_scenario_and_fault_has_a_row(name: str) -> None:
    assert f"\n| `{name}` |" in DOCUMENT


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error.__name__))
def test_every_failure_is_described(error: type[ModelError]) -> None:
    assert f"`{error.code}`" in DOCUMENT
