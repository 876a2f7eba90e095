"""What a caller asks for."""

import time
from dataclasses import dataclass, field
from typing import Any

from .. import templates
from ..moments import Moment
from .records import DEFAULT_TENANT, KILL, PAUSE, SandboxRecord

DEFAULT_TIMEOUT_S = 300


@dataclass(frozen=True)
class NewSandbox:
    """See `POST /v2/sandboxes` of E2B's API. When its time is over it is paused if `auto_pause` says so; `auto_resume` lets a
    request to it wake it up again."""

    template: str = templates.BASE
    tenant: str = DEFAULT_TENANT
    timeout_s: int = DEFAULT_TIMEOUT_S
    envs: tuple[tuple[str, str], ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    allow_internet: bool = True
    allow_public_traffic: bool = True
    network: dict[str, Any] = field(default_factory=dict)
    auto_pause: bool = False
    auto_pause_keeps_memory: bool = True
    auto_resume: bool = False
    idempotency_key: str = ""
    request_digest: str = ""

    @classmethod
    def like(cls, record: SandboxRecord, timeout_s: int) -> "NewSandbox":
        """Another one that is as this one was asked for, for so many seconds; no idempotency key belongs to it."""
        return cls(
            template=record.template,
            tenant=record.tenant,
            timeout_s=timeout_s,
            metadata=tuple(record.metadata.items()),
            allow_internet=record.allow_internet,
            allow_public_traffic=record.allow_public_traffic,
            network=record.network,
            auto_pause=record.on_timeout == PAUSE,
            auto_pause_keeps_memory=record.pause_keeps_memory,
            auto_resume=record.auto_resume,
        )

    def give(self, record: SandboxRecord) -> None:
        """Make a sandbox what was asked for."""
        record.started_at = round(time.time(), 3)
        record.end, record.timeout_s = Moment.after(self.timeout_s), self.timeout_s
        record.tenant = self.tenant
        record.metadata, record.envs = dict(self.metadata), dict(self.envs)
        record.allow_internet, record.network = self.allow_internet, self.network
        record.allow_public_traffic = self.allow_public_traffic
        record.on_timeout = PAUSE if self.auto_pause else KILL
        record.pause_keeps_memory = self.auto_pause_keeps_memory
        record.auto_resume = self.auto_resume
        record.idempotency_key, record.request_digest = self.idempotency_key, self.request_digest
