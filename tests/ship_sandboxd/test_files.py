"""Files by the official SDK."""

import gzip
import io
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from conftest import Host
from e2b import (
    AsyncSandbox,
    AuthenticationException,
    FileNotFoundException,
    FileType,
    InvalidArgumentException,
    Sandbox,
)

pytestmark = pytest.mark.system


def test_text_is_written_and_read(shared: Sandbox) -> None:
    info = shared.files.write("/workspace/a/b/hello ü.txt", "grüße\n")
    assert (info.path, info.name, info.type) == ("/workspace/a/b/hello ü.txt", "hello ü.txt", FileType.FILE)
    assert shared.files.read(info.path) == "grüße\n"
    assert shared.commands.run("cat '/workspace/a/b/hello ü.txt'").stdout == "grüße\n"


def test_relative_paths_start_at_home(shared: Sandbox) -> None:
    assert shared.files.write("note.txt", "x").path == "/home/user/note.txt"
    assert shared.files.read("~/note.txt") == "x"


def test_an_empty_file_and_a_shorter_one_replace_what_was_there(shared: Sandbox) -> None:
    shared.files.write("/tmp/f", "a long text")
    shared.files.write("/tmp/f", "short")
    assert shared.files.read("/tmp/f") == "short"
    shared.files.write("/tmp/f", "")
    assert shared.files.read("/tmp/f") == ""


def test_many_files_at_once(shared: Sandbox) -> None:
    files = [{"path": f"/tmp/many/{number}", "data": f"--boundary\r\n{number}"} for number in range(20)]
    written = shared.files.write_files(files)
    assert [info.path for info in written] == [file["path"] for file in files]
    assert [shared.files.read(file["path"]) for file in files] == [file["data"] for file in files]


def memory_mb(process: int, name: str) -> int:
    """A line of a process's status: `VmRSS`, what it takes, or `VmHWM`, the most that it has taken."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) // 1024


@contextmanager
def in_bounded_memory(host: Host, sandbox: Sandbox) -> Iterator[None]:
    """What is done meanwhile takes neither the host nor the daemon 24 MB."""
    if os.geteuid() != 0:  # nobody else may look at a daemon
        yield
        return
    assert host.process is not None
    processes = (host.process.pid, host.record(sandbox.sandbox_id)["init"]["pid"])
    for process in processes:
        Path(f"/proc/{process}/clear_refs").write_text("5")  # the most that it has taken counts from here
    before = [memory_mb(process, "VmRSS") for process in processes]
    yield
    most = [memory_mb(process, "VmHWM") for process in processes]
    assert max(more - less for more, less in zip(most, before, strict=True)) < 24


@pytest.mark.parametrize("octet_stream", [True, False])
def test_64_mib_make_the_round_trip_in_bounded_memory(
    host: Host, shared: Sandbox, octet_stream: bool
) -> None:
    data = secrets.token_bytes(1024 * 1024) * 64
    with in_bounded_memory(host, shared):
        shared.files.write("/tmp/big", data, use_octet_stream=octet_stream)
        assert shared.files.read("/tmp/big", format="bytes") == data
        assert b"".join(shared.files.read("/tmp/big", format="stream")) == data
    shared.files.remove("/tmp/big")


def test_gzip_and_streams_are_taken(shared: Sandbox) -> None:
    data = b"abc" * 500_000
    shared.files.write("/tmp/zipped", data, gzip=True)
    assert shared.files.read("/tmp/zipped", format="bytes") == data
    shared.files.write("/tmp/streamed", io.BytesIO(data))
    assert shared.files.read("/tmp/streamed", format="bytes", gzip=True) == data


def test_gzip_of_several_members_is_one_file_and_what_follows_it_is_refused(shared: Sandbox) -> None:
    def upload(body: bytes) -> int:
        headers = {"X-Access-Token": str(shared._envd_access_token), "Content-Encoding": "gzip"}
        url = shared.upload_url("/tmp/members")
        return httpx.post(
            url, content=body, headers={**headers, "Content-Type": "application/octet-stream"}
        ).status_code

    members = gzip.compress(b"first ") + gzip.compress(b"second")
    assert upload(members) == 200
    assert shared.files.read("/tmp/members") == "first second"
    assert upload(members + b"garbage") == 400
    assert upload(members[:-1]) == 400


def test_odd_names_of_files_come_as_they_are(shared: Sandbox) -> None:
    names = ["a\tb", 'a"b', "a\nb", "a\\b", "a%20b", "ü;=,"]
    shared.files.write_files([{"path": f"/tmp/odd/{name}", "data": name} for name in names])
    assert sorted(entry.name for entry in shared.files.list("/tmp/odd")) == sorted(names)


def test_what_is_no_depth_and_no_path_is_refused(shared: Sandbox) -> None:
    headers = {"E2b-Sandbox-Id": shared.sandbox_id, "E2b-Sandbox-Port": "49983"}
    headers |= {"X-Access-Token": str(shared._envd_access_token)}
    url = f"{shared.envd_api_url}/filesystem.Filesystem/ListDir"
    for body in (b'{"path": "/tmp", "depth": "abc"}', b'{"path": "/tmp/\\ud800"}'):
        answer = httpx.post(url, content=body, headers={**headers, "Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument")


def test_metadata_is_kept_with_the_file(shared: Sandbox) -> None:
    info = shared.files.write("/workspace/tagged", "x", metadata={"origin": "test"})
    assert info.metadata == {"origin": "test"}
    assert shared.files.get_info("/workspace/tagged").metadata == {"origin": "test"}


def test_a_folder_is_listed_to_a_depth(shared: Sandbox) -> None:
    assert shared.files.make_dir("/workspace/tree/one/two")
    assert not shared.files.make_dir("/workspace/tree/one")
    shared.files.write("/workspace/tree/file", "12345")
    names = [(entry.path, entry.type) for entry in shared.files.list("/workspace/tree")]
    assert names == [("/workspace/tree/file", FileType.FILE), ("/workspace/tree/one", FileType.DIR)]
    assert [entry.name for entry in shared.files.list("/workspace/tree", depth=2)] == ["file", "one", "two"]
    entry = shared.files.list("/workspace/tree")[0]
    assert (entry.size, entry.mode, entry.permissions, entry.owner, entry.group) == (
        5,
        0o644,
        "-rw-r--r--",
        "user",
        "user",
    )


def test_listing_what_is_no_folder_is_refused(shared: Sandbox) -> None:
    shared.files.write("/tmp/plain", "")
    with pytest.raises(InvalidArgumentException):
        shared.files.list("/tmp/plain")
    with pytest.raises(FileNotFoundException):
        shared.files.list("/tmp/none")


def test_files_are_renamed_removed_and_looked_for(shared: Sandbox) -> None:
    shared.files.write("/tmp/old", "x")
    assert shared.files.rename("/tmp/old", "/tmp/newer/new").path == "/tmp/newer/new"
    assert not shared.files.exists("/tmp/old")
    shared.files.remove("/tmp/newer")
    assert not shared.files.exists("/tmp/newer/new")
    shared.files.remove("/tmp/newer")
    with pytest.raises(FileNotFoundException):
        shared.files.rename("/tmp/none", "/tmp/other")


def test_reading_what_is_not_there_or_no_file_is_refused(shared: Sandbox) -> None:
    with pytest.raises(FileNotFoundException):
        shared.files.read("/tmp/none")
    with pytest.raises(InvalidArgumentException, match="directory"):
        shared.files.read("/tmp")
    shared.commands.run("mkfifo /tmp/pipe")
    with pytest.raises(InvalidArgumentException, match="regular"):
        shared.files.read("/tmp/pipe")


def test_a_link_is_described_with_its_target(shared: Sandbox) -> None:
    shared.files.write("/tmp/target", "x")
    shared.commands.run("ln -sf /tmp/target /tmp/link")
    info = shared.files.get_info("/tmp/link")
    assert (info.symlink_target, info.type) == ("/tmp/target", FileType.SYMLINK)


def test_a_link_out_of_the_sandbox_leads_to_the_sandbox_own_files(host, shared: Sandbox) -> None:
    secret = host.data.parent / "secret"
    secret.write_text("of the host")
    shared.commands.run(f"ln -sf {secret} /tmp/escape; ln -sf /etc/shadow /tmp/shadow")
    for path in ("/tmp/escape", "/tmp/shadow", str(secret)):
        with pytest.raises(FileNotFoundException):
            shared.files.read(path)


def test_writing_outside_of_the_writable_folders_is_refused(shared: Sandbox) -> None:
    with pytest.raises(Exception, match=r"read-only|permission"):
        shared.files.write("/usr/bin/evil", "x")


def test_signed_urls_work_by_themselves_and_only_for_their_path(host, shared: Sandbox) -> None:
    shared.files.write("/tmp/signed", "content")
    url = shared.download_url("/tmp/signed", use_signature_expiration=60)
    headers = {"E2b-Sandbox-Id": shared.sandbox_id, "E2b-Sandbox-Port": "49983"}
    assert [httpx.get(url).text, httpx.get(url, headers=headers).text] == ["content", "content"]
    for wrong in (url.replace("signed", "other", 1), f"{host.url}/files?path=/tmp/signed"):
        assert httpx.get(wrong).status_code == 401
        assert httpx.get(wrong, headers=headers).status_code == 401
    expired = httpx.get(shared.download_url("/tmp/signed", use_signature_expiration=-10))
    assert (expired.status_code, expired.json()["message"]) == (401, "signature is already expired")
    assert httpx.post(shared.upload_url("/tmp/sent"), files={"file": b"sent"}).status_code == 200
    assert shared.files.read("/tmp/sent") == "sent"


def test_a_range_of_a_file_can_be_read(host, shared: Sandbox) -> None:
    shared.files.write("/tmp/ranged", "0123456789")
    headers = {
        "E2b-Sandbox-Id": shared.sandbox_id,
        "X-Access-Token": shared._envd_access_token,
        "Range": "bytes=2-4",
    }
    answer = httpx.get(f"{host.url}/files?path=/tmp/ranged", headers=headers)
    assert (answer.status_code, answer.text, answer.headers["content-range"]) == (206, "234", "bytes 2-4/10")


def test_another_user_cannot_be_named(shared: Sandbox) -> None:
    with pytest.raises(AuthenticationException):
        shared.files.read("/tmp/x", user="postgres")


def test_files_are_composed_in_order_and_the_pieces_go(host, shared: Sandbox) -> None:
    for name in ("one", "two", "three"):
        shared.files.write(f"/tmp/piece-{name}", name)

    def compose(*names: str, destination: str = "whole") -> httpx.Response:
        headers = {"E2b-Sandbox-Id": shared.sandbox_id, "X-Access-Token": str(shared._envd_access_token)}
        paths = [f"/tmp/piece-{name}" for name in names]
        message = {"source_paths": paths, "destination": destination}
        return httpx.post(f"{host.url}/files/compose", headers=headers, json=message)

    missing = compose("one", "none", destination="/tmp/never")
    assert (missing.status_code, missing.json()["code"]) == (404, 404)
    assert shared.files.read("/tmp/piece-one") == "one"
    assert not [entry for entry in shared.files.list("/tmp") if "never" in entry.name]
    assert compose("one", "two", "three").json() == {
        "name": "whole",
        "type": "file",
        "path": "/home/user/whole",
    }
    assert shared.files.read("whole") == "onetwothree"
    assert not shared.files.exists("/tmp/piece-two")
    assert compose().status_code == 400


def test_a_new_upload_replaces_the_metadata(shared: Sandbox) -> None:
    shared.files.write("/workspace/retagged", "x", metadata={"a": "1", "b": "2"})
    assert shared.files.write("/workspace/retagged", "y", metadata={"b": "3"}).metadata == {"b": "3"}
    assert not shared.files.write("/workspace/retagged", "z").metadata


@pytest.mark.parametrize("metadata", [{"k" * 247: "v"}, {"k": "v" * 4096}])
def test_metadata_that_cannot_be_kept_is_refused(shared: Sandbox, metadata: dict[str, str]) -> None:
    with pytest.raises(InvalidArgumentException, match="metadata"):
        shared.files.write("/workspace/overtagged", "x", metadata=metadata)


@pytest.mark.parametrize("path", ["/init", "//any/init", "/%69nit?x", "/out-of-memory", "/egress-listener"])
def test_the_hosts_own_paths_are_closed_to_callers(host, shared: Sandbox, path: str) -> None:
    headers = {"E2b-Sandbox-Id": shared.sandbox_id, "X-Access-Token": str(shared._envd_access_token)}
    for method in ("GET", "POST"):
        assert (
            httpx.request(
                method, httpx.URL(f"{host.url}/", raw_path=path.encode()), headers=headers
            ).status_code
            == 403
        )


async def test_the_asynchronous_sdk_does_the_same(host) -> None:
    sandbox = await AsyncSandbox.create(timeout=60, **host.options_of_sdk)
    try:
        await sandbox.files.write("/workspace/a", b"1" * 3_000_000)
        assert len(await sandbox.files.read("/workspace/a", format="bytes")) == 3_000_000
        result = await sandbox.commands.run("wc -c < /workspace/a")
        assert result.stdout == "3000000\n"
        handle = await sandbox.commands.run("echo a; sleep 1000", background=True)
        assert await sandbox.commands.kill(handle.pid)
    finally:
        await sandbox.kill()
