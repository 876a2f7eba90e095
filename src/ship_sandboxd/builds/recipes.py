"""What a template is built of, as E2B's SDK sends it: a base, steps, a start command. Pure: no clock, no I/O.

A step turns one `Stage` into the next. Each stage has a key that follows from its base and from every step before it, so
that a step whose key was seen before need not be done again.
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import Any

from ..errors import BadRequest
from ..templates import PATH, Template, laid

RUN, COPY, ENV, WORKDIR, USER = "RUN", "COPY", "ENV", "WORKDIR", "USER"
USERS = ("user", "root")
MAX_STEPS = 500
MAX_TEXT = 64 * 1024
_KNOWN = ("fromImage", "fromTemplate", "fromImageRegistry", "force", "steps", "startCmd", "readyCmd")
_ARGUMENTS = {RUN: (1, 2), COPY: (2, 4), ENV: (2, 1000), WORKDIR: (1, 1), USER: (1, 1)}
_FILES_HASH = re.compile(r"[0-9a-f]{64}")
_VARIABLE = re.compile(r"\\\$|\$(?:\{(?P<braced>[A-Za-z_]\w*)\}|(?P<plain>[A-Za-z_]\w*))")
_NAME = re.compile(r"[A-Za-z_]\w*")
# Images whose content the Debian root has: the same system, with Debian's own Python.
_IMAGES = re.compile(
    r"e2bdev/base(?::latest)?"
    r"|debian:(?:12(?:\.\d+)?|bookworm(?:-\d{8})?)(?:-slim)?"
    r"|python:3(?:\.11(?:\.\d+)?)?(?:-slim)?(?:-bookworm)?"
)
IMAGES = "e2bdev/base, debian:bookworm, debian:12, python:3, python:3.11 (with -slim, -bookworm too)"


@dataclass(frozen=True)
class Step:
    """One instruction. `files_hash` names the uploaded archive of a COPY; `force` wants it done anew."""

    kind: str
    arguments: tuple[str, ...]
    files_hash: str = ""
    force: bool = False

    def __str__(self) -> str:
        if self.kind == ENV:
            pairs = zip(self.arguments[::2], self.arguments[1::2], strict=True)
            return f"ENV {' '.join(f'{name}={value}' for name, value in pairs)}"
        if self.kind == COPY:
            return f"COPY {self.arguments[0]} {self.arguments[1]}"
        return f"{self.kind} {self.arguments[0]}"


@dataclass(frozen=True)
class Recipe:
    """`base` names a template; empty for the Debian root."""

    base: str
    steps: tuple[Step, ...]
    force: bool = False
    start_command: str = ""
    ready_command: str = ""


@dataclass(frozen=True)
class Stage:
    """What has been built so far: the layers, lowest first, and how the next command starts."""

    key: str
    layers: tuple[str, ...]
    env: dict[str, str]
    workdir: str
    user: str

    @classmethod
    def of(cls, template: Template, tenant: str) -> "Stage":
        """Where a tenant's build on top of a template begins."""
        facts = [tenant, template.layers, sorted(template.env.items()), template.workdir, template.user]
        return cls(_digest(facts), template.layers, dict(template.env), template.workdir, template.user)

    def key_after(self, step: Step) -> str:
        return _digest([self.key, step.kind, step.arguments, step.files_hash])

    def after(self, step: Step, layer: str | None = None) -> "Stage":
        """The next stage; `layer` is what the step changed in the file system, if it did."""
        stage = replace(self, key=self.key_after(step))
        if layer is not None:
            stage = replace(stage, layers=laid(stage.layers, layer))
        if step.kind == ENV:
            env = dict(self.env)
            for name, value in zip(step.arguments[::2], step.arguments[1::2], strict=True):
                env[name] = self._expand(value)
            return replace(stage, env=env)
        if step.kind == USER:
            return replace(stage, user=step.arguments[0])
        if step.kind == WORKDIR:
            return replace(stage, workdir=self.absolute(step.arguments[0]))
        return stage

    def absolute(self, path: str) -> str:
        """A path of the sandbox; a relative one starts where commands do, `~` at the home folder."""
        path = self._expand(path)
        home = home_of(self.user)
        if path == "~" or path.startswith("~/"):
            path = home + path[1:]
        return path if path.startswith("/") else f"{self.workdir.rstrip('/')}/{path}"

    def _expand(self, text: str) -> str:
        return expand(text, {"PATH": PATH, "HOME": home_of(self.user), **self.env})


def home_of(user: str) -> str:
    return "/root" if user == "root" else "/home/user"


def expand(text: str, env: dict[str, str]) -> str:
    """`$NAME` and `${NAME}` replaced by what they stand for, nothing where they are not set, as a Dockerfile does it."""

    def value(match: re.Match[str]) -> str:
        name = match["braced"] or match["plain"]
        return env.get(name, "") if name else "$"

    return _VARIABLE.sub(value, text)


def parse(body: dict[str, Any]) -> Recipe:
    """A recipe of the body of `POST /v2/templates/{id}/builds/{id}`. Raises BadRequest that says what is wrong."""
    unknown = set(body) - set(_KNOWN)
    if unknown:
        raise BadRequest(f"unknown fields: {', '.join(sorted(unknown))}")
    if body.get("fromImageRegistry"):
        raise BadRequest(
            f"fromImageRegistry: this host reaches no image registry; there are {IMAGES}, and fromTemplate",
            "image_unknown",
        )
    image, template = _text(body, "fromImage"), _text(body, "fromTemplate")
    if bool(image) == bool(template):
        raise BadRequest("exactly one of fromImage and fromTemplate says what the template starts from")
    if image and not _IMAGES.fullmatch(image.removeprefix("docker.io/").removeprefix("library/")):
        raise BadRequest(
            f"the image {image[:200]!r} is not here: this host reaches no image registry; there are {IMAGES}; "
            "use one of them, or fromTemplate",
            "image_unknown",
        )
    steps = body.get("steps") or []
    if not isinstance(steps, list) or len(steps) > MAX_STEPS:
        raise BadRequest(f"steps must be a list of at most {MAX_STEPS}")
    return Recipe(
        base=template,
        steps=tuple(_step(value, number) for number, value in enumerate(steps, 1)),
        force=bool(body.get("force")),
        start_command=_text(body, "startCmd"),
        ready_command=_text(body, "readyCmd"),
    )


def _step(value: Any, number: int) -> Step:
    where = f"step {number}"
    if not isinstance(value, dict):
        raise BadRequest(f"{where} is not an object")
    kind, arguments = value.get("type"), value.get("args") or []
    if kind not in _ARGUMENTS:
        raise BadRequest(f"{where}: the type must be one of {', '.join(_ARGUMENTS)}")
    if not isinstance(arguments, list) or not all(isinstance(item, str) for item in arguments):
        raise BadRequest(f"{where}: args must be a list of strings")
    least, most = _ARGUMENTS[kind]
    if not least <= len(arguments) <= most or (kind == ENV and len(arguments) % 2):
        raise BadRequest(f"{where}: {kind} has a wrong number of args")
    if any("\0" in item or len(item) > MAX_TEXT for item in arguments):
        raise BadRequest(f"{where}: an argument is too long, or holds a NUL character")
    files_hash = value.get("filesHash") or ""
    if kind == COPY and not (isinstance(files_hash, str) and _FILES_HASH.fullmatch(files_hash)):
        raise BadRequest(f"{where}: COPY needs the filesHash of an uploaded archive")
    if kind == ENV and not all(_NAME.fullmatch(name) for name in arguments[::2]):
        raise BadRequest(f"{where}: the name of an environment variable is malformed")
    return Step(kind, tuple(arguments), files_hash if kind == COPY else "", bool(value.get("force")))


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key) or ""
    if not isinstance(value, str) or len(value) > MAX_TEXT or "\0" in value:
        raise BadRequest(f"{key} must be a string of at most {MAX_TEXT} characters")
    return value


def _digest(facts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
