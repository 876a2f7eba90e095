"""What the runner asks of the control plane over HTTP."""

import json
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import quote

import httpx

from ship_runner.failures import RunnerFailure
from ship_runner.tls import authorities

log = logging.getLogger(__name__)

_CHUNK = 256 * 1024


@dataclass(frozen=True, slots=True)
class Model:
    """A model and its limits in tokens; ``input_tokens`` 0 means that a request may fill the context."""

    name: str
    context_tokens: int
    output_tokens: int
    input_tokens: int = 0
    images: bool = False


@dataclass(frozen=True, slots=True)
class Provider:
    """One model API, behind the gateway at ``base_url``."""

    name: str
    protocol: Literal["openai", "anthropic"]
    base_url: str
    models: tuple[Model, ...]


@dataclass(frozen=True, slots=True)
class Restore:
    """The checkpoint that a new sandbox starts from: artifacts by name, its bundles with the oldest first. ``agent_artifact`` and
    ``summary``, the conversation so far in words, may be empty. ``lost_task``: a task was interrupted."""

    checkpoint_id: str
    bundles: tuple[str, ...]
    agent_artifact: str
    lost_task: bool
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """What this runner is to do; see ``docs/protocol.md``. ``is_again``: an earlier sandbox of the session has been at work."""

    session_id: str
    generation: int
    title: str
    clone_url: str
    branch: str
    work_branch: str
    restore: Restore | None
    approval: str
    default_model: str
    providers: tuple[Provider, ...]
    is_again: bool = False

    @classmethod
    def parse(cls, document: dict[str, Any]) -> "Bootstrap":
        """Raises: KeyError or TypeError when a field is missing or of the wrong kind."""
        return cls(
            session_id=document["session_id"],
            generation=int(document["generation"]),
            title=document["title"],
            clone_url=document["repository"]["clone_url"],
            branch=document["repository"]["branch"],
            work_branch=document["work_branch"],
            restore=_restore(document["restore"]),
            is_again=int(document["generation"]) > 1 and bool(document.get("base_commit")),
            approval=document["approval"],
            default_model=document["default_model"],
            providers=tuple(
                Provider(
                    name=provider["name"],
                    protocol=provider["protocol"],
                    base_url=provider["base_url"],
                    models=tuple(
                        Model(
                            model["name"],
                            int(model["context_tokens"]),
                            int(model["output_tokens"]),
                            int(model.get("input_tokens", 0)),
                            bool(model.get("images", False)),
                        )
                        for model in provider["models"]
                    ),
                )
                for provider in document["providers"]
            ),
        )


def _restore(document: dict[str, Any] | None) -> Restore | None:
    if document is None:
        return None
    return Restore(
        checkpoint_id=document["checkpoint_id"],
        bundles=tuple(document["bundles"]),
        agent_artifact=document["agent_artifact"],
        lost_task=bool(document["lost_task"]),
        summary=document.get("summary", ""),
    )


class ControlPlane:
    """The control plane's routes under ``/runner/v1``, through the sandbox's proxy where one is set."""

    def __init__(self, url: str, token: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=f"{url.rstrip('/')}/runner/v1/",
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(30, read=120, write=120),
            verify=authorities(url),
        )

    async def bootstrap(self, keep_at: Path) -> Bootstrap:
        """What to do, kept in a file for a runner that starts while the control plane is away.

        Raises:
            httpx.HTTPError: the control plane does not answer, or refuses.
            RunnerFailure: ``bootstrap_malformed``.
        """
        answer = await self._http.get("bootstrap")
        answer.raise_for_status()
        found = _parsed(answer.content)
        partial = keep_at.with_suffix(".new")
        partial.touch(0o600)
        partial.write_bytes(answer.content)
        partial.replace(keep_at)
        return found

    async def store_artifact(self, name: str, path: Path, media_type: str) -> None:
        """Store a file's content under a name; raises httpx.HTTPError."""
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            headers = {"Content-Type": media_type, "Content-Length": str(size)}
            answer = await self._http.put(f"artifacts/{name}", content=_chunks(file), headers=headers)
            answer.raise_for_status()

    async def fetch_artifact(self, name: str, path: Path) -> None:
        """Write a stored blob to a file; raises httpx.HTTPError."""
        async with self._http.stream("GET", f"artifacts/{name}") as answer:
            answer.raise_for_status()
            with path.open("wb") as file:
                async for chunk in answer.aiter_bytes(_CHUNK):
                    file.write(chunk)

    async def start_child(self, wanted: dict[str, Any], key: str) -> dict[str, Any]:
        """Start a session beside this one, ``{prompt, title?, model?}`` → ``{child_id}``; one for each ``key``. Raises httpx.HTTPError."""
        answer = await self._http.post("children", json=wanted, headers={"Idempotency-Key": key})
        answer.raise_for_status()
        return dict(answer.json())

    async def child(self, child_id: str) -> dict[str, Any]:
        """One of them as it stands: ``{id, title, status, summary, files_changed, additions, deletions}``; raises as before."""
        answer = await self._http.get(f"children/{quote(child_id, safe='')}")
        answer.raise_for_status()
        return dict(answer.json())

    async def children(self) -> list[dict[str, Any]]:
        """All of them; raises as before."""
        answer = await self._http.get("children")
        answer.raise_for_status()
        return list(answer.json()["items"])

    async def close(self) -> None:
        await self._http.aclose()


def kept_bootstrap(path: Path) -> Bootstrap | None:
    """What an earlier runner was told, or None."""
    try:
        return _parsed(path.read_bytes())
    except FileNotFoundError:
        return None
    except RunnerFailure as error:
        log.warning("%s does not count: %s", path.name, error)
        path.unlink()
        return None


def _parsed(content: bytes) -> Bootstrap:
    try:
        return Bootstrap.parse(json.loads(content))
    except (ValueError, KeyError, TypeError) as error:
        raise RunnerFailure(
            "bootstrap_malformed",
            f"the control plane sent a bootstrap that this runner cannot read: {error!r}",
            "The runner and Ship are of different versions; start a new sandbox.",
        ) from error


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk
