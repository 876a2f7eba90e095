"""The documents name everything that there is, and nothing that there is not."""

import json
import re
from pathlib import Path

import msgspec
import pytest
from prometheus_client import Counter, Gauge, Histogram

from ship import config, errors
from ship.api.application import create_api
from ship.api.openapi import document
from ship.events import FACTS, Fact, frames
from ship.sessions import metrics
from ship.sessions.reports import REPORTABLE

ROOT = Path(__file__).parents[2]
PROTOCOL = (ROOT / "docs/protocol.md").read_text()


def rows(text: str) -> dict[str, str]:
    """First cell → second cell of every table row whose first cell is one code word."""
    return dict(re.findall(r"^\| `([a-z_.]+)`(?: v\d+)? \| (.+?) \|$", text, re.MULTILINE))


def test_the_protocol_lists_every_event() -> None:
    assert {name for name in rows(PROTOCOL) if "." in name} == {fact.TYPE for fact in FACTS}


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.TYPE)
def test_the_protocol_names_every_field_of_an_event(fact: type[Fact]) -> None:
    described = rows(PROTOCOL)[fact.TYPE]
    missing = [name for name in fact.__struct_fields__ if not re.search(rf"\b{name}\b", described)]
    assert not missing


def test_the_protocol_names_the_version_of_every_event() -> None:
    named = dict(re.findall(r"^\| `([a-z_]+\.[a-z_]+)`(?: v(\d+))? \|", PROTOCOL, re.MULTILINE))
    assert {name: int(version or 1) for name, version in named.items()} == {
        fact.TYPE: fact.VERSION for fact in FACTS
    }


@pytest.mark.parametrize(
    "frame",
    [
        *(frames.Hello, frames.Reported, frames.Delta, frames.Welcome, frames.Ack),
        *(frames.Prompt, frames.Steer, frames.Cancel, frames.Checkpoint, frames.Reply, frames.Refused),
    ],
)
def test_the_protocol_describes_every_frame(frame: type[frames.Frame]) -> None:
    tag = frame.__struct_config__.tag
    described = re.search(rf"^\| `{tag} \{{(.+?)\}}` \|", PROTOCOL, re.MULTILINE)
    assert described, f"no row for {tag}"
    assert all(re.search(rf"\b{name}\b", described[1]) for name in frame.__struct_fields__)


def test_the_protocol_says_what_a_runner_may_report() -> None:
    said = PROTOCOL.split("The runner may report:")[1].split("Anything else")[0]
    assert set(re.findall(r"`([a-z_.]+)`", said)) == {fact.TYPE for fact in REPORTABLE}


def test_the_protocol_lists_every_route() -> None:
    described = set(re.findall(r"`(?:[A-Z/]+ )?(/[a-z/_{}.?=…]+)`", PROTOCOL))
    described |= set(re.findall(r"(?:GET|PUT|POST) \{SHIP_URL\}(/runner/v1/[a-z/_{}]+)", PROTOCOL))
    described |= {path.partition("?")[0] for path in described}
    described |= set(re.findall(r"(?<=[`,] )?`(/[a-z]+)`", PROTOCOL))
    for path in document(create_api())["paths"]:
        short = path.removeprefix("/api/v1").replace("{session_id}", "{id}")
        assert short in described, f"{path} is not in docs/protocol.md"


def test_the_openapi_document_is_up_to_date() -> None:
    committed = json.loads((ROOT / "openapi.json").read_text())
    present = json.loads(json.dumps(document(create_api())))
    assert committed == present, "run scripts/export_openapi.py"


def _settings(table: type[msgspec.Struct], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for field in msgspec.structs.fields(table):
        name = f"{prefix}{field.name}"
        inner = isinstance(field.type, type) and issubclass(field.type, config.Table)
        found |= _settings(field.type, f"{name}.") if inner else {name}
    return found


def test_every_setting_and_variable_is_documented() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    assert {name for name in rows(text) if name.islower()} == _settings(config.Settings)
    for variable in (*config.ENVIRONMENT, *config.PROVIDER_ENVIRONMENT):
        assert f"`{variable}`" in text
    for field in (*msgspec.structs.fields(config.Provider), *msgspec.structs.fields(config.ModelSpec)):
        assert re.search(rf"\b{field.name}\b", text), field.name


def test_every_metric_is_documented() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    named = set(re.findall(r"^\| `(ship_[a-z_]+)` \|", text, re.MULTILINE))
    collected = {
        f"{name}_total" if isinstance(metric, Counter) else name
        for metric in vars(metrics).values()
        if isinstance(metric, Counter | Gauge | Histogram)
        for name in [metric.describe()[0].name]
    }
    assert named == collected


def test_the_error_tree_is_drawn_whole() -> None:
    assert errors.__doc__
    tree = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ShipError)
    ]
    assert not [name for name in tree if name not in errors.__doc__]


def test_every_package_is_on_the_map() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    packages = [path.name for path in (ROOT / "src/ship").iterdir() if (path / "__init__.py").is_file()]
    assert not [name for name in packages if f"`ship.{name}`" not in text]
