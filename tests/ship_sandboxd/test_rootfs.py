"""The root of a sandbox: what of it may be written, how much, whose it is, and what must not lead out of it."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from conftest import Host, eventually, fill
from e2b import CommandExitException, Sandbox

from ship_sandboxd import durable
from ship_sandboxd.errors import Unsupported, is_full
from ship_sandboxd.isolation import layout, mounts, rootfs, staging
from ship_sandboxd.isolation.backend import Root
from ship_sandboxd.isolation.disks import STORAGE_UID, Disks, mount
from ship_sandboxd.isolation.rootfs import RootPlan, Roots
from ship_sandboxd.pids import ProcessIdentity

pytestmark = pytest.mark.system
MIB = 1024 * 1024
UID = 299_000


@pytest.fixture
def laid(host: Host) -> Host:
    """A host that lays roots of layers."""
    if httpx.get(f"{host.url}/health").json()["root"] != "layers":
        pytest.skip("this machine lays no roots of layers")
    return host


def test_a_sandbox_may_change_its_whole_root_but_not_the_machine(laid: Host, shared: Sandbox) -> None:
    script = "for at in / /etc /opt /var/lib /root /home /run; do touch $at/mine && stat -c %U $at/mine; done"
    assert shared.commands.run(script).stdout == "user\n" * 7
    assert shared.commands.run("rm -r /srv && ls / | grep -c srv || true").stdout == "0\n"
    for path in ("/usr/mine", "/usr/bin/sh", "/etc/ssl/mine", "/run/envd/lib/mine"):
        with pytest.raises(CommandExitException):
            shared.commands.run(f"touch {path}")
    with pytest.raises(CommandExitException):
        shared.commands.run("rm -rf /usr/bin/sh")
    assert not Path("/mine").exists()


def test_a_sandbox_fills_its_disk_and_no_more(laid: Host) -> None:
    if not httpx.get(f"{laid.url}/health").json()["limits"]["disk"]:
        pytest.skip("this machine has no loop devices")
    folder = laid.data / "templates" / "narrow"
    folder.mkdir(exist_ok=True)
    (folder / "template.json").write_text('{"disk_mb": 96}')
    sandbox = laid.create(template="narrow")
    other = laid.create(template="narrow")
    with pytest.raises(CommandExitException, match="No space left on device"):
        sandbox.commands.run(
            "cat /dev/zero | head -c 80M > /opt/a && cat /dev/zero | head -c 80M > /workspace/b"
        )
    assert sandbox.commands.run("rm /opt/a /workspace/b; echo ok > /tmp/c; cat /tmp/c").stdout == "ok\n"
    with pytest.raises(CommandExitException) as raised:
        sandbox.commands.run("truncate -s 1G /workspace/sparse")
    assert "File too large" in raised.value.stderr or raised.value.exit_code != 0
    assert other.commands.run("head -c 40M /dev/zero > /opt/a; stat -c %s /opt/a").stdout == f"{40 * MIB}\n"
    for made in (sandbox, other):
        made.kill()


def test_a_sandbox_on_the_machines_usr_names_the_machines_system(shared: Sandbox) -> None:
    assert shared.commands.run("cat /etc/os-release").stdout == Path("/etc/os-release").read_text()


def test_each_launch_has_a_boot_id_of_its_own(laid: Host, shared: Sandbox) -> None:
    other = laid.create()
    read = "cat /proc/sys/kernel/random/boot_id"
    ids = {sandbox.commands.run(read).stdout.strip() for sandbox in (shared, other)}
    ids.add(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    assert len(ids) == 3
    with pytest.raises(CommandExitException):
        shared.commands.run("echo x > /proc/sys/kernel/random/boot_id")
    other.kill()


def _need_loop_devices() -> None:
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("only root mounts, and a disk needs a loop device")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder with `layer`, for code that mounts in a child process."""
    _need_loop_devices()
    for folder in ("layer", "stage", "sandbox", "host"):
        (tmp_path / folder).mkdir()
    yield tmp_path
    subprocess.run(["chmod", "-R", "u+rwX", str(tmp_path)], check=True)


def assembled(place: Path, binds: tuple[tuple[str, str], ...], script: str, *, limited: bool = True) -> str:
    """Lay a root of `layer` on the disk of `sandbox`, and run a script beside it; answers what it says."""
    disks = Disks(place, None, limited=limited)
    disks.create(place / "sandbox", 64)
    reading, writing = os.pipe()
    with disks.device(place / "sandbox") as device:
        disk = "" if limited else str(place / "sandbox" / "disk")
        plan = RootPlan(str(place / "stage"), UID, (str(place / "layer"),), disk, binds)
        child = os.fork()
        if child == 0:
            try:
                mounts.own_namespace()
                rootfs.assemble(plan, device)
                os.dup2(writing, 1)
                os.dup2(writing, 2)
                os.chdir(plan.root)
                os.execvp("sh", ["sh", "-c", script])
            except BaseException as error:
                os.write(writing, repr(error).encode())
            finally:
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading) as said:
            text = said.read()
        os.waitpid(child, 0)
    return text


@pytest.mark.parametrize("limited", [True, False], ids=["an image", "a folder"])
def test_files_belong_to_the_storage_on_disk_and_to_the_sandbox_in_its_root(
    place: Path, limited: bool
) -> None:
    (place / "layer" / "below").write_text("of the layer")
    os.chown(place / "layer" / "below", STORAGE_UID, STORAGE_UID)
    script = (
        f"setpriv --reuid {UID} --regid {UID} --clear-groups sh -c 'cp below copy && echo more >> below && mkdir d && rm -r home'"
        " && stat -c '%u %n' below copy d && cat below"
    )
    os.chown(place / "layer", STORAGE_UID, STORAGE_UID)
    assert (
        assembled(place, (), script, limited=limited)
        == f"{UID} below\n{UID} copy\n{UID} d\nof the layermore\n"
    )
    assert (place / "layer" / "below").read_text() == "of the layer"
    assert assembled(place, (), "cat copy; ls -d home", limited=limited) == "of the layerhome\n"
    if not limited:
        assert (place / "sandbox" / "disk" / "upper" / "copy").stat().st_uid == STORAGE_UID


@pytest.mark.parametrize("target", ["/opt/tools", "/lib64x/deep/er/tools"])
def test_a_mount_never_follows_a_link_of_the_sandbox_out_of_its_root(place: Path, target: str) -> None:
    tools = place / "host"
    (tools / "tool").write_text("a tool")
    victim = place / "victim"
    victim.mkdir()
    for name in ("opt", "lib64x"):
        (place / "layer" / name).symlink_to(victim)
    for name in ("proc", "run"):
        (place / "layer" / name).symlink_to("../../../../../../../../" + str(victim))
    said = assembled(
        place,
        ((str(tools), target), (str(tools), "/run/envd/lib")),
        f"find . -name tool -not -path '*/..*' | sort; test -L proc || echo a folder; ls -A {victim}",
    )
    assert "a folder\n" in said
    assert "./run/envd/lib/tool\n" in said
    assert list(victim.iterdir()) == []


def test_the_kinds_of_what_is_mounted_and_where_must_agree(place: Path) -> None:
    (place / "layer" / "opt").write_text("a file")
    said = assembled(place, ((str(place / "host"), "/opt"),), "echo mounted")
    assert "NotADirectoryError" in said or "OSError" in said
    assert "mounted" not in said


def in_a_child(tmp_path: Path, work: Callable[[Path, str], None]) -> None:
    """Call `work` with a folder and a place to mount on, in a process of its own."""
    _need_loop_devices()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            (tmp_path / "stage").mkdir()
            work(tmp_path, staging.enter(tmp_path / "stage"))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_disk_can_be_opened_while_it_is_in_use_and_is_released_at_the_end(tmp_path: Path) -> None:
    in_a_child(tmp_path, lambda data, stage: asyncio.run(_open_twice(data, stage)))


def test_empty_disks_are_kept_of_the_sizes_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _need_loop_devices()
    monkeypatch.setattr("ship_sandboxd.isolation.disks._MAX_BLANKS", 2)
    disks = Disks(tmp_path, None, limited=True)
    for number, size_mb in enumerate((64, 65, 64, 66)):
        folder = tmp_path / str(number)
        folder.mkdir()
        disks.create(folder, size_mb)
        assert (folder / "disk.img").stat().st_size == size_mb * MIB
    assert sorted(path.name for path in (tmp_path / "disks").iterdir()) == ["ext4-1-64.img", "ext4-1-66.img"]


def test_an_empty_disk_that_is_kept_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _need_loop_devices()
    synced: list[tuple[int, list[str]]] = []
    blanks, sync = tmp_path / "disks", durable.sync

    def note(path: Path) -> None:
        sync(path)
        synced.append((path.stat().st_ino, [blank.name for blank in blanks.glob("*.img")]))

    monkeypatch.setattr(durable, "sync", note)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        Disks(tmp_path, None, limited=True).create(tmp_path / name, 64)
    assert synced == [((blanks / "ext4-1-64.img").stat().st_ino, [])], "before it has its name"


def test_a_disk_to_probe_with_that_is_spoilt_takes_away_no_limits(tmp_path: Path) -> None:
    in_a_child(tmp_path, _detect_after_a_power_cut)


def _detect_after_a_power_cut(data: Path, stage: str) -> None:
    assert Roots.detect(data, stage, data).disks.limited
    probe = data / "probes" / "image" / "disk.img"
    os.truncate(probe, 0)
    os.truncate(probe, 64 * MIB)
    roots = Roots.detect(data, stage, data)
    assert (roots.disks.limited, roots.obstacle) == (True, "")
    assert [path.name for path in (data / "disks").iterdir()] == ["ext4-1-64.img"]


def test_what_is_mounted_in_the_machines_folders_is_not_hidden_by_a_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(data: Path, stage: str) -> None:
        tops = {path: top for top, path in rootfs._machine(stage)}
        assert (tops["/usr"], tops["/etc/ssl"]) == ("/usr", "/etc")
        monkeypatch.setattr(layout, "HOST_ETC", ("/etc/ssl", "/usr/share/zoneinfo/UTC"))
        mounts.mount("tmpfs", "/usr/share/zoneinfo", "tmpfs")
        Path("/usr/share/zoneinfo/UTC").touch()
        tops = {path: top for top, path in rootfs._machine(stage)}
        assert (tops["/usr"], tops["/etc/ssl"], tops["/usr/share/zoneinfo/UTC"]) == ("", "/etc", "")
        mounts.unmount("/usr/share/zoneinfo")
        monkeypatch.setattr(rootfs, "_OVERLAY", "no_such_option")
        assert not any(top for top, _ in rootfs._machine(stage))

    in_a_child(tmp_path, look)


def test_what_does_not_work_on_a_new_disk_is_believed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(device: int, target: str) -> None:
        with (tmp_path / "mounted").open("a") as file:
            file.write("x")
        raise OSError("no loop devices here")

    def detect(data: Path, stage: str) -> None:
        assert not Roots.detect(data, stage, data).disks.limited
        assert (tmp_path / "mounted").read_text() == "x"

    monkeypatch.setattr("ship_sandboxd.isolation.disks.mount", refuse)
    in_a_child(tmp_path, detect)


def test_the_host_answers_while_a_disk_is_made(
    own_host: Callable[..., Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mkfs.ext4 that takes as long as the file `slow` is there."""
    true, slow, making = (
        shutil.which("mkfs.ext4", path="/usr/sbin:/sbin"),
        tmp_path / "slow",
        tmp_path / "making",
    )
    program = tmp_path / "bin" / "mkfs.ext4"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\ntouch {making}\nwhile [ -e {slow} ]; do sleep 0.02; done\nexec {true} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    host = own_host()
    if not httpx.get(f"{host.url}/health").json()["limits"]["disk"]:
        pytest.skip("disks are not limited here")
    making.unlink()
    slow.touch()
    with ThreadPoolExecutor(1) as thread:
        creating = thread.submit(host.create)
        try:
            eventually(making.exists)
            assert httpx.get(f"{host.url}/health", timeout=2).status_code == 200
        finally:
            slow.unlink()
        creating.result().kill()


def test_a_disk_that_there_is_no_room_to_format_is_told_as_that(small_disk: Path) -> None:
    (small_disk / "one").mkdir()
    fill(small_disk)
    with pytest.raises(OSError, match=r"mkfs\.ext4 failed") as raised:
        Disks(small_disk, None, limited=True).create(small_disk / "one", 64)
    assert is_full(raised.value)
    assert not [*(small_disk / "one").iterdir(), *(small_disk / "disks").iterdir()]


def test_an_abandoned_disk_takes_no_more(tmp_path: Path) -> None:
    in_a_child(tmp_path, _abandon)


def _abandon(data: Path, stage: str) -> None:
    disks, own = Disks(data, Path(stage), limited=True), ProcessIdentity.of(os.getpid())
    assert own is not None
    for name in ("mine", "other"):
        (data / name).mkdir()
        disks.create(data / name, 64)
    Path(stage, "disk").mkdir()
    with disks.device(data / "mine") as device:
        assert device is not None
        mount(device, f"{stage}/disk")
    note = Path(stage, "disk/upper/note")
    for folder, holder in ((data / "other", own), (data / "mine", ProcessIdentity(own.pid, own.started + 1))):
        disks.abandon(folder, holder)
        note.write_text("kept")
    disks.abandon(data / "mine", own)
    with pytest.raises(OSError, match="rror"):
        note.write_text("lost")


async def _open_twice(data: Path, stage: str) -> None:
    disks = Disks(data, Path(stage), limited=True)
    (data / "one").mkdir()
    disks.create(data / "one", 64)
    async with disks.opened(data / "one") as first, disks.opened(data / "one") as second:
        (first / "upper" / "note").write_text("seen by both")
        assert (second / "upper" / "note").read_text() == "seen by both"
        assert first.stat().st_dev == second.stat().st_dev
        # An earlier host's device is found by a host that knows of none.
        (data / "later").mkdir()
        later = Disks(data, data / "later", limited=True)
        async with later.opened(data / "one") as third:
            assert (third / "upper" / "note").read_text() == "seen by both"
    assert not list(Path(stage).iterdir())
    assert (
        subprocess.run(["losetup", "-j", data / "one" / "disk.img"], capture_output=True, check=True).stdout
        == b""
    )
    await disks.sync(data / "one")
    shutil.rmtree(data / "one")


def test_a_disk_whose_opening_is_cut_short_is_closed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted, go_on = threading.Event(), threading.Event()

    def slowly(device: int, target: str) -> None:
        mount(device, target)
        mounted.set()
        assert go_on.wait(10)

    async def cut_short(data: Path, stage: str) -> None:
        disks = Disks(data, Path(stage), limited=True)
        (data / "one").mkdir()
        disks.create(data / "one", 64)

        async def use() -> None:
            async with disks.opened(data / "one"):
                pytest.fail("it was cut short before")

        using = asyncio.create_task(use())
        await asyncio.to_thread(mounted.wait)
        using.cancel()
        asyncio.get_running_loop().call_soon(go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await using
        assert not list(Path(stage).iterdir())

    monkeypatch.setattr("ship_sandboxd.isolation.disks.mount", slowly)
    in_a_child(tmp_path, lambda data, stage: asyncio.run(cut_short(data, stage)))


def test_a_launch_that_is_killed_leaves_nobody_who_holds_what_it_held(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal\nfrom ship_sandboxd.isolation import mounts\n"
        "def die(path, text): print(path.parent.name, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
        "pathlib.Path.write_text = die\nmounts.owners([(0, 0)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=20
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    holder = ProcessIdentity.of(int(done.stdout))
    eventually(lambda: holder is None or not holder.alive)


def test_where_nothing_can_be_mounted_folders_are_bound(tmp_path: Path) -> None:
    roots = Roots.detect(tmp_path, "", tmp_path)
    folder = tmp_path / "sandbox"
    folder.mkdir()
    with roots.prepared(folder, None, Root(), [], 64) as root:
        assert root.plan is None
        assert {target for _, target, _ in root.binds} >= {"/home/user", "/workspace", "/tmp"}
    assert roots.obstacle


@pytest.mark.parametrize("disk", ["disk.img", "disk"])
def test_no_empty_folders_take_the_place_of_a_disk_that_is_there(tmp_path: Path, disk: str) -> None:
    roots = Roots.detect(tmp_path, "", tmp_path)
    (tmp_path / "sandbox" / disk).mkdir(parents=True)
    with (
        pytest.raises(Unsupported, match="on a disk of its own"),
        roots.prepared(tmp_path / "sandbox", None, Root(), [], 64),
    ):
        pytest.fail("it would seem to have lost its files")
    assert not (tmp_path / "sandbox" / "home").exists()
