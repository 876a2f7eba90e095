"""Templates built by the official SDK on a real host: steps, caching, failures, tags, start commands."""

import json
import os
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import API_KEY, Host, eventually
from e2b import LogEntry, Sandbox, Template, wait_for_file
from e2b.exceptions import BuildException

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers need a host that runs as root")

Log = list[str]
Build = Callable[..., Log]


@pytest.fixture
def build(builder: Host) -> Build:
    """Build a template; answers the messages of its log."""

    def run(template: Any, name: str, **options: Any) -> Log:
        messages: Log = []

        def hear(entry: LogEntry) -> None:
            messages.append(entry.message)

        options = {"cpu_count": 1, "memory_mb": 512, **options}
        Template.build(template, name, on_build_logs=hear, api_key=API_KEY, api_url=builder.url, **options)
        return messages

    return run


@pytest.fixture
def create(builder: Host) -> Iterator[Callable[..., Sandbox]]:
    made: list[Sandbox] = []

    def run(template: str, **options: Any) -> Sandbox:
        made.append(builder.create(template=template, **options))
        return made[-1]

    yield run
    for sandbox in made:
        sandbox.kill()


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    (folder / "app" / "deep").mkdir(parents=True)
    (folder / "app" / "main.py").write_text("print('main')")
    (folder / "app" / "deep" / "data.txt").write_text("deep")
    (folder / "app" / "link").symlink_to("main.py")
    (folder / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (folder / "run.sh").chmod(0o644)
    return folder


def ask(host: Host, method: str, path: str, body: Any = None, key: str = API_KEY) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{host.url}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"X-API-KEY": key, "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


def test_a_template_of_every_kind_of_step_works_as_it_was_told(
    build: Build, create: Callable[..., Sandbox], context: Path
) -> None:
    template = (
        Template(file_context_path=context)
        .from_base_image()
        .set_envs({"GREETING": "hello", "PATH": "/opt/tools:$PATH"})
        .set_workdir("/srv/app")
        .copy("app", "code")
        .copy("app/*", "flat/")
        .copy("run.sh", "/opt/tools/run-it", mode=0o755)
        .run_cmd("id -un > who && cat code/deep/data.txt", user="root")
        .run_cmd('test "$GREETING" = hello && pwd > where')
        .make_symlink("where", "alias")
    )
    log = build(template, "every-step")
    assert any(line.endswith("[stdout]: deep") for line in log)
    sandbox = create("every-step")
    assert sandbox.get_info().cpu_count == 1
    assert sandbox.commands.run(
        "cat who where alias; ls flat/deep; readlink flat/link; pwd"
    ).stdout.split() == [
        "root",
        "/srv/app",
        "/srv/app",
        "data.txt",
        "main.py",
        "/srv/app",
    ]
    assert sandbox.commands.run("run-it; echo $GREETING").stdout == "ran\nhello\n"
    sandbox.files.write("/etc/of-this-one", "mine")
    assert not create("every-step").files.exists("/etc/of-this-one")


def test_the_same_steps_are_not_done_twice(build: Build, context: Path) -> None:
    def recipe(last: str) -> Any:
        return (
            Template(file_context_path=context)
            .from_template("debian")
            .run_cmd("date +%N > /opt/first")
            .copy("app", "/opt/app")
            .run_cmd(last)
        )

    build(recipe("true"), "cached")
    began = time.monotonic()
    again = build(recipe("true"), "cached:again")
    assert time.monotonic() - began < 3
    assert sum(line.startswith("CACHED") for line in again) == 3
    changed = build(recipe("echo other"), "cached:other")
    assert sum(line.startswith("CACHED") for line in changed) == 2
    (context / "app" / "main.py").write_text("print('changed')")
    copied = build(recipe("true"), "cached:copied")
    assert sum(line.startswith("CACHED") for line in copied) == 1
    forced = build(recipe("true"), "cached:forced", skip_cache=True)
    assert not any(line.startswith("CACHED") for line in forced)


def test_a_build_that_fails_says_which_step_why_and_what_it_said(build: Build, builder: Host) -> None:
    template = Template().from_base_image().run_cmd("true").run_cmd("echo about to fail >&2; exit 3")
    heard: Log = []
    with pytest.raises(BuildException, match="exit status 3"):
        Template.build(
            template,
            "failing",
            on_build_logs=lambda entry: heard.append(entry.message),
            api_key=API_KEY,
            api_url=builder.url,
        )
    assert any("[stderr]: about to fail" in line for line in heard)
    status, told = ask(builder, "GET", "/templates/failing")
    assert (status, told["builds"][0]["status"]) == (200, "error")
    _, answer = ask(builder, "GET", f"/templates/failing/builds/{told['builds'][0]['buildID']}/status")
    assert answer["reason"]["step"] == "2"
    assert any("about to fail" in entry["message"] for entry in answer["reason"]["logEntries"])
    with pytest.raises(Exception, match="no build with the tag"):
        builder.create(template="failing")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: Template().from_base_image().run_cmd("whoami", user="root123"),
            "invalid username: 'root123'",
        ),
        (lambda: Template().from_base_image().set_user("; exit 1"), "invalid username"),
        (lambda: Template().from_image("ubuntu:22.04").run_cmd("true"), "debian:bookworm"),
        (lambda: Template().from_image("x.io/y", "me", "secret").run_cmd("true"), "no image registry"),
        (lambda: Template().from_template("nothing-like-this").run_cmd("true"), "not found"),
        (lambda: Template().from_base_image().set_workdir("/etc/passwd"), "exit status 1"),
        (
            lambda: Template().from_base_image().set_start_cmd("exit 7", wait_for_file("/never")),
            "exit status 7",
        ),
    ],
    ids=["user of a command", "user", "image", "registry", "template", "workdir", "start command"],
)
def test_what_cannot_be_built_is_an_error_of_the_build(
    build: Build, make: Callable[[], Any], said: str
) -> None:
    with pytest.raises(BuildException, match=said):
        build(make(), f"impossible-{uuid.uuid4().hex}")


def test_a_package_with_scripts_of_its_own_is_installed_by_apt(
    build: Build, create: Callable[..., Sandbox]
) -> None:
    template = (
        Template()
        .from_debian_image("bookworm")
        .apt_install(["jq", "nginx-light"], no_install_recommends=True)
    )
    build(template, "with-apt")
    sandbox = create("with-apt")
    assert sandbox.commands.run("echo '{\"a\": 6}' | jq .a").stdout == "6\n"
    assert sandbox.commands.run("nginx -v 2>&1; dpkg -s nginx-light | grep ^Status").stdout.endswith(
        "Status: install ok installed\n"
    )


def test_a_start_command_runs_and_is_ready_before_the_sandbox_is_handed_out(
    build: Build, create: Callable[..., Sandbox]
) -> None:
    template = (
        Template()
        .from_base_image()
        .set_workdir("/srv")
        .set_start_cmd("sleep 2; echo up > ready; exec sleep 1000", wait_for_file("/srv/ready"))
    )
    build(template, "started")
    sandbox = create("started", timeout=60)
    # The time that it took to be ready is not taken from the sandbox's own.
    left = sandbox.get_info().end_at - datetime.now(UTC)
    assert left.total_seconds() > 58
    assert sandbox.files.read("/srv/ready") == "up\n"
    assert "sleep 1000" in sandbox.commands.run("ps -eo args").stdout


def test_a_warm_sandbox_of_a_built_template_has_its_start_command_running(
    own_host: Callable[..., Host], builder_options: tuple[str, ...]
) -> None:
    host = own_host(*builder_options, "--warm", "waiting=1")
    template = Template().from_base_image().set_start_cmd("exec sleep 1000", "pgrep sleep")
    Template.build(template, "waiting", api_key=API_KEY, api_url=host.url, memory_mb=512)
    first = host.create(template="waiting")
    request = urllib.request.Request(f"{host.url}/metrics", headers={"X-API-KEY": API_KEY})

    def is_waiting() -> bool:
        with urllib.request.urlopen(request) as answer:
            lines = answer.read().decode().splitlines()
        return any("warm_sandboxes{" in line and line.endswith(" 1") for line in lines)

    eventually(is_waiting, 30)
    second = host.create(template="waiting", envs={"MINE": "1"})
    assert second.commands.run("pgrep -c sleep; echo $MINE").stdout == "1\n1\n"
    assert [json.loads(line).get("warm") for line in host.log().splitlines() if "sandbox created" in line][
        -2:
    ] == [False, True]
    assert first.get_info().name == "waiting"
    eventually(is_waiting, 30)
    assert ask(host, "DELETE", "/templates/waiting")[0] == 204
    assert not is_waiting()
    assert [record["state"] for record in host.records()] == ["running", "running"]


def test_a_built_template_outlives_the_host_and_can_be_snapshotted(
    own_host: Callable[..., Host], builder_options: tuple[str, ...]
) -> None:
    host = own_host(*builder_options)
    template = Template().from_base_image().set_workdir("/srv").run_cmd("echo built > built")
    Template.build(template, "lasting", api_key=API_KEY, api_url=host.url, memory_mb=512)
    host.restart(kill=True)
    sandbox = host.create(template="lasting")
    assert sandbox.commands.run("cat built").stdout == "built\n"
    sandbox.files.write("/etc/added", "later")
    again = host.create(template=sandbox.create_snapshot().snapshot_id)
    assert again.commands.run("cat built /etc/added").stdout == "built\nlater"


def test_a_template_is_built_of_a_dockerfile(
    build: Build, create: Callable[..., Sandbox], context: Path
) -> None:
    lines = (
        "FROM debian:bookworm",
        "ARG WHO=nobody",
        "ENV GREETING=hello TARGET=$WHO",
        "WORKDIR /srv/app",
        "COPY app/main.py run.sh ./",
        "RUN chmod +x run.sh \\",
        "    && ./run.sh > ran && id -un > as",
        "USER user",
        'RUN ["sh", "-c", "id -un > /tmp/then-as"]',
        'CMD ["sleep", "1000"]',
    )
    template = Template(file_context_path=context).from_dockerfile("\n".join(lines))
    build(template.set_ready_cmd("true"), "of-a-dockerfile")
    sandbox = create("of-a-dockerfile")
    said = sandbox.commands.run("pwd; echo $GREETING $TARGET; cat main.py ran as /tmp/then-as").stdout
    assert said == "/srv/app\nhello nobody\nprint('main')ran\nroot\nuser\n"
    assert "sleep 1000" in sandbox.commands.run("cat /proc/*/cmdline | tr '\\0' ' '").stdout


def test_a_template_is_built_on_another_one(build: Build, create: Callable[..., Sandbox]) -> None:
    build(Template().from_base_image().set_envs({"A": "1"}).run_cmd("echo below > /opt/below"), "below:v1")
    build(
        Template().from_template("below:v1").run_cmd("cat /opt/below; echo $A > /opt/above; rm /opt/below"),
        "above",
    )
    sandbox = create("above")
    assert sandbox.files.read("/opt/above") == "1\n"
    assert not sandbox.files.exists("/opt/below")


def test_names_and_tags_are_as_the_sdk_expects_them(builder: Host, build: Build) -> None:
    options = {"api_key": API_KEY, "api_url": builder.url}
    name = f"tagged-{uuid.uuid4().hex}"
    assert not Template.exists(name, **options)
    build(Template().from_base_image(), f"{name}:v1", tags=["v1.0"])
    assert Template.exists(name, **options)
    assert Template.exists("base", **options)
    assigned = Template.assign_tags(f"{name}:v1", ["production", "latest"], **options)
    assert assigned.tags == ["production", "latest"]
    assert {tag.tag for tag in Template.get_tags(name, **options)} == {"v1", "v1.0", "production", "latest"}
    assert ask(builder, "GET", f"/templates/{name}/tags/count") == (200, {"total": 4})
    one = f"/templates/{name}/tags/exists"
    assert ask(builder, "GET", f"{one}?tag=latest") == (200, {"exists": True, "normalizedTag": "latest"})
    Template.remove_tags(name, "latest", **options)
    assert ask(builder, "GET", f"{one}?tag=latest") == (200, {"exists": False, "normalizedTag": "latest"})
    assert [ask(builder, "GET", path)[0] for path in (one, f"{one}?tag=:", "/templates/none/tags/count")] == [
        400,
        400,
        404,
    ]
    with pytest.raises(Exception, match="latest"):
        builder.create(template=f"{name}:latest")
    for bad in (":invalid", ""):
        with pytest.raises(Exception, match="tag"):
            Template.assign_tags(f"{name}:v1", bad, **options)


def test_templates_are_listed_told_and_deleted(builder: Host, build: Build) -> None:
    build(Template().from_base_image(), "to-delete")
    listed = {each["names"][0]: each for each in ask(builder, "GET", "/templates")[1]}
    assert {"base", "debian", "to-delete"} <= set(listed)
    template_id = listed["to-delete"]["templateID"]
    assert ask(builder, "PATCH", f"/v2/templates/{template_id}", {"public": True})[0] == 501
    assert ask(builder, "DELETE", f"/templates/{template_id}")[0] == 204
    assert ask(builder, "GET", f"/templates/{template_id}")[0] == 404
    assert ask(builder, "GET", "/templates/aliases/to-delete")[0] == 404


def test_the_next_page_comes_also_when_the_last_template_of_this_one_is_gone(
    builder: Host, build: Build
) -> None:
    for name in ("page-1", "page-2", "page-3"):
        build(Template().from_base_image(), name)

    def page(token: str = "") -> tuple[list[str], str]:
        query = {"limit": 2, **({"nextToken": token} if token else {})}
        answer = httpx.get(f"{builder.url}/v2/templates", params=query, headers={"X-API-KEY": API_KEY})
        assert answer.status_code == 200, answer.text
        return [each["templateID"] for each in answer.json()], answer.headers.get("X-Next-Token", "")

    first, token = page()
    second, _ = page(token)
    assert ask(builder, "DELETE", f"/templates/{first[-1]}")[0] == 204
    assert page(token)[0] == second
    assert not set(first) & set(second)


def test_deleting_a_template_ends_its_build(builder: Host) -> None:
    template = Template().from_base_image().run_cmd("sleep 600")
    info = Template.build_in_background(template, "long", api_key=API_KEY, api_url=builder.url)
    eventually(lambda: [box for box in builder.records() if box["tenant"] == " builds"])
    assert ask(builder, "DELETE", f"/templates/{info.template_id}")[0] == 204
    eventually(lambda: not [box for box in builder.records() if box["tenant"] == " builds"])


def test_a_build_that_the_host_did_not_outlive_is_an_error_and_leaves_nothing(
    own_host: Callable[..., Host], builder_options: tuple[str, ...]
) -> None:
    host = own_host(*builder_options)
    options = {"api_key": API_KEY, "api_url": host.url}
    info = Template.build_in_background(
        Template().from_base_image().run_cmd("sleep 600"), "cut-short", **options
    )
    eventually(lambda: [box for box in host.records() if box["tenant"] == " builds"], 60)
    host.restart(kill=True)
    status = Template.get_build_status(info, api_key=API_KEY, api_url=host.url)
    assert status.status.value == "error"
    assert status.reason is not None
    assert "restarted" in status.reason.message
    eventually(lambda: not host.records())


def test_files_cannot_be_uploaded_without_the_link_and_no_further_than_it_says(
    builder: Host, build: Build
) -> None:
    build(Template().from_base_image(), "uploading")
    template_id = ask(builder, "GET", "/templates/aliases/uploading")[1]["templateID"]
    status, link = ask(builder, "GET", f"/templates/{template_id}/files/{'3' * 64}")
    assert (status, link["present"]) == (201, False)

    def put(url: str, data: bytes) -> int:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data, method="PUT")) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert put(link["url"].replace("3" * 64, "4" * 64), b"x") == 401
    assert put(link["url"].partition("?")[0], b"x") == 401
    assert put(link["url"], b"x") == 200
    assert ask(builder, "GET", f"/templates/{template_id}/files/{'3' * 64}")[1]["present"] is True
    assert ask(builder, "GET", f"/templates/{template_id}/files/..%2F..%2Fx")[0] == 400


def test_an_archive_that_wants_out_of_its_folder_stays_in_the_sandbox(builder: Host, tmp_path: Path) -> None:
    import io
    import tarfile

    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name in ("../../../../tmp/escaped", "/tmp/absolute", "inside"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"data"))
    _, made = ask(builder, "POST", "/v3/templates", {"name": "escaping"})
    _, link = ask(builder, "GET", f"/templates/{made['templateID']}/files/{'5' * 64}")
    urllib.request.urlopen(urllib.request.Request(link["url"], archive.getvalue(), method="PUT")).close()
    steps = [{"type": "COPY", "args": ["inside", "/opt/inside"], "filesHash": "5" * 64}]
    at = f"/templates/{made['templateID']}/builds/{made['buildID']}"
    assert ask(builder, "POST", f"/v2{at}", {"fromImage": "e2bdev/base", "steps": steps})[0] == 202
    answer = eventually(
        lambda: (told := ask(builder, "GET", f"{at}/status")[1])["status"] in ("ready", "error") and told, 30
    )
    assert answer["status"] == "error"
    assert "exit status" in answer["reason"]["message"]
    assert not Path("/tmp/escaped").exists()
    assert not Path("/tmp/absolute").exists()


def test_two_builds_of_the_same_name_do_not_disturb_each_other(builder: Host, build: Build) -> None:
    options = {"api_key": API_KEY, "api_url": builder.url}
    infos = [
        Template.build_in_background(
            Template().from_base_image().run_cmd(f"echo {number} > /opt/number"), f"both:v{number}", **options
        )
        for number in range(3)
    ]
    for number, info in enumerate(infos):
        eventually(lambda info=info: Template.get_build_status(info, **options).status.value == "ready", 60)
        sandbox = builder.create(template=f"both:v{number}")
        assert sandbox.files.read("/opt/number") == f"{number}\n"
        sandbox.kill()
