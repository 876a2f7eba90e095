"""The host's own description of its REST API is true."""

import json
import re
from pathlib import Path

import httpx
import pytest
from conftest import API_KEY, Host
from e2b import Sandbox

import ship_sandboxd
from ship_sandboxd.api.call import Route
from ship_sandboxd.api.router import unsupported
from ship_sandboxd.openapi import document

pytestmark = pytest.mark.system
COMMITTED = Path(ship_sandboxd.__file__).parent / "openapi.json"


def told(host: Host) -> dict[str, dict[str, dict[str, object]]]:
    answer = httpx.get(f"{host.url}/openapi.json")
    assert answer.status_code == 200
    return answer.json()


def test_the_committed_document_is_what_a_host_tells(host: Host) -> None:
    assert json.loads(COMMITTED.read_text()) == told(host), "run scripts/export_sandboxd_openapi.py"


def test_every_path_that_is_told_is_served(host: Host) -> None:
    """Each is asked for without a body and without a key: one that does not exist would answer 404."""
    for path, operations in told(host)["paths"].items():
        for method, operation in operations.items():
            url = host.url + re.sub(r"\{[^}]+\}", "nothere", path)
            answer = httpx.request(method, url)
            if operation.get("security") == []:
                assert answer.status_code != 404 or "{" in path, (method, path)
            else:
                assert answer.status_code == 401, (method, path)
                if "501" in operation["responses"]:
                    offered = httpx.request(method, url, headers={"X-API-KEY": API_KEY})
                    assert offered.status_code == 501, (method, path)


def test_everything_that_is_offered_is_told_in_words(host: Host) -> None:
    outlined = [
        (method, path)
        for path, operations in told(host)["paths"].items()
        for method, operation in operations.items()
        if operation["summary"] == "As in E2B's protocol"
    ]
    assert outlined == []


def test_every_shape_that_is_named_is_there(host: Host) -> None:
    found = told(host)
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(found)))
    assert names == set(found["components"]["schemas"])


def test_what_is_answered_has_the_fields_that_are_told(host: Host, shared: Sandbox) -> None:
    shapes = told(host)["components"]["schemas"]

    def get(path: str) -> object:
        return httpx.get(host.url + path, headers={"X-API-KEY": API_KEY}).json()

    def fits(value: dict[str, object], name: str) -> None:
        shape = shapes[name]
        assert set(shape["required"]) <= set(value) <= set(shape["properties"]), name

    one = f"/sandboxes/{shared.sandbox_id}"
    fits(get(one), "Sandbox")
    fits(get("/v2/sandboxes")[0], "ListedSandbox")
    fits(get(f"{one}/metrics")[0], "Metric")
    fits(get("/teams")[0], "Team")
    fits(get("/templates")[0], "Template")
    fits(get("/sandboxes/nothere"), "Error")
    made = httpx.post(f"{host.url}/v2{one}/connect", headers={"X-API-KEY": API_KEY}, json={"timeout": 60})
    fits(made.json(), "Handle")


def test_what_is_not_offered_says_so() -> None:
    paths = document([Route("POST", "/volumes/{volumeID}", unsupported)])["paths"]
    assert list(paths["/volumes/{volumeID}"]["post"]["responses"]) == ["501"]
