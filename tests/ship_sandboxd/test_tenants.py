"""Tenants share a host and see nothing of each other."""

import hashlib
import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import httpx
import pytest
from conftest import API_KEY, Host, eventually
from e2b import Sandbox, SandboxQuery
from e2b.exceptions import SandboxException

from ship_sandboxd.errors import SetupError
from ship_sandboxd.tenants import Tenants

pytestmark = pytest.mark.system

RED, BLUE = "red-" + "1" * 20, "blue-" + "2" * 20


def digest_of(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def keys_file(folder: Path, values: object) -> Path:
    path = folder / "keys.json"
    scratch = folder / "keys.new"
    scratch.write_text(json.dumps(values))
    scratch.chmod(0o600)
    scratch.replace(path)
    return path


def status(host: Host, path: str, key: str, method: str = "GET") -> int:
    return httpx.request(
        method, host.url + path, headers={"X-API-KEY": key}, json={"timeout": 60}
    ).status_code


def test_a_key_is_known_by_itself_or_by_its_digest(tmp_path: Path) -> None:
    tenants = Tenants("own", keys_file(tmp_path, {"red": [digest_of(RED)], "blue": [BLUE]}))
    owners = [tenants.owner(key) for key in ("own", RED, BLUE, "", RED + " ", digest_of(RED))]
    assert owners == ["default", "red", "blue", None, None, None]


def test_a_key_that_leaves_the_file_is_worth_nothing_at_once(tmp_path: Path) -> None:
    tenants = Tenants("", keys_file(tmp_path, {"red": [RED], "blue": [BLUE]}))
    keys_file(tmp_path, {"blue": [BLUE]})
    assert [tenants.owner(RED), tenants.owner(BLUE)] == [None, "blue"]


def test_a_file_that_breaks_leaves_the_keys_as_they_were(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = keys_file(tmp_path, {"red": [RED]})
    tenants = Tenants("", path)
    path.write_text('{"red": ["' + BLUE)
    assert [tenants.owner(RED), tenants.owner(BLUE), tenants.owner(RED)] == ["red", None, "red"]
    path.unlink()
    assert tenants.owner(RED) == "red"
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert BLUE not in caplog.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "object of lists"),
        ({"Red": [RED]}, "no name"),
        ({"red": RED}, "list of strings"),
        ({"red": [1]}, "list of strings"),
        ({"red": [RED, "short"]}, "key 2 of red"),
        ({"red": ["sha256:00"]}, "key 1 of red"),
        ({"red": [RED], "blue": [digest_of(RED)]}, "also a key of red"),
    ],
)
def test_a_file_that_makes_no_sense_stops_the_start_and_tells_no_key(
    tmp_path: Path, values: object, message: str
) -> None:
    with pytest.raises(SetupError, match=message) as caught:
        Tenants("", keys_file(tmp_path, values))
    assert caught.value.code == "keys_invalid"
    assert RED not in str(caught.value)


def test_a_tenant_finds_lists_changes_and_ends_only_its_own(
    own_host: Callable[..., Host], tmp_path: Path
) -> None:
    path = keys_file(tmp_path, {"red": [RED], "blue": [digest_of(BLUE)]})
    host = own_host("--keys", str(path))
    red = {**host.options_of_sdk, "api_key": RED, "validate_api_key": False}
    blue = {**host.options_of_sdk, "api_key": BLUE, "validate_api_key": False}
    sandbox = Sandbox.create(timeout=60, **red)

    def seen(options: dict[str, object]) -> list[str]:
        return [info.sandbox_id for info in Sandbox.list(query=SandboxQuery(), **options).next_items()]

    assert [seen(red), seen(blue), seen(host.options_of_sdk)] == [[sandbox.sandbox_id], [], []]
    assert not Sandbox.kill(sandbox.sandbox_id, **blue)
    with pytest.raises(SandboxException):
        Sandbox.connect(sandbox.sandbox_id, **blue)
    assert sandbox.commands.run("echo alive").stdout == "alive\n"
    host.restart(kill=True)
    moved = {**red, "api_url": host.url, "sandbox_url": host.url}
    assert [seen(moved), seen({**blue, "api_url": host.url})] == [[sandbox.sandbox_id], []]
    assert Sandbox.kill(sandbox.sandbox_id, **moved)


def test_no_route_shows_or_changes_what_is_anothers(own_host: Callable[..., Host], tmp_path: Path) -> None:
    """Every route that the host tells of is asked for what is another tenant's, with a body that each of them would take."""
    host = own_host("--keys", str(keys_file(tmp_path, {"red": [RED], "blue": [BLUE]})))
    body = {"timeout": 60, "fromImage": "debian:bookworm", "steps": [], "name": "mine"}
    body |= {"target": "mine:default", "tags": ["x"], "public": True}

    def call(key: str, method: str, path: str, body: object = None) -> httpx.Response:
        return httpx.request(method, host.url + path, headers={"X-API-KEY": key}, json=body, timeout=60)

    sandbox_id = call(RED, "POST", "/v2/sandboxes", {"templateID": "base", "timeout": 600}).json()[
        "sandboxID"
    ]
    template = call(RED, "POST", "/v3/templates", {"name": "mine"}).json()
    mine = {"sandboxID": sandbox_id, "hash": "a" * 64, "alias": "mine", "tag": "default"}
    mine |= {name: template[name] for name in ("templateID", "buildID")}
    query = urlencode({"tag": "default", "sandbox_ids": sandbox_id, "sandboxID": sandbox_id, "name": "mine"})

    def routes() -> Iterator[tuple[str, str, bool, bool]]:
        """(method, path of what is red's, whether it names something, whether it needs no key)"""
        for path, operations in httpx.get(f"{host.url}/openapi.json").json()["paths"].items():
            for method, operation in operations.items():
                if "501" not in operation["responses"]:
                    filled = re.sub(r"\{(\w+)\}", lambda found: mine[found[1]], path)
                    yield method.upper(), f"{filled}?{query}", filled != path, operation.get("security") == []

    asked = 0
    for method, path, is_named, is_open in routes():
        for key in (BLUE, API_KEY):
            if is_named or method == "DELETE" or path.startswith("/templates/tags"):
                answer = call(key, method, path, body)
                expected = 401 if is_open else 404
                assert (answer.status_code, answer.json()["error_code"] == "not_found") == (
                    expected,
                    False,
                ), path
                asked += 1
            elif method == "GET":
                text = call(key, method, path).text
                assert not [each for each in (sandbox_id, template["templateID"]) if each in text], path
    assert asked > 50
    for method, path, is_named, is_open in routes():
        if is_named and method == "GET" and not is_open:
            assert call(RED, method, path).is_success, path
    assert call(RED, "GET", f"/sandboxes/{sandbox_id}").json()["state"] == "running"


def test_a_snapshot_is_its_tenant_s_own(own_host: Callable[..., Host], tmp_path: Path) -> None:
    host = own_host("--keys", str(keys_file(tmp_path, {"red": [RED], "blue": [BLUE]})))

    def call(key: str, method: str, path: str, body: object = None) -> httpx.Response:
        return httpx.request(method, host.url + path, headers={"X-API-KEY": key}, json=body, timeout=60)

    made = call(RED, "POST", "/v2/sandboxes", {"templateID": "base", "timeout": 60}).json()
    snapshot = call(RED, "POST", f"/sandboxes/{made['sandboxID']}/snapshots", {"name": "mine"})
    if snapshot.status_code == 501:
        pytest.skip("this machine cannot make snapshots")
    name = snapshot.json()["snapshotID"]
    assert [each["snapshotID"] for each in call(RED, "GET", "/snapshots").json()] == [name]
    for key in (BLUE, API_KEY):
        assert call(key, "GET", "/snapshots").json() == []
        assert call(key, "POST", "/v2/sandboxes", {"templateID": name}).status_code == 404
        assert call(key, "GET", f"/templates/{quote(name, safe='')}").status_code == 404
        assert call(key, "DELETE", f"/templates/{quote(name, safe='')}").status_code == 404
    copy = call(RED, "POST", "/v2/sandboxes", {"templateID": name, "timeout": 60})
    assert copy.status_code == 201
    assert call(RED, "DELETE", f"/templates/{quote(name, safe='')}").status_code == 204


def test_a_template_is_its_tenant_s_own(own_host: Callable[..., Host], tmp_path: Path) -> None:
    """The same name means another template to each."""
    host = own_host("--keys", str(keys_file(tmp_path, {"red": [RED], "blue": [BLUE]})))

    def call(key: str, method: str, path: str, body: object = None) -> httpx.Response:
        return httpx.request(method, host.url + path, headers={"X-API-KEY": key}, json=body)

    made = call(RED, "POST", "/v3/templates", {"name": "mine"}).json()
    one = f"/templates/{made['templateID']}"
    assert call(RED, "GET", one).status_code == 200
    other = call(BLUE, "POST", "/v3/templates", {"name": "mine"}).json()
    assert other["templateID"] != made["templateID"]


def test_one_idempotency_key_of_two_tenants_makes_two_sandboxes(
    own_host: Callable[..., Host], tmp_path: Path
) -> None:
    host = own_host("--keys", str(keys_file(tmp_path, {"red": [RED]})))

    def create(key: str) -> str:
        fields = {"X-API-KEY": key, "Idempotency-Key": "the-same"}
        answer = httpx.post(f"{host.url}/v2/sandboxes", headers=fields, json={"templateID": "base"})
        assert answer.status_code == 201
        return str(answer.json()["sandboxID"])

    assert create(RED) == create(RED) != create(API_KEY)


def test_keys_are_read_again_on_sighup_and_when_the_file_changes(
    own_host: Callable[..., Host], tmp_path: Path
) -> None:
    host = own_host("--keys", str(keys_file(tmp_path, {"red": [RED]})))
    assert status(host, "/v2/sandboxes", BLUE) == 401
    keys_file(tmp_path, {"blue": [BLUE]})
    assert [status(host, "/v2/sandboxes", key) for key in (BLUE, RED, API_KEY)] == [200, 401, 200]
    assert host.process is not None
    host.process.send_signal(signal.SIGHUP)
    eventually(lambda: host.log().count('"keys read"') == 2)


def test_a_key_also_serves_as_the_access_token_of_the_command_line(host: Host) -> None:
    answer = httpx.get(f"{host.url}/teams", headers={"Authorization": f"Bearer {API_KEY}"})
    assert answer.json() == [{"teamID": "default", "name": "default", "apiKey": API_KEY, "isDefault": True}]
    for fields in ({"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {API_KEY}"}, {}):
        assert httpx.get(f"{host.url}/teams", headers=fields).status_code == 401


@pytest.mark.parametrize("path", ["/api-keys", "/volumes", "/secrets/x", "/nodes", "/teams/x/metrics"])
def test_what_is_not_offered_says_so_and_why(host: Host, path: str) -> None:
    answer = httpx.get(host.url + path, headers={"X-API-KEY": API_KEY})
    assert answer.status_code == 501
    assert answer.json()["error_code"] == "unsupported"
    assert answer.json()["message"].startswith(f"GET {path} is not offered by this sandbox host: ")
