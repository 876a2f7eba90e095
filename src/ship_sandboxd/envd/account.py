"""The one Unix account of a sandbox: who commands run as, where they start, what they find in their environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from .rpc import RpcError


@dataclass
class Account:
    """`name` is the only user there is; `envs` holds what every process gets."""

    name: str = "user"
    home: str = "/home/user"
    envs: dict[str, str] = field(default_factory=dict)

    def require(self, username: str) -> None:
        """Raises RpcError `unauthenticated` when the caller asks for another user."""
        if username and username != self.name:
            raise RpcError(
                "unauthenticated",
                f"invalid username: '{username}'. Sandboxes of this host have one account, '{self.name}'.",
            )

    def path(self, path: str) -> str:
        """An absolute path; `~` and relative paths start at the home folder."""
        if "\0" in path:
            raise RpcError("invalid_argument", "a path cannot contain a NUL character")
        if path == "~" or path.startswith("~/"):
            path = path[2:]
        return os.path.normpath(os.path.join(self.home, path))

    def environment(self, envs: Any) -> dict[str, str]:
        """What a process gets: the account's variables, overlaid by its own."""
        if not isinstance(envs, dict):
            raise RpcError("invalid_argument", "envs is not an object of strings")
        merged = {**self.envs, **{str(key): str(value) for key, value in envs.items()}}
        for key, value in merged.items():
            if not key or "=" in key or "\0" in key or "\0" in value:
                raise RpcError("invalid_argument", f"the environment variable {key!r} is malformed")
        return merged
