"""Every way in which a model call fails, as the agent and the log hear of it.

The statuses are chosen for OpenCode, which tries again after 408, 409, 429 and 5xx, and, for any status, when the text
holds such a number or words like "rate limit", "server error" or "connection lost". So what a second try cannot mend is a
400, 401 or 402 in words that stay clear of those, and what it may mend says so. ``docs/models.md`` lists the codes.
"""

from urllib.parse import urlsplit

from ship.config import Provider
from ship.errors import ShipError

RETRY_AFTER_LIMIT_S = 60


class ModelError(ShipError):
    """A model call that did not succeed; ``upstream_status`` is the provider's own, 0 when it was not reached.

    ``kind`` is the ``type`` of the provider's error shape, ``retry_after_s`` the pause that the agent is asked to make.
    """

    status = 502
    code = "model_failed"
    kind = "api_error"

    def __init__(
        self, message: str, *, hint: str = "", upstream_status: int = 0, retry_after_s: int = 0
    ) -> None:
        super().__init__(message, hint=hint)
        self.upstream_status = upstream_status
        self.retry_after_s = retry_after_s


class GatewayPathUnknown(ModelError):
    """Nothing that the gateway forwards."""

    status = 404
    code = "gateway_path_unknown"
    kind = "not_found_error"


class MethodNotAllowed(ModelError):
    """A known path, but not with this method."""

    status = 405
    code = "gateway_method_not_allowed"
    kind = "invalid_request_error"


class SandboxReplaced(ModelError):
    """The token is of a sandbox that was replaced. Not a 409, which agents try again."""

    status = 403
    code = "stale_generation"
    kind = "permission_error"


class LimitReached(ModelError):
    """The task has used up what it may. No figures: agents take some numbers for a reason to try again."""

    status = 402
    code = "limit_reached"
    kind = "billing_error"


class NoTaskRuns(ModelError):
    """Nobody has asked for work whose limits would count the call."""

    status = 403
    code = "no_task_running"
    kind = "permission_error"


class PriceUnknown(ModelError):
    """The task's cost is limited, and nobody knows what this model costs."""

    status = 403
    code = "model_price_unknown"
    kind = "permission_error"


class RequestInvalid(ModelError):
    """The body is not a JSON object with a model's name."""

    status = 400
    code = "model_request_invalid"
    kind = "invalid_request_error"


class RequestTooLarge(ModelError):
    """The body is over the limit."""

    status = 413
    code = "model_request_too_large"
    kind = "request_too_large"


class ModelNotConfigured(ModelError):
    """No provider of that name."""

    status = 400
    code = "model_not_configured"
    kind = "invalid_request_error"


class ModelUnknown(ModelError):
    """The provider has no such model, or the settings do not name it."""

    status = 400
    code = "model_unknown"
    kind = "invalid_request_error"


class KeyRefused(ModelError):
    """The provider does not take our key."""

    status = 401
    code = "model_key_refused"
    kind = "authentication_error"


class QuotaExceeded(ModelError):
    """The account has no money left."""

    status = 402
    code = "model_quota_exceeded"
    kind = "billing_error"


class RateLimited(ModelError):
    """The provider asks us to slow down."""

    status = 429
    code = "model_rate_limited"
    kind = "rate_limit_error"


class ModelUnreachable(ModelError):
    """No connection, or no answer in time."""

    status = 503
    code = "model_unreachable"


class ModelMalformed(ModelError):
    """The provider answered with something that is not its protocol."""

    status = 502
    code = "model_malformed"


class StreamCut(ModelError):
    """The stream ended before the answer was complete."""

    status = 502
    code = "model_stream_cut"


class ModelFailed(ModelError):
    """The provider had an error of its own; its 5xx status passes to the agent."""

    code = "model_failed"

    def __init__(self, message: str, *, hint: str, upstream_status: int, retry_after_s: int) -> None:
        super().__init__(message, hint=hint, upstream_status=upstream_status, retry_after_s=retry_after_s)
        self.status = upstream_status


class RequestRefused(ModelError):
    """The provider refuses what the request says. ``said`` is its own error and passes to the agent, which reads in it, for
    example, that the conversation has grown too long."""

    code = "model_request_refused"
    kind = "invalid_request_error"

    def __init__(self, status: int, why: str, said: dict[str, object]) -> None:
        super().__init__(why, upstream_status=status)
        self.status = status
        self.said = said


def key_refused(provider: Provider, status: int) -> KeyRefused:
    """The error for a 401 or 403."""
    setting = provider.key_setting or f"the API key of provider {provider.name}"
    if not provider.api_key:
        reason = f"{provider.name} wants an API key and none is set"
    else:
        reason = f"{provider.name} refused the API key in {setting}"
    return KeyRefused(reason, hint=f"Set {setting} to a key that may use this model.", upstream_status=status)


def unreachable(provider: Provider, why: str) -> ModelUnreachable:
    """The error when there is no answer."""
    return ModelUnreachable(
        f"{provider.name} cannot be reached: {why}",
        hint=f"Check that {urlsplit(provider.base_url).hostname} answers from the machine that Ship runs on.",
    )


def stream_cut(provider: Provider, why: str) -> StreamCut:
    """The error for a stream that broke off."""
    return StreamCut(
        f"Connection lost: {provider.name} {why}",
        hint="The same request may work; if it happens again and again, look at the provider's status.",
        upstream_status=200,
    )
