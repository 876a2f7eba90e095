"""What the host tells a sandbox's daemon over its socket: what it learns when it is handed out, and why something died."""

import os
from collections.abc import Iterator

import httpx
import pytest
from conftest import Host
from e2b import CommandExitException, Sandbox

pytestmark = pytest.mark.system


class Daemon:
    """A sandbox's daemon as the host reaches it."""

    def __init__(self, host: Host, sandbox: Sandbox) -> None:
        self.token = host.record(sandbox.sandbox_id)["token"]
        self._folder = os.open(host.data / "sandboxes" / sandbox.sandbox_id, os.O_PATH)

    def post(self, path: str, message: dict[str, object] | None = None, token: str | None = None) -> int:
        transport = httpx.HTTPTransport(uds=f"/proc/self/fd/{self._folder}/envd.sock")
        with httpx.Client(transport=transport, base_url="http://envd") as client:
            headers = {"X-Access-Token": self.token if token is None else token}
            return client.post(path, json=message or {}, headers=headers).status_code

    def close(self) -> None:
        os.close(self._folder)


@pytest.fixture
def daemon(host: Host, sandbox: Sandbox) -> Iterator[Daemon]:
    daemon = Daemon(host, sandbox)
    yield daemon
    daemon.close()


def test_a_sandbox_learns_its_variables_place_and_user(sandbox: Sandbox, daemon: Daemon) -> None:
    message = {"envVars": {"COLOUR": "green"}, "defaultWorkdir": "/workspace", "defaultUser": "root"}
    assert daemon.post("/init", message) == 204
    assert sandbox.commands.run("echo $COLOUR; pwd; id -u").stdout == "green\n/workspace\n0\n"
    assert sandbox.commands.run("pwd; id -u", user="user", cwd="/tmp").stdout == "/tmp\n1000\n"
    assert daemon.post("/init", {"envVars": {"SIZE": "big"}}) == 204
    assert sandbox.commands.run("echo $COLOUR $SIZE").stdout == "green big\n"


def test_a_new_token_replaces_the_old_one(sandbox: Sandbox, daemon: Daemon) -> None:
    assert daemon.post("/init", {"accessToken": "another"}) == 204
    assert daemon.post("/init") == 401
    assert daemon.post("/init", token="another") == 204


@pytest.mark.parametrize(
    "message", [{"envVars": {"A=": "x"}}, {"envVars": ["A"]}, {"defaultUser": "postgres"}]
)
def test_what_cannot_be_learned_is_refused(daemon: Daemon, message: dict[str, object]) -> None:
    assert daemon.post("/init", message) in (400, 401)


def _killed(sandbox: Sandbox, command: str) -> str | None:
    with pytest.raises(CommandExitException) as raised:
        sandbox.commands.run(command)
    return raised.value.error


def test_a_command_that_memory_ended_says_so(sandbox: Sandbox, daemon: Daemon) -> None:
    assert _killed(sandbox, "kill -9 $$") == "signal: killed"
    assert daemon.post("/out-of-memory") == 204
    assert _killed(sandbox, "kill -9 $$") == "signal: killed: out of memory"
    assert _killed(sandbox, "sh -c 'kill -9 $$'; exit $?") == "exit status 137: out of memory"
    assert _killed(sandbox, "kill -15 $$") == "signal: terminated"


def test_a_command_that_a_caller_killed_was_not_ended_by_memory(sandbox: Sandbox, daemon: Daemon) -> None:
    assert daemon.post("/out-of-memory") == 204
    handle = sandbox.commands.run("sleep 100", background=True)
    assert handle.kill()
    with pytest.raises(CommandExitException) as raised:
        handle.wait()
    assert raised.value.error == "signal: killed"
