"""Commands about what a session changed: ``diff`` and ``apply``."""

import asyncio
import subprocess
import sys
from pathlib import Path

from rich.text import Text

from ship import errors
from ship.cli import checkout, terminal
from ship.cli.connection import Address, session_id
from ship.cli.terminal import clean, count
from ship.cli.transcript import files_changed
from ship.model import ChangedFile

_STYLES = {"+": "green", "-": "red", "@": "cyan", "d": "bold", "i": "dim", "n": "dim"}


def diff(address: Address, prefix: str, *, stat: bool, live: bool, checkpoint_id: str, as_json: bool) -> None:
    """``ship diff``"""

    async def get() -> tuple[str, bytes]:
        async with address.client() as client:
            session = await session_id(client, prefix)
            return session, await client.diff(session, live=live, checkpoint_id=checkpoint_id)

    session, content = asyncio.run(get())
    if as_json:
        files = changed_files(content)
        terminal.print_json({"session_id": session, "files": files, "diff": content.decode(errors="replace")})
    elif stat:
        terminal.output().print(files_changed(changed_files(content)))
    elif sys.stdout.isatty():
        _print_colored(content)
    else:
        terminal.print_bytes(content)


def apply(address: Address, prefix: str, into: Path, *, check: bool, as_json: bool) -> None:
    """``ship apply``"""
    target = checkout.Checkout.at(into)
    wanted = prefix or checkout.last_session(target)

    async def get() -> tuple[str, bytes]:
        async with address.client() as client:
            session = await session_id(client, wanted)
            return session, await client.diff(session)

    session, content = asyncio.run(get())
    paths = target.apply(content, check=check)
    if as_json:
        terminal.print_json(
            {"session_id": session, "checkout": str(target.root), "applied": not check, "paths": paths}
        )
        return
    console = terminal.output()
    for path in paths:
        console.print(Text(f"  {clean(path)}"))
    if not paths:
        console.print(f"{session} changes nothing here")
    elif check:
        console.print(f"{session} applies to {target.root}: {count(len(paths), 'file')}", soft_wrap=True)
    else:
        console.print(
            f"Applied {session} to {target.root}: {count(len(paths), 'file')}, nothing staged", soft_wrap=True
        )


def changed_files(diff: bytes) -> tuple[ChangedFile, ...]:
    """The files of a diff, counted by git."""
    if not diff.strip():
        return ()
    # In a repository git leaves out what is not below the present folder.
    command = ["git", "apply", "--numstat", "-z", "-"]
    counted = subprocess.run(command, input=diff, capture_output=True, check=False, cwd="/")
    lines = counted.stdout.decode(errors="replace").split("\0")[:-1]
    letters = _letters(diff)
    if counted.returncode or len(lines) != len(letters):
        reason = counted.stderr.decode(errors="replace").strip() or "it is not one that git made"
        raise errors.ShipError(f"git cannot read the session's diff: {reason}", code="diff_malformed")
    return tuple(_changed_file(line, letter) for line, letter in zip(lines, letters, strict=True))


def _changed_file(line: str, letter: str) -> ChangedFile:
    added, deleted, path = line.split("\t", 2)
    return ChangedFile(path=path, status=letter, additions=_number(added), deletions=_number(deleted))


def _number(text: str) -> int:
    """Git writes ``-`` for binary files."""
    return 0 if text == "-" else int(text)


def _letters(diff: bytes) -> list[str]:
    """Git's letter of each file, in the order of the diff."""
    letters: list[str] = []
    # Lines of a file's content begin with a sign or a blank: none looks like these.
    for line in diff.split(b"\n"):
        if line.startswith(b"diff --git "):
            letters.append("M")
        elif not letters:
            continue
        elif line.startswith(b"new file mode "):
            letters[-1] = "A"
        elif line.startswith(b"deleted file mode "):
            letters[-1] = "D"
        elif line.startswith(b"rename to "):
            letters[-1] = "R"
    return letters


def _print_colored(content: bytes) -> None:
    console = terminal.output()
    for line in content.decode(errors="replace").splitlines():
        console.print(Text(clean(line), _STYLES.get(line[:1], "")), soft_wrap=True)
