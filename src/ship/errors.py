"""Every error that Ship raises on purpose.

    ShipError                       carries ``code`` (stable), ``status`` (HTTP), ``hint`` (what to do)
    ├── InvalidInput                400  the caller sent something that we refuse
    ├── Unauthenticated             401
    ├── Forbidden                   403
    ├── NotFound                    404
    ├── Conflict                    409  true of the input, but not in this state
    │   └── StaleGeneration         409  said by a sandbox that has been replaced
    ├── TooLarge                    413
    ├── Unavailable                 503  a part that we need does not answer
    │   └── SandboxFailed           503
    └── ConfigurationError          500  the operator's settings are wrong

A command that failed in the sandbox is a result, not an error; a sandbox that failed is an error.
"""


class ShipError(Exception):
    """An error with a stable code, an HTTP status and a hint that says what to do about it."""

    status = 500
    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.hint = hint


class InvalidInput(ShipError):
    """The caller sent something that cannot be accepted."""

    status = 400
    code = "invalid_input"


class Unauthenticated(ShipError):
    """No credential, or one that we do not know."""

    status = 401
    code = "unauthenticated"


class Forbidden(ShipError):
    """A known credential that may not do this."""

    status = 403
    code = "forbidden"


class NotFound(ShipError):
    """Nothing of that name that the caller may see."""

    status = 404
    code = "not_found"


class Conflict(ShipError):
    """The request is well-formed but does not fit the present state."""

    status = 409
    code = "conflict"


class StaleGeneration(Conflict):
    """A runner of a sandbox that has been replaced tried to speak."""

    code = "stale_generation"


class TooLarge(ShipError):
    """A body, prompt or file over its limit."""

    status = 413
    code = "too_large"


class Unavailable(ShipError):
    """A part that Ship needs does not answer; the same call may work later."""

    status = 503
    code = "unavailable"


class SandboxFailed(Unavailable):
    """The sandbox host could not do what was asked."""

    code = "sandbox_failed"


class ConfigurationError(ShipError):
    """The operator's settings are wrong; nothing was started."""

    code = "configuration_error"
