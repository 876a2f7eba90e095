"""One step of a build, done in a sandbox whose root is what the steps before it have made."""

import re
from collections.abc import Callable
from pathlib import Path
from posixpath import normpath

from ..errors import ApiError
from ..lifecycle import commands
from ..lifecycle.commands import CommandFailed
from ..lifecycle.sandbox import Sandbox
from .recipes import COPY, RUN, USER, USERS, WORKDIR, Stage, Step

_ARCHIVE = "/var/tmp/.copied.tar"  # noqa: S108 - a path of the sandbox, where nobody else is
_WORK = "/var/tmp/.copied"  # noqa: S108 - the same
_MODE = re.compile(r"[0-7]{3,4}")
_OWNER = re.compile(r"(?P<user>[^:]*)(:[^:]*)?")
_IDS = {"0": "root", "1000": "user"}
# What a pattern stands for is all that lies in the archive below its first part without a wildcard: the client has put
# there what it means, and nothing else.
_COPY_SCRIPT = r"""
set -euo pipefail
shopt -s dotglob nullglob
trap 'rm -rf -- "$COPY_WORK" "$COPY_ARCHIVE"' EXIT
rm -rf -- "$COPY_WORK"
mkdir -p -- "$COPY_WORK"
tar --extract --file="$COPY_ARCHIVE" --directory="$COPY_WORK" --preserve-permissions --no-same-owner
static=. pattern=
IFS=/ read -r -a parts <<<"$COPY_SOURCE"
for part in "${parts[@]}"; do
    case $part in *[*?[{!\|@+\(]*) pattern=yes; break ;; '' | .) ;; *) static=$static/$part ;; esac
done
from=$COPY_WORK/$static
if [ -n "$pattern" ]; then found=("$from"/*); else found=("$from"); fi
[ ${#found[@]} -gt 0 ] && { [ -e "${found[0]}" ] || [ -L "${found[0]}" ]; } || {
    echo "the archive holds nothing of '$COPY_SOURCE'" >&2
    exit 1
}
if [ -n "$COPY_MODE" ]; then
    find "${found[@]}" ! -type l ! -type d -exec chmod "$COPY_MODE" {} +
    find "${found[@]}" -depth -type d -exec chmod "$COPY_MODE" {} \; -exec chmod u+rwx {} \;
fi
if [ -z "$pattern" ] && [ -d "$from" ] && [ ! -L "$from" ]; then
    mkdir -p -- "$COPY_TARGET"
    cp --archive --no-target-directory -- "$from" "$COPY_TARGET"
elif [ ${#found[@]} -eq 1 ] && { [ ! -d "${found[0]}" ] || [ -L "${found[0]}" ]; } &&
    [ "${COPY_TARGET%/}" = "$COPY_TARGET" ] && [ ! -d "$COPY_TARGET" ]; then
    mkdir -p -- "$(dirname -- "$COPY_TARGET")"
    cp --archive --no-target-directory -- "${found[0]}" "$COPY_TARGET"
else
    mkdir -p -- "$COPY_TARGET"
    cp --archive --target-directory="$COPY_TARGET" -- "${found[@]}"
fi
"""


class StepFailed(ApiError):
    """A step that did not work; the message is what the client is told."""

    status = 400
    code = "build_step_failed"


def changes_files(step: Step) -> bool:
    return step.kind in (RUN, COPY, WORKDIR)


def check(step: Step, archive: Path | None) -> None:
    """What can be seen without a sandbox. Raises StepFailed."""
    if step.kind == USER:
        _require_user(step.arguments[0])
    if step.kind == COPY:
        if archive is None or not archive.is_file():
            raise StepFailed(f"the files of '{step.arguments[0]}' were not uploaded")
        owner, mode = (*step.arguments[2:], "", "")[:2]
        match = _OWNER.fullmatch(owner)
        if match is None or _IDS.get(match["user"], match["user"]) not in ("", *USERS):
            raise StepFailed(
                f"the owner {owner[:100]!r} is not possible: everything in a sandbox belongs to its one user, "
                "as 'user' and 'root' alike"
            )
        if mode and not _MODE.fullmatch(mode):
            raise StepFailed(f"the mode {mode[:20]!r} is not octal")


async def apply(
    sandbox: Sandbox, stage: Stage, step: Step, archive: Path | None, heard: Callable[[str, bytes], None]
) -> None:
    """Do it. Raises StepFailed."""
    if step.kind == RUN:
        user = step.arguments[1] if len(step.arguments) > 1 else stage.user
        await _run(sandbox, stage, step.arguments[0], user, {}, heard)
    elif step.kind == WORKDIR:
        await _run(
            sandbox,
            stage,
            'mkdir -p -- "$TARGET"',
            stage.user,
            {"TARGET": stage.absolute(step.arguments[0])},
            heard,
        )
    elif archive is not None:
        await _copy(sandbox, stage, step, archive, heard)


async def _copy(
    sandbox: Sandbox, stage: Stage, step: Step, archive: Path, heard: Callable[[str, bytes], None]
) -> None:
    try:
        await commands.send(sandbox, archive, _ARCHIVE)
    except CommandFailed as error:
        raise StepFailed(f"copying '{step.arguments[0]}' failed: {error}") from error
    target = stage.absolute(step.arguments[1])
    facts = {
        "COPY_SOURCE": normpath(step.arguments[0]),
        "COPY_TARGET": target + "/" if target.endswith("/.") else target,
        "COPY_MODE": (*step.arguments[3:], "")[0],
        "COPY_ARCHIVE": _ARCHIVE,
        "COPY_WORK": _WORK,
    }
    # Plainly as the one user, who owns all files: root is only played.
    await _run(sandbox, stage, _COPY_SCRIPT, "user", facts, heard, shown=str(step))


async def _run(
    sandbox: Sandbox,
    stage: Stage,
    command: str,
    user: str,
    env: dict[str, str],
    heard: Callable[[str, bytes], None],
    shown: str = "",
) -> None:
    shown = shown or command
    try:
        status = await commands.run(
            sandbox, command, user=user, workdir=stage.workdir, env=env, on_output=heard
        )
    except CommandFailed as error:
        raise StepFailed(f"failed to run command '{shown}': command failed: {error}") from error
    if status != 0:
        raise StepFailed(f"failed to run command '{shown}': {commands.outcome(sandbox, status)}")


def _require_user(user: str) -> None:
    if user not in USERS:
        raise StepFailed(
            f"failed to set the user: invalid username: '{user[:100]}'; there are {' and '.join(USERS)} only"
        )
