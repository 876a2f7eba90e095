"""What the exit codes of ``ship`` mean."""

from enum import IntEnum

from ship import errors


class Exit(IntEnum):
    """The exit codes; ``docs/cli.md`` lists them."""

    OK = 0
    FAILED = 1
    """The task failed or was cancelled, or the diff does not apply."""
    USAGE = 2
    """The command line or what it names is not valid."""
    MACHINE = 3
    """This machine or the settings lack something."""
    SERVER = 4
    """No server answers, or it does not know the token."""
    REFUSED = 5
    """The server refused: no such session, or not in this state."""
    UNEXPECTED = 70
    """An error in Ship itself."""
    DETACHED = 130
    """Ctrl-C: the command ended, the task goes on."""


def of(error: errors.ShipError) -> Exit:
    """The exit code of an error."""
    match error:
        case errors.InvalidInput():
            return Exit.USAGE
        case errors.ConfigurationError():
            return Exit.MACHINE
        case errors.Unauthenticated() | errors.Unavailable():
            return Exit.SERVER
        case errors.NotFound() | errors.Forbidden() | errors.Conflict() | errors.TooLarge():
            return Exit.REFUSED
        case _:
            return Exit.UNEXPECTED


def unexpected(error: Exception) -> errors.ShipError:
    """An error that nobody foresaw, in the shape of those that we did."""
    return errors.ShipError(
        f"{type(error).__name__}: {error}",
        code="unexpected",
        hint="Run it again with SHIP_DEBUG=1 to see where it comes from.",
    )
