"""The Unix account of a sandbox: who commands run as, where they start, what they find in their environment.

There is one real user. It owns every file that is not of the system, so files need no other; a command of `root`
runs as that user too, under fakeroot, which `sudo` in the sandbox starts (see the folder `bin`). The programs in the
folder `standins` are for names that nothing else in the sandbox has.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from .rpc import RpcError

ROOT = "root"
PROGRAMS = "/run/envd/lib/bin"
STANDINS = "/run/envd/lib/standins"
SUDO = f"{PROGRAMS}/sudo"


@dataclass
class Account:
    """`name` is the real user; `envs` holds what every process gets. `default` is the user of who names none, and
    `workdir` is where commands start that name no folder (empty: the user's home)."""

    name: str = "user"
    home: str = "/home/user"
    envs: dict[str, str] = field(default_factory=dict)
    default: str = "user"
    workdir: str = ""

    def require(self, username: str) -> str:
        """The user that a caller asks for. Raises RpcError `unauthenticated` for one that does not exist."""
        if username not in ("", self.name, ROOT):
            raise RpcError(
                "unauthenticated",
                f"invalid username: '{username}'. This sandbox has the users '{self.name}' and '{ROOT}'.",
            )
        return username or self.default

    def home_of(self, user: str) -> str:
        return "/root" if user == ROOT and os.access("/root", os.W_OK) else self.home

    def path(self, path: str, user: str = "") -> str:
        """An absolute path; `~` and relative paths start at the user's home folder."""
        if "\0" in path:
            raise RpcError("invalid_argument", "a path cannot contain a NUL character")
        try:
            os.fsencode(path)
        except UnicodeEncodeError:
            raise RpcError("invalid_argument", "a path must be text that UTF-8 can express") from None
        if path == "~" or path.startswith("~/"):
            path = path[2:]
        return os.path.normpath(os.path.join(self.home_of(user), path))

    def arguments(self, arguments: list[str], user: str) -> list[str]:
        """The command line that runs a command as a user."""
        return arguments if user != ROOT else [SUDO, "-E", "--", *arguments]

    def environment(self, envs: Any, user: str = "") -> dict[str, str]:
        """What a process gets: the account's variables, overlaid by its own."""
        if not isinstance(envs, dict):
            raise RpcError("invalid_argument", "envs is not an object of strings")
        merged = {**self.envs, **{str(key): str(value) for key, value in envs.items()}}
        for key, value in merged.items():
            if not key or "=" in key or "\0" in key or "\0" in value:
                raise RpcError("invalid_argument", f"the environment variable {key!r} is malformed")
        path = merged.get("PATH", os.defpath)
        if PROGRAMS not in path.split(":"):
            merged["PATH"] = f"{PROGRAMS}:{path}:{STANDINS}"
        if user == ROOT:
            merged |= {"HOME": self.home_of(user), "USER": ROOT, "LOGNAME": ROOT}
        return merged
