"""Snapshots and forks: the whole file system, at one moment, as layers in a store."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from conftest import API_KEY, Host, eventually, fill
from e2b import NotFoundException, Sandbox, SandboxException

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="layers need a sandbox host that runs as root"),
]

MakeHost = Callable[..., Host]


def test_a_kill_during_a_snapshot_is_answered_and_leaves_nothing(host: Host) -> None:
    sandbox = host.create()
    sandbox.commands.run("head -c 64M /dev/urandom > data")
    outcome: list[int] = []
    headers = {"X-API-KEY": API_KEY}
    url = f"{host.url}/sandboxes/{sandbox.sandbox_id}"
    taking = threading.Thread(
        target=lambda: outcome.append(
            httpx.post(f"{url}/snapshots", json={}, headers=headers, timeout=60).status_code
        )
    )
    before = set((host.data / "layers").iterdir())
    taking.start()
    eventually(lambda: [new for new in set((host.data / "layers").iterdir()) - before if new.stat().st_size])
    assert httpx.delete(url, headers=headers, timeout=30).status_code == 204
    taking.join()
    assert outcome == [404]
    assert not (host.data / "sandboxes" / sandbox.sandbox_id).exists()
    assert set((host.data / "layers").iterdir()) <= before


def unpacked(host: Host) -> list[str]:
    """The digests of the layers that lie unpacked on a host."""
    return [path.name for path in (host.data / "layers").iterdir() if path.is_dir()]


def test_a_snapshot_holds_the_whole_file_system_and_nothing_of_it_is_shared(
    host: Host, sandbox: Sandbox
) -> None:
    sandbox.commands.run(
        "echo home > /home/user/a.txt; mkdir -p /srv/deep/er; echo srv > /srv/deep/er/b.txt; echo var > /var/lib/c;"
        "rm /etc/hosts; ln -s /srv/deep link; touch -d @1000000000 old; chmod 640 old; mkfifo fifo;"
        "truncate -s 100M sparse; ln a.txt hard; setfattr -n user.note -v kept a.txt || python3 -c"
        ' \'import os; os.setxattr("a.txt", "user.note", b"kept")\''
    )
    snapshot = sandbox.create_snapshot()
    sandbox.files.write("/home/user/a.txt", "changed later")
    made = host.create(template=snapshot.snapshot_id)
    try:
        seen = made.commands.run(
            "cat /home/user/a.txt /srv/deep/er/b.txt /var/lib/c link/er/b.txt; stat -c '%a %Y' old;"
            "stat -c %s sparse; stat -c %F fifo; stat -c %h a.txt; ls /etc/hosts 2>&1 | tail -c 26;"
            'python3 -c \'import os; print(os.getxattr("a.txt", "user.note"))\'; id -un; stat -c %U a.txt'
        ).stdout
        assert seen.splitlines() == [
            *("home", "srv", "var", "srv", "640 1000000000", "104857600", "fifo", "2"),
            *("No such file or directory", "b'kept'", "user", "user"),
        ]
        made.files.write("/home/user/a.txt", "its own")
        assert sandbox.files.read("/home/user/a.txt") == "changed later"
        again = made.create_snapshot()
        third = host.create(template=again.snapshot_id)
        assert third.files.read("/home/user/a.txt") == "its own"
        assert third.files.read("/srv/deep/er/b.txt") == "srv\n"
        third.kill()
        Sandbox.delete_snapshot(again.snapshot_id, **host.options_of_sdk)
    finally:
        made.kill()
        Sandbox.delete_snapshot(snapshot.snapshot_id, **host.options_of_sdk)


def test_a_running_sandbox_goes_on_and_its_files_are_of_one_moment(host: Host, sandbox: Sandbox) -> None:
    handle = sandbox.commands.run(
        "i=0; while true; do i=$((i+1)); echo $i > first; echo $i > second; done", background=True, timeout=0
    )
    eventually(lambda: sandbox.files.exists("/home/user/second"))
    snapshots = [sandbox.create_snapshot() for _ in range(3)]
    assert handle.pid in [process.pid for process in sandbox.commands.list()]
    for snapshot in snapshots:
        made = host.create(template=snapshot.snapshot_id)
        first, second = (int(made.files.read(f"/home/user/{name}") or 0) for name in ("first", "second"))
        # Either may be empty at the moment that the shell has just opened it.
        assert 0 in (first, second) or first - second in (0, 1)
        assert made.commands.list() == []
        made.kill()
        Sandbox.delete_snapshot(snapshot.snapshot_id, **host.options_of_sdk)


def test_environment_and_limits_are_kept(host: Host) -> None:
    folder = host.data / "templates" / "limited"
    folder.mkdir(parents=True)
    (folder / "template.json").write_text(json.dumps({"env": {"A": "1"}, "memory_mb": 512, "cpu_count": 1}))
    sandbox = host.create(template="limited", envs={"B": "2"})
    snapshot = sandbox.create_snapshot("kept")
    made = host.create(template=snapshot.snapshot_id, envs={"C": "3"})
    assert made.commands.run("echo $A $B $C").stdout == "1 2 3\n"
    info = made.get_info()
    assert (info.memory_mb, info.cpu_count) == (512, 1)
    for one in (sandbox, made):
        one.kill()
    assert Sandbox.delete_snapshot(snapshot.snapshot_id, **host.options_of_sdk)


def test_names_tags_filters_and_pages(host: Host, sandbox: Sandbox) -> None:
    plain = sandbox.create_snapshot()
    assert plain.names == []
    first = sandbox.create_snapshot("nightly")
    tagged = sandbox.create_snapshot("nightly:v2")
    second = sandbox.create_snapshot("nightly")
    assert first.snapshot_id == second.snapshot_id == "default/nightly:default"
    assert tagged.names == ["default/nightly:v2"]

    def listed(**query: str | int) -> list[str]:
        pages = Sandbox.list_snapshots(**query, **host.options_of_sdk)
        found = []
        while pages.has_next:
            found += [snapshot.snapshot_id for snapshot in pages.next_items()]
        return found

    own = {"sandbox_id": sandbox.sandbox_id}
    every = [second.snapshot_id, tagged.snapshot_id, plain.snapshot_id]
    assert listed(**own) == every
    assert listed(**own, limit=1) == every
    assert listed(name="nightly") == every[:2]
    assert listed(name="default/nightly:v2") == [tagged.snapshot_id]
    assert listed(name="nightl") == []
    assert listed(name=plain.snapshot_id) == [plain.snapshot_id]
    for name in ("nightly", "nightly:v2", "default/nightly:v2", plain.snapshot_id.partition(":")[0]):
        host.create(template=name).kill()
    for name in every:
        assert Sandbox.delete_snapshot(name, **host.options_of_sdk) is True
        assert Sandbox.delete_snapshot(name, **host.options_of_sdk) is False
    assert listed(**own) == []
    with pytest.raises(SandboxException, match="404"):
        host.create(template="nightly")


@pytest.mark.parametrize("name", ["../up", "a b", "other/name", "x:", "a:b:c", "x" * 200, 7])
def test_a_bad_name_is_refused_before_anything_is_done(host: Host, sandbox: Sandbox, name: object) -> None:
    answer = httpx.post(
        f"{host.url}/sandboxes/{sandbox.sandbox_id}/snapshots",
        headers={"X-API-KEY": API_KEY},
        json={"name": name},
    )
    assert answer.status_code == 400


@pytest.mark.parametrize("keep_memory", [True, False])
def test_a_paused_sandbox_can_be_snapshotted_and_stays_paused(
    host: Host, sandbox: Sandbox, keep_memory: bool
) -> None:
    sandbox.files.write("/home/user/a.txt", "kept")
    sandbox.pause(keep_memory=keep_memory)
    snapshot = sandbox.create_snapshot()
    assert sandbox.get_info().state.value == "paused"
    made = host.create(template=snapshot.snapshot_id)
    assert made.files.read("/home/user/a.txt") == "kept"
    made.kill()
    assert sandbox.connect().files.read("/home/user/a.txt") == "kept"
    Sandbox.delete_snapshot(snapshot.snapshot_id, **host.options_of_sdk)


def test_a_fork_goes_its_own_way(host: Host) -> None:
    sandbox = host.create(envs={"A": "1"}, metadata={"of": "me"})
    sandbox.files.write("/home/user/a.txt", "before")
    forks = sandbox.fork(count=3, timeout=60)
    assert len({fork.sandbox_id for fork in forks} | {sandbox.sandbox_id}) == 4
    assert sandbox.is_running()
    for fork in forks:
        assert fork.files.read("/home/user/a.txt") == "before"
        assert fork.commands.run("echo $A").stdout == "1\n"
        assert fork.get_info().metadata == {"of": "me"}
    forks[0].files.write("/home/user/a.txt", "forked")
    assert sandbox.files.read("/home/user/a.txt") == "before"
    # A fork can be paused without memory: it is started anew on its layers.
    forks[1].pause(keep_memory=False)
    assert forks[1].connect().files.read("/home/user/a.txt") == "before"
    for one in (sandbox, *forks):
        one.kill()
    with pytest.raises(NotFoundException):
        sandbox.fork()


def test_another_host_on_the_same_store_makes_sandboxes_of_a_snapshot(
    own_host: MakeHost, store_url: str
) -> None:
    one, other = own_host("--blobs", store_url), own_host("--blobs", store_url)
    sandbox = one.create()
    sandbox.files.write("/srv/a.txt", "moved")
    snapshot = sandbox.create_snapshot("moving")
    sandbox.kill()
    one.stop()
    made = other.create(template="moving")
    assert made.files.read("/srv/a.txt") == "moved"
    assert Sandbox.delete_snapshot(snapshot.snapshot_id, **other.options_of_sdk)
    one.start()
    with pytest.raises(SandboxException, match="404"):
        one.create(template="moving")


def test_a_snapshot_on_the_system_of_another_machine_is_refused(own_host: MakeHost) -> None:
    host = own_host()
    sandbox = host.create()
    snapshot = sandbox.create_snapshot()
    host.stop()
    (path,) = (host.data / "blobs" / "snapshots").iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "system": "plan9-4-mips"}))
    host.start()
    with pytest.raises(SandboxException, match="plan9-4-mips"):
        host.create(template=snapshot.snapshot_id)


def test_a_damaged_layer_is_refused_and_leaves_nothing(own_host: MakeHost) -> None:
    host = own_host()
    sandbox = host.create()
    snapshot = sandbox.create_snapshot()
    (path,) = (host.data / "blobs" / "layers").iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(SandboxException, match="damaged"):
        host.create(template=snapshot.snapshot_id)
    assert unpacked(host) == []
    assert [folder.name for folder in (host.data / "sandboxes").iterdir()] == [sandbox.sandbox_id]


def test_layers_that_nothing_needs_are_collected(own_host: MakeHost) -> None:
    host = own_host()
    sandbox = host.create()
    sandbox.files.write("/home/user/a.txt", "a")
    kept, dropped = sandbox.create_snapshot("kept"), sandbox.create_snapshot("dropped")
    sandbox.files.write("/home/user/a.txt", "b")
    used = sandbox.create_snapshot("used")
    user = host.create(template="used")
    host.create(template="kept").kill()
    for name in (dropped, used):
        Sandbox.delete_snapshot(name.snapshot_id, **host.options_of_sdk)
    layers = host.data / "blobs" / "layers"
    old = time.time() - 2 * 24 * 3600
    for path in layers.iterdir():
        os.utime(path, (old, old))
    host.restart()
    # What the first two share and what a sandbox lies on stay; a new layer has a day to be named.
    eventually(lambda: len(list(layers.iterdir())) == 2)
    assert host.create(template=kept.snapshot_id).files.read("/home/user/a.txt") == "a"
    user.kill()
    Sandbox.delete_snapshot(kept.snapshot_id, **host.options_of_sdk)
    for path in layers.iterdir():
        os.utime(path, (old, old))
    for found in Sandbox.list(**host.options_of_sdk).next_items():
        Sandbox.kill(found.sandbox_id, **host.options_of_sdk)
    host.restart()
    eventually(lambda: not list(layers.iterdir()) and not unpacked(host))


def test_a_host_that_dies_in_a_snapshot_leaves_the_sandbox_running_and_nothing_half_made(
    own_host: MakeHost,
) -> None:
    host = own_host()
    sandbox = host.create()
    sandbox.commands.run("head -c 300M /dev/urandom > big", timeout=60)
    asking = threading.Thread(target=lambda: _try_snapshot(sandbox))
    asking.start()
    eventually(lambda: list((host.data / "layers").glob("new-*")))
    host.stop(kill=True)
    asking.join()
    host.start()
    assert sandbox.commands.run("stat -c %s big").stdout == "314572800\n"
    assert not list((host.data / "layers").glob("new-*"))
    assert not list((host.data / "blobs").glob("snapshots/*"))


def _try_snapshot(sandbox: Sandbox) -> None:
    try:
        sandbox.create_snapshot()
    except Exception:
        return
    raise AssertionError("the host was to die before it answered")


def test_a_layer_that_was_not_synced_before_a_power_cut_is_unpacked_again(own_host: MakeHost) -> None:
    host = own_host()
    sandbox = host.create()
    sandbox.files.write("/home/user/a.txt", "whole")
    host.create(template=sandbox.create_snapshot("cut").snapshot_id).kill()
    (digest,) = unpacked(host)
    folder = host.data / "layers" / digest
    eventually(folder.with_suffix(".synced").exists)
    host.stop()
    # What a power cut may do to a layer that had just been unpacked, and the boot after it.
    folder.with_suffix(".synced").unlink()
    (folder / "home/user/a.txt").write_text("")
    (host.data / "layers" / "boot").write_text("another")
    host.start()
    assert unpacked(host) == []
    assert host.create(template="cut").files.read("/home/user/a.txt") == "whole"


def test_snapshots_of_other_tenants_are_none(own_host: MakeHost, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    theirs = "e2b_" + "ab" * 20
    keys.write_text(json.dumps({"others": [theirs]}))
    host = own_host("--keys", str(keys))
    sandbox = host.create()
    snapshot = sandbox.create_snapshot("ours")
    with httpx.Client(base_url=host.url, headers={"X-API-KEY": theirs}) as client:
        assert client.get("/snapshots").json() == []
        assert client.post(f"/sandboxes/{sandbox.sandbox_id}/snapshots", json={}).status_code == 404
        assert client.post(f"/sandboxes/{sandbox.sandbox_id}/fork", json={}).status_code == 404
        (snapshot_id,) = (path.stem for path in (host.data / "blobs" / "snapshots").iterdir())
        for name in ("ours", snapshot.snapshot_id, snapshot_id):
            assert client.post("/v2/sandboxes", json={"templateID": name}).status_code in (400, 404)
            assert client.delete(f"/templates/{name.replace('/', '%2F')}").status_code == 404
    assert Sandbox.delete_snapshot(snapshot.snapshot_id, **host.options_of_sdk)


def use_up_the_room_of_its_record(sandbox: Sandbox) -> None:
    """For some versions more there is room, and then it is as full as the disk."""
    for _ in range(40):
        try:
            sandbox.set_timeout(120)
        except SandboxException:
            return
    pytest.fail("its record grows on a full disk")


def test_a_full_disk_is_told_and_the_rest_goes_on(small_disk: Path) -> None:
    host = Host(small_disk / "data", ("--min-free", "0", "--spares", "0"))
    try:
        sandbox = host.create()
        sandbox.files.write("/home/user/a.txt", "a")
        snapshot = sandbox.create_snapshot()
        filler = fill(small_disk)
        with httpx.Client(base_url=host.url, headers={"X-API-KEY": API_KEY}, timeout=30) as client:
            one = f"/sandboxes/{sandbox.sandbox_id}"
            asked = {
                "/v2/sandboxes": {"templateID": "base"},
                "/sandboxes": {"templateID": snapshot.snapshot_id},
                f"{one}/snapshots": {},
                f"{one}/fork": {},
            }
            for path, body in asked.items():
                answer = client.post(path, json=body)
                assert (answer.status_code, answer.json()["error_code"]) == (507, "disk_full"), path
        assert sandbox.pause(), "its record has room"
        sandbox.connect()
        assert sandbox.commands.run("cat a.txt").stdout == "a"
        assert [folder.name for folder in (host.data / "sandboxes").iterdir()] == [sandbox.sandbox_id]
        assert not list((host.data / "layers").glob("new-*"))
        told = httpx.get(f"{host.url}/health").json()
        host.restart(kill=True)
        assert httpx.get(f"{host.url}/health").json() == told, (
            "a full disk says nothing of what the machine can do"
        )
        assert sandbox.connect().files.read("/home/user/a.txt") == "a"
        use_up_the_room_of_its_record(sandbox)
        with pytest.raises(SandboxException, match="disk is full"):
            sandbox.pause()
        assert sandbox.commands.run("cat a.txt").stdout == "a", "it was frozen for a moment, and runs on"
        filler.unlink()
        assert sandbox.pause()
        assert sandbox.connect().files.read("/home/user/a.txt") == "a"
        host.create(template=snapshot.snapshot_id).kill()
    finally:
        host.close()
