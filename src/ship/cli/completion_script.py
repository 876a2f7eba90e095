"""The script that teaches a shell to complete ``ship``."""

from typer._completion_shared import get_completion_script

from ship.errors import InvalidInput

SHELLS = ("bash", "zsh", "fish")


def of(shell: str) -> str:
    """The script of one shell. Raises InvalidInput ``shell_unknown``."""
    if shell not in SHELLS:
        raise InvalidInput(
            f"no completion for {shell}", code="shell_unknown", hint=f"There is one for {', '.join(SHELLS)}."
        )
    return get_completion_script(prog_name="ship", complete_var="_SHIP_COMPLETE", shell=shell)
