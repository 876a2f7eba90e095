"""Sandboxes by the official SDK: make, find, keep, end."""

import json
import time
import uuid
from urllib.parse import urlencode

import httpx
import pytest
from conftest import API_KEY, Host, eventually
from e2b import (
    AuthenticationException,
    Sandbox,
    SandboxException,
    SandboxNotFoundException,
    SandboxNotRunningException,
    SandboxQuery,
    SandboxState,
)
from e2b.api.client.api.templates import get_default_templates
from e2b.api.client.client import AuthenticatedClient

pytestmark = pytest.mark.system


def rest(host: Host) -> httpx.Client:
    return httpx.Client(base_url=host.url, headers={"X-API-KEY": API_KEY})


def test_a_sandbox_tells_of_itself(host: Host) -> None:
    sandbox = host.create(metadata={"owner": "me"}, timeout=77)
    info = sandbox.get_info()
    assert (info.sandbox_id, info.template_id, info.metadata) == (sandbox.sandbox_id, "base", {"owner": "me"})
    assert info.state is SandboxState.RUNNING
    assert (info.end_at - info.started_at).total_seconds() == pytest.approx(77, abs=0.1)
    assert sandbox.is_running()
    sandbox.kill()


def test_a_killed_sandbox_is_gone(host: Host) -> None:
    sandbox = host.create()
    assert sandbox.kill()
    assert not sandbox.kill()
    assert not sandbox.is_running()
    with pytest.raises(SandboxNotRunningException):
        sandbox.commands.run("true")
    with pytest.raises(SandboxNotFoundException):
        Sandbox.connect(sandbox.sandbox_id, **host.options_of_sdk)
    with pytest.raises(SandboxNotFoundException):
        Sandbox.get_info(sandbox.sandbox_id, **host.options_of_sdk)


def test_a_command_learns_that_its_sandbox_was_killed(host: Host) -> None:
    sandbox = host.create()
    handle = sandbox.commands.run("sleep 1000", background=True)
    sandbox.kill()
    with pytest.raises(SandboxNotRunningException):
        handle.wait()


def test_a_sandbox_ends_when_its_time_is_over(host: Host) -> None:
    sandbox = host.create(timeout=3)
    assert sandbox.is_running()
    eventually(lambda: not sandbox.is_running())
    eventually(lambda: not (host.data / "sandboxes" / sandbox.sandbox_id).exists())


def test_the_time_can_be_set_anew(host: Host) -> None:
    sandbox = host.create(timeout=1000)
    sandbox.set_timeout(1)
    eventually(lambda: not sandbox.is_running())
    with pytest.raises(SandboxNotFoundException):
        sandbox.set_timeout(10)


def test_connecting_only_extends_the_time(host: Host) -> None:
    sandbox = host.create(timeout=500)
    again = Sandbox.connect(sandbox.sandbox_id, timeout=10, **host.options_of_sdk)
    end = again.get_info().end_at
    assert end.timestamp() - time.time() > 400
    Sandbox.connect(sandbox.sandbox_id, timeout=1000, **host.options_of_sdk)
    assert again.get_info().end_at.timestamp() - time.time() > 900
    assert again.commands.run("echo same").stdout == "same\n"
    again.kill()


def test_sandboxes_are_listed_by_metadata_and_in_pages(host: Host) -> None:
    mark = uuid.uuid4().hex
    made = [host.create(metadata={"mark": mark, "n": str(number)}) for number in range(3)]
    query = SandboxQuery(metadata={"mark": mark}, state=[SandboxState.RUNNING])
    pages = Sandbox.list(query=query, limit=2, **host.options_of_sdk)
    first = pages.next_items()
    assert pages.has_next
    second = pages.next_items()
    assert not pages.has_next
    assert [item.sandbox_id for item in first + second] == [sandbox.sandbox_id for sandbox in reversed(made)]
    one = Sandbox.list(query=SandboxQuery(metadata={"mark": mark, "n": "1"}), **host.options_of_sdk)
    assert [item.sandbox_id for item in one.next_items()] == [made[1].sandbox_id]
    paused = Sandbox.list(
        query=SandboxQuery(metadata={"mark": mark}, state=[SandboxState.PAUSED]), **host.options_of_sdk
    )
    assert paused.next_items() == []
    for sandbox in made:
        sandbox.kill()


def test_filters_hold_over_pages_and_in_both_orders(host: Host) -> None:
    folder = host.data / "templates" / "listed"
    folder.mkdir(exist_ok=True)
    (folder / "template.json").write_text("{}")
    mark = {"mark": uuid.uuid4().hex}
    made = [
        host.create(template=name, metadata=mark) for name in ("listed", "base", "listed", "base", "base")
    ]
    for paused in (made[0], made[3]):
        paused.pause()
    ids = [sandbox.sandbox_id for sandbox in made]

    def listed(**query: object) -> list[int]:
        """The numbers of those that all pages of two hold."""
        found: list[int] = []
        token = ""
        with rest(host) as client:
            while True:
                params = {"metadata": urlencode(mark), "limit": 2, "nextToken": token, **query}
                answer = client.get("/v2/sandboxes", params=params)
                page = [ids.index(each["sandboxID"]) for each in answer.json()]
                token = answer.headers.get("X-Next-Token", "")
                assert len(page) == 2 if token else len(page) <= 2
                found += page
                if not token:
                    return found

    since = made[2].get_info().started_at.isoformat()
    assert listed() == listed(state="running,paused") == [4, 3, 2, 1, 0]
    assert listed(order="asc") == [0, 1, 2, 3, 4]
    assert listed(state="running") == [4, 2, 1]
    assert listed(state="running", order="asc") == [1, 2, 4]
    assert listed(state="paused", order="asc") == [0, 3]
    assert listed(startedAfter=since) == [4, 3, 2]
    assert listed(startedAfter=since, state="running", order="asc") == [2, 4]
    assert listed(template="base") == [4, 3, 1]
    assert listed(template="listed", state="paused") == [0]
    assert listed(template="listed", order="asc", startedAfter=since) == [2]
    assert listed(template="none") == []
    for sandbox in made:
        sandbox.kill()


@pytest.mark.parametrize(
    ("query", "message"), [("state=foo", "one of running, paused"), ("order=up", "one of desc, asc")]
)
def test_a_list_that_cannot_be_meant_is_refused(host: Host, query: str, message: str) -> None:
    with rest(host) as client:
        answer = client.get(f"/v2/sandboxes?{query}")
    assert answer.status_code == 400
    assert message in answer.json()["message"]


def test_a_wrong_key_is_refused(host: Host) -> None:
    with pytest.raises(AuthenticationException):
        Sandbox.create(**{**host.options_of_sdk, "api_key": "wrong"})
    answer = httpx.get(f"{host.url}/v2/sandboxes")
    assert (answer.status_code, answer.json()["code"]) == (401, 401)


def test_a_wrong_access_token_is_refused(host: Host, shared: Sandbox) -> None:
    headers = {"E2b-Sandbox-Id": shared.sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": "wrong"}
    for path in ("/process.Process/List", "/filesystem.Filesystem/Stat"):
        assert httpx.post(host.url + path, headers=headers, json={}).status_code == 401
    for path in ("/envs", "/metrics", "/files?path=/tmp"):
        assert httpx.get(host.url + path, headers=headers).status_code == 401


def test_the_daemon_tells_of_health_environment_and_use(host: Host, shared: Sandbox) -> None:
    headers = {"E2b-Sandbox-Id": shared.sandbox_id, "X-Access-Token": shared._envd_access_token}
    assert httpx.get(f"{host.url}/health", headers=headers).status_code == 204
    assert httpx.get(f"{host.url}/envs", headers=headers).json()["HOME"] == "/home/user"
    metrics = httpx.get(f"{host.url}/metrics", headers=headers).json()
    assert metrics["mem_total"] == 4096 * 1024 * 1024
    assert 0 < metrics["mem_used"] < metrics["mem_total"]


def test_the_host_tells_of_its_health_without_a_key(host: Host) -> None:
    assert httpx.get(f"{host.url}/health").json()["status"] == "ok"


def test_an_unknown_template_is_not_found(host: Host) -> None:
    with pytest.raises(SandboxException, match=r"404.*'nothing' not found"):
        host.create(template="nothing")


def test_a_template_mounts_folders_and_sets_variables(
    host: Host, tmp_path_factory: pytest.TempPathFactory
) -> None:
    private = tmp_path_factory.mktemp("private")
    private.chmod(0o700)
    tools = private / "tools"
    tools.mkdir()
    (tools / "hello").write_text("#!/bin/sh\necho hello from a template\n")
    (tools / "hello").chmod(0o755)
    folder = host.data / "templates" / "tooled"
    folder.mkdir(exist_ok=True)
    template = {
        "mounts": [{"source": str(tools), "target": "/opt/tools"}],
        "env": {"PATH": "/opt/tools:/usr/bin:/bin"},
        "memory_mb": 512,
        "cpu_count": 1,
    }
    (folder / "template.json").write_text(json.dumps(template))
    sandbox = host.create(template="tooled")
    assert sandbox.commands.run("hello").stdout == "hello from a template\n"
    assert sandbox.commands.run("touch /opt/tools/x || echo refused").stdout == "refused\n"
    info = sandbox.get_info()
    sandbox.kill()
    assert (info.template_id, info.memory_mb, info.cpu_count) == ("tooled", 512, 1)


def test_a_broken_template_says_what_is_wrong(host: Host) -> None:
    folder = host.data / "templates" / "broken"
    folder.mkdir(exist_ok=True)
    (folder / "template.json").write_text('{"mounts": [{"source": "/tmp", "target": "/usr/x"}]}')
    with pytest.raises(SandboxException, match="nothing can be mounted on /usr/x"):
        host.create(template="broken")
    (folder / "template.json").write_text('{"mounts": [{"source": "/nowhere", "target": "/opt/x"}]}')
    with pytest.raises(SandboxException, match="/nowhere does not exist"):
        host.create(template="broken")


@pytest.mark.parametrize(
    "wish",
    [
        {"mcp": {"x": {}}},
        {"volumeMounts": [{}]},
        {"network": {"egressProxy": {"address": "proxy.example:1080"}}},
    ],
)
def test_what_is_not_offered_is_refused(host: Host, wish: dict[str, object]) -> None:
    with rest(host) as client:
        answer = client.post("/v2/sandboxes", json={"templateID": "base", **wish})
    assert (answer.status_code, answer.json()["code"]) == (501, 501)
    assert "not offered" in answer.json()["message"]


def test_the_generated_client_reads_the_operators_templates(host: Host) -> None:
    client = AuthenticatedClient(host.url, API_KEY, auth_header_name="X-API-KEY", prefix="")
    with client:
        found = get_default_templates.sync(client=client)
    assert isinstance(found, list)
    names = [template.template_id for template in found]
    assert names == sorted(names)
    assert {"base", "debian"} <= set(names)
    assert all(template.is_default for template in found)


def test_paths_that_are_not_offered_answer_501(host: Host) -> None:
    with rest(host) as client:
        assert client.get("/volumes").status_code == 501
        for path in ("groups", "latest/assignments"):
            assert client.get(f"/templates/base/tags/{path}").status_code == 501
        assert client.get("/nonsense").status_code == 404


def test_a_repeated_idempotency_key_gives_the_same_sandbox(host: Host) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex}
    with rest(host) as client:
        first = client.post("/v2/sandboxes", json={"templateID": "base"}, headers=key).json()
        second = client.post("/v2/sandboxes", json={"templateID": "base"}, headers=key).json()
        other = client.post("/v2/sandboxes", json={"templateID": "base", "timeout": 9}, headers=key)
        client.delete(f"/sandboxes/{first['sandboxID']}")
    assert first["sandboxID"] == second["sandboxID"]
    assert other.status_code == 409


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b'{"templateID": 3}', b'{"templateID": "base", "timeout": -1}']
)
def test_a_malformed_request_is_refused(host: Host, body: bytes) -> None:
    with rest(host) as client:
        answer = client.post("/v2/sandboxes", content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, 400)


def test_servers_in_a_sandbox_are_reached_by_header_and_by_host_name(host: Host, shared: Sandbox) -> None:
    server = shared.commands.run(
        "cd /usr/share/common-licenses && python3 -m http.server 3000", background=True
    )
    by_header = {"E2b-Sandbox-Id": shared.sandbox_id, "E2b-Sandbox-Port": "3000"}
    eventually(lambda: httpx.get(f"{host.url}/", headers=by_header).status_code == 200)
    name = shared.get_host(3000)
    assert name == f"3000-{shared.sandbox_id}.localhost:{host.listen.rpartition(':')[2]}"
    answer = httpx.get(f"{host.url}/Apache-2.0", headers={"Host": name})
    assert "Apache License" in answer.text
    server.kill()
    closed = httpx.get(f"{host.url}/", headers=by_header)
    assert closed.status_code == 502
    assert "port is not open" in closed.json()["message"]


def test_private_ports_want_their_token(host: Host) -> None:
    sandbox = host.create(network={"allow_public_traffic": False})
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "3000"}
    assert httpx.get(host.url, headers=headers).status_code == 403
    headers["E2b-Traffic-Access-Token"] = str(sandbox.traffic_access_token)
    assert httpx.get(host.url, headers=headers).status_code == 502
    sandbox.kill()


def test_requests_that_can_be_read_in_two_ways_are_refused(host: Host) -> None:
    with rest(host) as client:
        twice = client.post(
            "/v2/sandboxes", content=b"{}", headers={"Transfer-Encoding": "chunked", "Content-Length": "2"}
        )
    assert twice.status_code == 400
