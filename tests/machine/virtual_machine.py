"""A machine of its own for a sandbox host: a real kernel with cgroups of version 2 alone, under software emulation, whose
power can be cut.

    ~/.cache/ship-tests/machine-RECIPE/   Debian: system.img and its kernel, made once; what a machine changes there is gone
                                          when it ends
    folder/code.img                       the host's code, with `init` and `shell.py`, read-only
    folder/data.img                       the disk of the data folder, which outlives the machine
    folder/console.log                    what the kernel and the host have said

There is no KVM in it: where a machine is virtual itself, it often is not there, or hangs.
"""

import compileall
import fcntl
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import time
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

import httpx
from e2b import Sandbox

from ship.testing.ports import free_port
from ship_sandboxd.builds import debian

API_KEY = "e2b_" + "7" * 40
COUNT = "i=0; while :; do i=$((i+1)); echo $i > /tmp/new; mv /tmp/new /tmp/count; sleep 0.1; done"
_PROGRAMS = ("qemu-system-x86_64", "mkfs.ext4", "mmdebstrap")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_CACHE = Path("~/.cache/ship-tests").expanduser()
_PACKAGES = (
    "linux-image-cloud-amd64",  # it has disks of NVMe and ext4 built in, so it starts without an initial RAM disk
    "tiny-initramfs",  # the smallest of what it insists on
    "bubblewrap",
    "e2fsprogs",
    "fakeroot",
    "iproute2",
    "kmod",
    "libseccomp2",
    "procps",
    "python3",
    "runsc",
    "zstd",
)
_CODE = Path(__file__).parent
_HOST_CODE = Path(debian.__file__).parents[1]
_SYSTEM_MB, _CODE_MB, _DATA_MB = 700, 16, 8192
_BOOT_S = 120.0
_SHUT_DOWN_S = 60.0
_INIT = "mount -t devtmpfs dev /dev; mount -o ro /dev/nvme0n3 /mnt; exec /mnt/init"
_KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 root=/dev/nvme0n1 rw cgroup_no_v1=all mitigations=off"


class VirtualMachine:
    """``url`` is its sandbox host's, the same after every boot. Whoever makes one has to cut its power in the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._system = system_folder()
        self._process: subprocess.Popen[bytes] | None = None
        self._port, self._shell_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._make_code(folder / "code.img")
        _make_disk(folder / "data.img", _DATA_MB)

    def _make_code(self, image: Path) -> None:
        content = self._folder / "code"
        shutil.copytree(_HOST_CODE, content / _HOST_CODE.name, ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(content, quiet=2, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
        for name in ("init", "shell.py"):
            shutil.copy(_CODE / name, content / name)
        _make_disk(image, _CODE_MB, content)

    def boot(self) -> None:
        """Returns when the sandbox host answers."""
        ports = f"hostfwd=tcp:127.0.0.1:{self._port}-:49980,hostfwd=tcp:127.0.0.1:{self._shell_port}-:49979"
        words = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-nographic"]
        words += ["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"]
        words += ["-kernel", str(self._system / "vmlinuz"), "-no-reboot"]
        # What the kernel does not know is for its first process: a variable, and after the dashes arguments.
        key = f"SHIP_SANDBOXD_API_KEY={API_KEY}"
        words += ["-append", f'{_KERNEL_OPTIONS} {key} init=/bin/bash -- -c "{_INIT}"']
        words += ["-serial", f"file:{self._folder / 'console.log'}"]
        words += ["-netdev", f"user,id=net,{ports}", "-device", "virtio-net-pci,netdev=net,romfile="]
        words += ["-device", "nvme,serial=disks"]
        for image, options in (
            (self._system / "system.img", "snapshot=on"),
            (self._folder / "data.img", "discard=unmap"),
            (self._folder / "code.img", "readonly=on"),
        ):
            words += ["-drive", f"file={image},format=raw,if=none,id={image.stem},{options}"]
            words += ["-device", f"nvme-ns,drive={image.stem}"]
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + _BOOT_S
        while not self._answers():
            assert self._process.poll() is None, f"the machine has ended: {self.console}"
            assert time.monotonic() < deadline, f"the machine does not come up: {self.console}"
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=2, verify=False).status_code == 200
        except httpx.TransportError:
            return False

    @property
    def console(self) -> str:
        """What the kernel and the sandbox host have said since the power went on."""
        return (self._folder / "console.log").read_text(errors="replace")

    def run(self, command: str) -> str:
        """The output of a command of the machine's root."""
        with socket.create_connection(("127.0.0.1", self._shell_port), 60) as line:
            line.sendall(command.encode())
            line.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: line.recv(65536), b""))
        status, output = int.from_bytes(answer[:4], "big", signed=True), answer[4:].decode()
        assert status == 0, f"{command}: exit status {status}: {output}"
        return output

    def has_on_disk(self, text: str) -> bool:
        """Whether a text stands anywhere on the disk of the data folder."""
        with (self._folder / "data.img").open("rb", buffering=0) as disk:
            end = 0
            while True:
                try:
                    begin = os.lseek(disk.fileno(), end, os.SEEK_DATA)
                except OSError:
                    return False  # there is no more
                end = os.lseek(disk.fileno(), begin, os.SEEK_HOLE)
                if text.encode() in os.pread(disk.fileno(), end - begin, begin):
                    return True

    def cut_power(self) -> None:
        """What its kernel has not given to its disks yet is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def shut_down(self) -> None:
        """In order: the host is stopped, then everything else, then the disk is unmounted."""
        assert self._process
        self.run("touch /run/shut-down")
        self._process.wait(_SHUT_DOWN_S)
        self._process = None

    def get(self, path: str, **query: str) -> Any:
        """The JSON that the sandbox host's REST API answers."""
        answer = httpx.get(f"{self.url}{path}", params=query, headers={"X-API-KEY": API_KEY}, timeout=60)
        return answer.raise_for_status().json()

    @property
    def options_of_sdk(self) -> dict[str, Any]:
        return {"api_key": API_KEY, "api_url": self.url, "sandbox_url": self.url}

    def create(self, **options: Any) -> Sandbox:
        return Sandbox.create(**{"timeout": 600, **options}, **self.options_of_sdk)

    def template(self, name: str, **values: object) -> str:
        """Lay a template out, as the operator would; answers its name."""
        folder = f"/data/host/templates/{name}"
        self.run(f"mkdir -p {folder}; echo '{json.dumps(values)}' > {folder}/template.json")
        return name


def missing() -> str:
    """What this machine lacks to make and start one; empty when it can."""
    lacks = [program for program in _PROGRAMS if shutil.which(program, path=_PATH) is None]
    lacks += ["a processor of x86-64"] if platform.machine() != "x86_64" else []
    lacks += ["root"] if os.geteuid() != 0 else []
    return ", ".join(lacks)


def system_folder() -> Path:
    """The folder of the disk that machines start from, and of its kernel; made when it is first asked for, by root."""
    recipe = hashlib.sha256(repr((debian.recipe(), _PACKAGES, _SYSTEM_MB)).encode()).hexdigest()[:16]
    folder = _CACHE / f"machine-{recipe}"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            scratch = folder.with_suffix(".new")
            shutil.rmtree(scratch, ignore_errors=True)
            _make_system(scratch)
            scratch.rename(folder)
    return folder


def _make_system(folder: Path) -> None:
    folder.mkdir()
    root = folder / "root"
    made = subprocess.run(debian.command(root, _PACKAGES), stderr=subprocess.PIPE, text=True, check=False)
    assert made.returncode == 0, f"mmdebstrap failed: {made.stderr[-2000:]}"
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    shutil.copy(kernel, folder / "vmlinuz")
    _make_disk(folder / "system.img", _SYSTEM_MB, root)
    shutil.rmtree(root)


def _make_disk(image: Path, size_mb: int, content: Path | None = None) -> None:
    words = ["mkfs.ext4", "-q", *(["-d", str(content)] if content else []), str(image), f"{size_mb}M"]
    subprocess.run(words, check=True, capture_output=True, env={**os.environ, "PATH": _PATH})
