"""The command line. ``ship --help`` lists what it does, ``docs/cli.md`` says the rest.

Each command is declared in ``commands`` and does its work in a module that is imported only when the command runs, so that
help and completion answer at once.
"""

import contextlib
import os
import sys
from typing import NoReturn

from ship.errors import ShipError


def main() -> None:
    """The entry point of ``ship``."""
    code = run(sys.argv[1:])
    if "pyqwest" in sys.modules:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """Ends the process without taking the interpreter down first.

    The threads of the E2B SDK's transport may still let go of Python objects then, which aborts the process now and again.
    """
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Runs one command line and answers its exit code; errors become one line that says what to do."""
    from ship.cli import commands, exits

    try:
        commands.app(args=arguments, prog_name="ship")
    except (SystemExit, BrokenPipeError) as finished:
        if isinstance(finished, SystemExit) and not isinstance(finished.__context__, BrokenPipeError):
            return finished.code if isinstance(finished.code, int) else exits.Exit.OK
        # Whoever read our output has seen enough (`ship ls | head`); the interpreter must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.Exit.OK
    except ShipError as error:
        from ship.cli import terminal

        terminal.report(error, as_json="--json" in arguments)
        return exits.of(error)
    except Exception as error:
        if os.environ.get("SHIP_DEBUG"):
            raise
        from ship.cli import terminal

        terminal.report(exits.unexpected(error), as_json="--json" in arguments)
        return exits.Exit.UNEXPECTED
    return exits.Exit.OK
