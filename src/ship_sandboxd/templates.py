"""Templates: what a sandbox finds when it starts, and how much of the machine it may use.

`base` always exists. The operator's templates are folders `templates/<name>` of the data folder with a
`template.json`; those that callers build are known to `catalogue.py`.
"""

import json
import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ApiError, NotFound

BASE, DEBIAN = "base", "debian"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where commands are looked for, unless a template says something else."""
MAX_WARM = 1000
SPARE = ".spare"
"""The name, which nobody can give, of what any sandbox on the machine's `/usr` can be made of."""
_NUMBERS = ("memory_mb", "cpu_count", "pids", "disk_mb")
_TEXTS = ("backend", "start_command", "ready_command")
KEYS = frozenset({"mounts", "env", "warm", *_NUMBERS, *_TEXTS})
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_RESERVED = (
    "/",
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/proc",
    "/dev",
    "/sys",
    "/etc",
    "/run/envd",
)


class TemplateInvalid(ApiError):
    """A template.json that cannot be used; the operator has to mend it."""

    status = 500
    code = "template_invalid"


@dataclass(frozen=True)
class Mount:
    """A file or folder of the host that the sandbox sees, read-only."""

    source: str
    target: str


@dataclass(frozen=True)
class Template:
    """`name` is what clients are told as its id, `alias` what people call it. `layers` are the digests of what its
    root is laid of, lowest first; none is the machine's own `/usr`, which the layers lie on if `on_machine`.

    Commands start in `workdir` as `user`. `start_command` runs from the sandbox's first moment on, in the same way, and
    the sandbox is ready once `ready_command` has ended with status 0, without one as soon as the first runs. `backend` says how it is isolated; empty: as the host
    does by default. `warm` sandboxes of it are kept ready to be handed out.
    """

    name: str
    mounts: tuple[Mount, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    memory_mb: int = 4096
    cpu_count: int = 2
    pids: int = 2048
    disk_mb: int = 10240
    layers: tuple[str, ...] = ()
    on_machine: bool = False
    workdir: str = "/home/user"
    user: str = "user"
    start_command: str = ""
    ready_command: str = ""
    alias: str = ""
    backend: str = ""
    warm: int = 0

    @property
    def lies_on_machine(self) -> bool:
        return self.on_machine or not self.layers


def laid(layers: tuple[str, ...], layer: str) -> tuple[str, ...]:
    """The layers with one more on top. None may lie there twice (overlayfs refuses it): what is above hides all of an
    equal one below."""
    return (*(each for each in layers if each != layer), layer)


def has_file(folder: Path, name: str) -> bool:
    """Whether the operator has laid out a template of this name. Callers choose it, so its form comes first: it must not
    lead anywhere else."""
    return _NAME.fullmatch(name) is not None and _path(folder, name).is_file()


def _path(folder: Path, name: str) -> Path:
    return folder / name / "template.json"


def read(folder: Path, name: str) -> Template:
    """The template of this name. Raises NotFound, or TemplateInvalid when its file is broken."""
    if not has_file(folder, name):
        if name == BASE:
            return Template(BASE)
        raise NotFound(f"template '{name}' not found", "template_not_found")
    path = _path(folder, name)
    try:
        return parse(name, json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise TemplateInvalid(f"{path}: {error}") from error


def names(folder: Path) -> list[str]:
    """The operator's templates."""
    return sorted(path.parent.name for path in folder.glob("*/template.json"))


def parse(name: str, values: Any) -> Template:
    """A template of its JSON value; ValueError says what is wrong with it."""
    if not isinstance(values, dict):
        raise ValueError("a template is a JSON object")
    unknown = set(values) - KEYS
    if unknown:
        raise ValueError(f"unknown keys: {', '.join(sorted(unknown))}")
    for key in _NUMBERS:
        if key in values and (not isinstance(values[key], int) or values[key] < 1):
            raise ValueError(f"{key} must be a positive whole number")
    env = values.get("env", {})
    if not isinstance(env, dict) or not all(isinstance(item, str) for pair in env.items() for item in pair):
        raise ValueError("env must be an object of strings")
    texts = {key: values[key] for key in _TEXTS if key in values}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{key} must be a string")
    warm = values.get("warm", 0)
    if not isinstance(warm, int) or not 0 <= warm <= MAX_WARM:
        raise ValueError(f"warm must be a whole number from 0 to {MAX_WARM}")
    mounts = tuple(_mount(mount) for mount in values.get("mounts", []))
    numbers = {key: values[key] for key in _NUMBERS if key in values}
    return Template(name, mounts, env, warm=warm, **numbers, **texts)


def _mount(values: Any) -> Mount:
    if not isinstance(values, dict) or set(values) != {"source", "target"}:
        raise ValueError('a mount is {"source": "/on/the/host", "target": "/in/the/sandbox"}')
    source, target = str(values["source"]), str(values["target"])
    if not source.startswith("/") or not target.startswith("/") or "\0" in source + target:
        raise ValueError(f"the mount {source!r} on {target!r} needs absolute paths")
    target = posixpath.normpath("/" + target.lstrip("/"))
    for reserved in _RESERVED:
        if target == reserved or (reserved != "/" and target.startswith(reserved + "/")):
            raise ValueError(
                f"nothing can be mounted on {target}: {reserved} belongs to the host's own layout"
            )
    return Mount(source, target)
