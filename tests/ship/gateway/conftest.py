"""A gateway in front of a scripted model, both over real HTTP."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from starlette.applications import Starlette

from ship.config import Provider
from ship.errors import ShipError, StaleGeneration, Unauthenticated
from ship.events.facts import ModelCalled
from ship.gateway import models, upstream
from ship.gateway.grants import Grant
from ship.model import LimitKind, Repository
from ship.testing import scripted_model
from ship.testing.scripted_model import ScriptedModel
from ship.testing.serving import serving

KEY = "sk-canary-provider-key-0123456789"
TOKEN = "shs_canary-session-token-9876543210"
STALE_TOKEN = "shs_of-an-older-sandbox"


@dataclass
class RecordingGrants:
    """Grants that know one token and keep the calls in a list."""

    source: str = "/nowhere"
    calls: list[ModelCalled] = field(default_factory=list)
    limit: LimitKind | None = None
    at_work: bool = True
    cost_limited: bool = False
    refusals: list[ShipError] = field(default_factory=list)
    """What the next calls that are to be kept meet."""
    ids: set[str] = field(default_factory=set)

    async def authorize(self, token: str) -> Grant:
        if token == STALE_TOKEN:
            raise StaleGeneration("replaced")
        if token != TOKEN:
            raise Unauthenticated("this token is not known")
        repository = Repository(source=self.source)
        return Grant("ses_1", 1, "tsk_1", repository, self.limit, self.at_work, self.cost_limited)

    async def model_called(self, grant: Grant, call: ModelCalled, call_id: str) -> None:
        assert grant.session_id == "ses_1"
        self.ids.add(call_id)
        if self.refusals:
            raise self.refusals.pop()
        self.calls.append(call)


@dataclass
class Gateway:
    """What a test talks to: ``url`` ends before the provider's name."""

    url: str
    grants: RecordingGrants
    model: ScriptedModel

    @property
    def call(self) -> ModelCalled:
        (only,) = self.grants.calls
        return only


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    model = ScriptedModel(key=KEY, pace_s=0.0)
    grants = RecordingGrants()
    more = ("echo+cut_stream*9", "echo+server_error*9", "echo+rate_limited*9")
    async with scripted_model.serve(model) as url, upstream.client(upstream.Patience(silence_s=1.0)) as http:
        providers = [
            scripted_model.provider(url, api_key=KEY, models=more),
            scripted_model.provider(url, name="claude", protocol="anthropic", api_key=KEY, models=more),
            scripted_model.provider(url, name="refused", api_key="another-key-0123456789"),
            Provider(name="keyless", protocol="openai", base_url=url, key_setting="OPENAI_API_KEY"),
            Provider(name="down", protocol="openai", base_url="http://127.0.0.1:9/v1"),
        ]
        app = Starlette(routes=list(models.routes(grants, providers, http)))
        async with serving(app) as gateway_url:
            yield Gateway(f"{gateway_url}/gateway/models", grants, model)
