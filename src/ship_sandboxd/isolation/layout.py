"""The files that every sandbox sees besides /usr: the daemon's code and a small /etc, made once in the data folder."""

import hashlib
import os
import subprocess
from pathlib import Path

from .. import envd
from ..durable import made
from ..errors import SetupError, program_failed
from ..network.names import SERVER

SANDBOX_PYTHON = "/usr/bin/python3"
HOSTNAME = "sandbox"
_MIN_PYTHON = (3, 10)
_PROGRAMS = ("bin", "standins")  # folders beside the daemon's code: on PATH before all others, and after them

# Links into /usr, or folders beside it, as the machine has them.
SYSTEM_FOLDERS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
ETC = {
    "passwd": "root:x:0:0:root:/root:/usr/sbin/nologin\nuser:x:1000:1000:user:/home/user:/bin/bash\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\ntty:x:5:\nuser:x:1000:\nnogroup:x:65534:\n",
    "hosts": f"127.0.0.1 localhost {HOSTNAME}\n::1 localhost ip6-localhost\n",
    "resolv.conf": f"nameserver {SERVER}\noptions timeout:5 attempts:3\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n",
    # Debian's own /etc/profile would replace the PATH that a template gives.
    "profile": 'if [ "${BASH-}" ] && [ "${PS1-}" ]; then PS1=\'\\u@sandbox:\\w\\$ \'; fi\n',
}
# Taken from the host where it has them.
HOST_ETC = (
    "/etc/alternatives",
    "/etc/ssl",
    "/etc/ca-certificates",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/services",
    "/etc/protocols",
    "/etc/fonts",
    "/etc/os-release",
)


def write_etc(data: Path) -> Path:
    """Make the folder of /etc files; answers it. What is there already is left: a host must start on a full disk, too."""
    folder = data / "etc"
    folder.mkdir(exist_ok=True)
    for name, text in ETC.items():
        if (folder / name).exists() and (folder / name).read_text() == text:
            continue
        scratch = folder / f".{name}"
        scratch.write_text(text)
        scratch.chmod(0o644)
        scratch.replace(folder / name)
    folder.chmod(0o755)
    return folder


def etc_names() -> tuple[str, ...]:
    return tuple(ETC)


def install_daemon(data: Path) -> Path:
    """Copy the daemon's code to a folder named by its content and compile it for the sandbox's Python.

    A sandbox that runs keeps the version that it was started with, whatever is installed later. Raises SetupError for that
    Python, and OSError, and then nothing is left half-made.
    """
    home = Path(envd.__file__).parent
    files = {f"envd/{path.name}": path.read_bytes() for path in sorted(home.glob("*.py"))}
    for programs in _PROGRAMS:
        files |= {
            f"{programs}/{path.name}": path.read_bytes() for path in sorted((home / programs).iterdir())
        }
    version = _python_version()
    digest = hashlib.sha256(repr((version, files)).encode()).hexdigest()[:16]
    folder = data / "envd" / digest
    if folder.is_dir():
        return folder
    with made(folder) as scratch:
        for name, content in files.items():
            (scratch / name).parent.mkdir(exist_ok=True)
            (scratch / name).write_bytes(content)
        _compile(scratch / "envd")
        for path in (scratch, *scratch.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.parent.name in _PROGRAMS else 0o644)
    return folder


def _compile(code: Path) -> None:
    """Raises OSError."""
    command = [SANDBOX_PYTHON, "-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    done = subprocess.run(
        [*command, str(code)],
        env={**os.environ, "LC_ALL": "C"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        umask=0o022,
        check=False,
    )
    if done.returncode != 0:
        raise program_failed("the daemon's code cannot be compiled", done.stdout)


def _python_version() -> str:
    try:
        answer = subprocess.run(
            [SANDBOX_PYTHON, "-I", "-S", "-c", "import sys; print(sys.version)"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(
            f"{SANDBOX_PYTHON} is missing: install the package python3", "python_missing"
        ) from error
    version = answer.stdout.strip()
    if tuple(int(part) for part in version.split()[0].split(".")[:2]) < _MIN_PYTHON:
        raise SetupError(
            f"{SANDBOX_PYTHON} is {version.split()[0]}: 3.10 or later is needed", "python_too_old"
        )
    return version
