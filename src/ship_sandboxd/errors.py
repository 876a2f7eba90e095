"""Every error of the sandbox host.

HostError                 code, message
├── SetupError            the machine or the options do not allow a start; exit_status
└── ApiError              a request that failed; status
    ├── BadRequest        400
    ├── Unauthorized      401
    ├── NotFound          404
    ├── Conflict          409
    ├── WrongContentType  415
    ├── QuotaExceeded     429, more than a tenant may have
    ├── Unsupported       501, part of E2B's protocol that this host does not offer
    ├── LaunchFailed      500, a sandbox that did not come up
    ├── DiskFull          507, no room for what was asked for
    ├── FreezeFailed      500, a sandbox that did not stand still
    └── CheckpointFailed  500, a sandbox's memory that was not written out
"""

import errno
import os


class HostError(Exception):
    """What went wrong and what to do about it; `code` is stable."""

    code = "sandbox_host_error"

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code or self.code


class SetupError(HostError):
    """The host cannot start. Exit status 3 says that the machine lacks something, 2 that the options are wrong."""

    def __init__(self, message: str, code: str, exit_status: int = 3) -> None:
        super().__init__(message, code)
        self.exit_status = exit_status


class ApiError(HostError):
    """Answered as E2B's `{"code": status, "message": ...}`."""

    status = 500


class BadRequest(ApiError):
    """The request makes no sense."""

    status = 400
    code = "bad_request"


class Unauthorized(ApiError):
    """The API key is missing or wrong."""

    status = 401
    code = "unauthorized"


class NotFound(ApiError):
    """No such sandbox, template or path."""

    status = 404
    code = "not_found"


class Conflict(ApiError):
    """An idempotency key that was used for another request."""

    status = 409
    code = "idempotency_request_mismatch"


class WrongContentType(ApiError):
    """A body that does not claim to be JSON."""

    status = 415
    code = "unsupported_media_type"


class QuotaExceeded(ApiError):
    """A tenant has as much as the operator lets it have; asking again does not help."""

    status = 429
    code = "quota_exceeded"


class CheckpointFailed(ApiError):
    """A sandbox's memory could not be written out."""

    status = 500
    code = "checkpoint_failed"


class Unsupported(ApiError):
    """Part of E2B's protocol that this host does not offer."""

    status = 501
    code = "unsupported"


class LaunchFailed(ApiError):
    """The sandbox did not come up; the message carries what bubblewrap or the daemon said last."""

    status = 500
    code = "sandbox_create_failed"


class DiskFull(ApiError):
    """The machine's disk has no room for what was asked for; nothing of it is left half-made."""

    status = 507
    code = "disk_full"


class FreezeFailed(ApiError):
    """The sandbox's processes did not stand still, or this machine cannot halt them."""

    status = 500
    code = "sandbox_freeze_failed"


def is_full(error: BaseException) -> bool:
    """Whether a call failed for want of room on a disk."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def program_failed(what: str, output: str) -> OSError:
    """The error of a program that failed: that of a full disk where its output says so, in the words of the locale C."""
    number = errno.ENOSPC if os.strerror(errno.ENOSPC) in output else errno.EIO
    return OSError(number, f"{what}: {output.strip()}")


def disk_full(error: OSError) -> DiskFull | None:
    """What a caller is told of a call that failed for want of room on a disk; None of one that failed for something else."""
    return DiskFull("the sandbox host's disk is full: make room on it") if is_full(error) else None
