"""The Debian root that built templates lie on: made once by mmdebstrap, from the sources that this machine's apt uses.

All of it belongs to one uid, as every layer does, so nobody in a sandbox is root: `fakeroot` plays him, and apt, dpkg and
the scripts of packages believe it.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import ApiError, NotFound, Unsupported
from ..isolation import layout
from ..storage.layers import Layers

SUITE = "bookworm"
PACKAGES = (
    "ca-certificates",
    "curl",
    "fakeroot",
    "git",
    "iproute2",
    "less",
    "procps",
    "python-is-python3",
    "python3",
    "python3-pip",
    "python3-venv",
    "unzip",
    "xz-utils",
)
_DEFAULT_SOURCES = (
    f"deb http://deb.debian.org/debian {SUITE} main",
    f"deb http://deb.debian.org/debian {SUITE}-updates main",
    f"deb http://deb.debian.org/debian-security {SUITE}-security main",
)
_SUITES = (SUITE, f"{SUITE}-updates", f"{SUITE}-security")
_PROXY = re.compile(r'Acquire::[^"]*[Pp]roxy[^"]* "[^"]+";')
_LEFT_OUT = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "force-unsafe-io",
)
_FILES = {
    # There is one uid, so apt cannot hand its downloads to another one.
    "etc/apt/apt.conf.d/90sandbox": 'APT::Sandbox::User "root";\nDpkg::Use-Pty "0";\nAcquire::Retries "3";\n'
    'Acquire::Languages "none";\n',
    # The root is the sandbox's own: what pip installs cannot break a system that anybody else uses.
    "etc/pip.conf": "[global]\nbreak-system-packages = true\nroot-user-action = ignore\n",
}
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# Nothing is started while a package is installed: there is no init, and a build ends with its step.
_POLICY = "#!/bin/sh\nexit 101\n"
_MINUTES_S = 900.0
Report = Callable[[str], None]


class DebianFailed(ApiError):
    """The Debian root could not be made; the message carries what mmdebstrap said last."""

    status = 500
    code = "debian_root_failed"


def recipe() -> str:
    """Changes whenever a root made now would differ from one that was made before, its packages' versions aside."""
    facts = (SUITE, PACKAGES, _LEFT_OUT, sorted(_files().items()), _POLICY)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _files() -> dict[str, str]:
    """Every file that is ours, path to text."""
    return {**_FILES, **{f"etc/{name}": layout.ETC[name] for name in ("hosts", "profile", "resolv.conf")}}


def check() -> None:
    """Raises Unsupported where this machine cannot make the root."""
    if os.geteuid() != 0:
        raise Unsupported("building templates needs a sandbox host that runs as root")
    if shutil.which("mmdebstrap") is None:
        raise Unsupported("the Debian root is made by mmdebstrap: install it (apt install mmdebstrap)")


async def make(folder: Path, owner: int, report: Report) -> None:
    """Make the root file system in `folder`, which does not exist yet, with every file belonging to `owner`.

    It takes about a minute. `report` gets mmdebstrap's progress. Raises Unsupported, DebianFailed; the folder may then be
    there half-made.
    """
    check()
    last = await _follow(await asyncio.to_thread(command, folder, PACKAGES), report)
    if last is not None:
        raise DebianFailed(f"the Debian root could not be made: {last}")
    await asyncio.to_thread(_finish, folder, owner)


def command(folder: Path, packages: Iterable[str]) -> list[str]:
    """What makes a Debian with these packages in `folder`, when root runs it."""
    # In namespaces of its own: whatever it mounts and starts is gone when it is.
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    words += ["mmdebstrap", "--variant=minbase", "--mode=root", "--format=directory"]
    words += [f"--include={','.join(packages)}"]
    words += [f"--dpkgopt={option}" for option in _LEFT_OUT]
    words += [f"--aptopt={option}" for option in _proxies()]
    return [*words, SUITE, str(folder), *sources()]


class DebianRoot:
    """The root of this host, as a layer: made when it is first needed, or taken from `prebuilt`, the file of a layer."""

    def __init__(self, folder: Path, layers: Layers, owner: int, prebuilt: Path | None = None) -> None:
        self._folder = folder
        self._layers = layers
        self._owner = owner
        self._prebuilt = prebuilt
        self._making = asyncio.Lock()
        folder.mkdir(mode=0o700, exist_ok=True)
        for half_made in folder.glob("debian-*"):
            shutil.rmtree(half_made)

    def held(self) -> set[str]:
        """The layer that must be kept, if there is one yet."""
        known = self._known()
        return {known} if known else set()

    async def layer(self, report: Report) -> str:
        """The digest of the layer; the first time it takes a minute, of which `report` is told. Raises Unsupported,
        DebianFailed, OSError."""
        async with self._making:
            known = self._known()
            if known is not None:
                with contextlib.suppress(NotFound):
                    await self._layers.unpacked(known)
                    return known
            digest = await self._make(report)
            scratch = self._state.with_suffix(".new")
            scratch.write_text(json.dumps({"recipe": self._recipe(), "layer": digest}))
            scratch.replace(self._state)
            return digest

    async def _make(self, report: Report) -> str:
        if self._prebuilt is not None:
            report(f"taking the Debian root from {self._prebuilt}")
            return (await self._layers.add(self._prebuilt)).digest
        report("making the Debian root: this takes about a minute, once")
        folder = self._folder / f"debian-{secrets.token_hex(4)}"
        try:
            await make(folder, self._owner, report)
            report("packing the Debian root")
            return (await self._layers.pack(folder)).digest
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    @property
    def _state(self) -> Path:
        return self._folder / "debian.json"

    def _recipe(self) -> str:
        return recipe() if self._prebuilt is None else f"{self._prebuilt}"

    def _known(self) -> str | None:
        try:
            state = json.loads(self._state.read_text())
            return str(state["layer"]) if state["recipe"] == self._recipe() else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


async def _follow(words: list[str], report: Report) -> str | None:
    """Run a program to its end; None when all went well, else what it said last."""
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert process.stderr is not None
    said: list[str] = []
    try:
        async with asyncio.timeout(_MINUTES_S):
            async for line in process.stderr:
                said = [*said, line.decode(errors="replace").strip()][-5:]
                if said[-1].startswith("I: "):
                    report(said[-1].removeprefix("I: "))
            if await process.wait() == 0:
                return None
    except TimeoutError:
        said.append("it took too long")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return "; ".join(said)


def sources() -> list[str]:
    """Lines of a sources.list: those of this machine's apt for the suite, or Debian's own servers."""
    lines = dict.fromkeys(
        f"deb {uri} {release} {component}"
        for uri, release, component in _targets()
        if release in _SUITES and uri.startswith(("http://", "https://"))
    )
    named = {line.split()[2] for line in lines}
    return list(lines) if SUITE in named else list(_DEFAULT_SOURCES)


def _targets() -> list[list[str]]:
    """What apt is configured to read, each as [URI, release, component]."""
    try:
        answer = subprocess.run(
            [
                "apt-get",
                "indextargets",
                "--format",
                "$(REPO_URI) $(RELEASE) $(COMPONENT)",
                "Created-By: Packages",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return []  # not a machine with apt
    found = [line.split() for line in answer.stdout.splitlines()]
    return [words for words in found if len(words) == 3]


def _proxies() -> list[str]:
    try:
        answer = subprocess.run(
            ["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return []
    return [line for line in answer.stdout.splitlines() if _PROXY.fullmatch(line)]


def _finish(folder: Path, owner: int) -> None:
    """What makes a Debian root a sandbox's: its user, its settings, one owner for all."""
    for name, text in _files().items():
        path = folder / name
        path.unlink(missing_ok=True)
        path.write_text(text)
    policy = folder / "usr/sbin/policy-rc.d"
    policy.write_text(_POLICY)
    policy.chmod(0o755)
    (folder / "etc/apt/apt.conf.d/99mmdebstrap").unlink(missing_ok=True)
    for name, line in (
        ("passwd", "user:x:1000:1000:user:/home/user:/bin/bash\n"),
        ("group", "user:x:1000:\n"),
        ("shadow", "user:*:19000:0:99999:7:::\n"),
    ):
        with (folder / "etc" / name).open("a") as file:
            file.write(line)
    _trust(folder)
    shutil.copytree(folder / "etc/skel", folder / "home/user")
    (folder / "workspace").mkdir()
    for path in (folder / "dev").iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.chown(Path(parent, name), owner, owner, follow_symlinks=False)
    os.chown(folder, owner, owner)


def _trust(folder: Path) -> None:
    """Let sandboxes trust what this machine trusts: the operator's mirrors may have authorities of their own."""
    bundle = folder / _AUTHORITIES.relative_to("/")
    if not _AUTHORITIES.is_file() or not bundle.is_file():
        return
    known = set(_CERTIFICATE.findall(bundle.read_text()))
    own = [each for each in _CERTIFICATE.findall(_AUTHORITIES.read_text()) if each not in known]
    # Where update-ca-certificates looks as well, which a package may run and which makes the bundle anew.
    local = folder / "usr/local/share/ca-certificates"
    local.mkdir(parents=True, exist_ok=True)
    for certificate in own:
        name = hashlib.sha256(certificate.encode()).hexdigest()[:16]
        (local / f"machine-{name}.crt").write_text(f"{certificate}\n")
    with bundle.open("a") as file:
        file.writelines(f"{certificate}\n" for certificate in own)
