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


def diff(address: Address, prefix: str, *, stat: bool, live: bool, as_json: bool) -> None:
    """``ship diff``"""

    async def get() -> tuple[str, bytes]:
        async with address.client() as client:
            session = await session_id(client, prefix)
            return session, await client.diff(session, live=live)

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
    letters = _letters(diff)
    command = ["git", "apply", "--numstat", "-z", "-"]
    counted = subprocess.run(command, input=diff, capture_output=True, check=False) if diff.strip() else None
    if counted is None:
        return ()
    if counted.returncode:
        reason = counted.stderr.decode(errors="replace").strip()
        raise errors.ShipError(f"git cannot read the session's diff: {reason}", code="diff_malformed")
    files = []
    for line in counted.stdout.decode(errors="replace").split("\0"):
        if line:
            added, deleted, path = line.split("\t", 2)
            files.append(
                ChangedFile(
                    path=path,
                    status=letters.get(path, "M"),
                    additions=_number(added),
                    deletions=_number(deleted),
                )
            )
    return tuple(files)


def _number(text: str) -> int:
    """Git writes ``-`` for binary files."""
    return 0 if text == "-" else int(text)


def _letters(diff: bytes) -> dict[str, str]:
    """Git's letter of each file that came or went."""
    letters: dict[str, str] = {}
    path = ""
    for line in diff.decode(errors="replace").splitlines():
        if line.startswith("diff --git "):
            path = line.rpartition(" b/")[2]
        elif line.startswith("new file mode"):
            letters[path] = "A"
        elif line.startswith("deleted file mode"):
            letters[path] = "D"
    return letters


def _print_colored(content: bytes) -> None:
    console = terminal.output()
    for line in content.decode(errors="replace").splitlines():
        console.print(Text(clean(line), _STYLES.get(line[:1], "")), soft_wrap=True)
