"""What OpenCode remembers: its database and the long outputs of its tools, as one archive, and back again.

Found by experiment with OpenCode 1.18: with ``opencode.db`` in its data folder before it starts, a conversation goes on under the
same id, plans and the conversations of its subagents included; a call that was running is shown to the model as interrupted.
The archive is a tar, compressed with gzip, and the same bytes for the same content:

    memory.json      {"format": 1, "conversation": id}
    opencode.db      without its log of events, which is large and serves only those who listen meanwhile
    tool-output/…    what a tool printed where it was too long for the conversation
"""

import contextlib
import gzip
import io
import json
import shutil
import sqlite3
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ship_runner.failures import RunnerFailure

DATABASE = "opencode.db"
DATABASE_BYTES = 1 << 30
OUTPUTS_BYTES = 32 << 20
_OUTPUTS = "tool-output"
_CARD = "memory.json"
_FORMAT = 1


def data_folder(environment: Mapping[str, str], home: Path) -> Path:
    """Where OpenCode keeps its data."""
    shared = environment.get("XDG_DATA_HOME")
    return (Path(shared) if shared else home / ".local" / "share") / "opencode"


def save(data: Path, conversation: str, target: Path) -> None:
    """Write the archive, consistent also while OpenCode writes. Raises RunnerFailure ``memory_not_kept``."""
    copy = target.with_suffix(".db")
    try:
        _copy_database(data / DATABASE, copy)
        if copy.stat().st_size > DATABASE_BYTES:
            raise RunnerFailure(
                "memory_not_kept", f"The agent's database has {copy.stat().st_size >> 20} MiB."
            )
        with (
            target.open("wb") as file,
            gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            card = json.dumps({"format": _FORMAT, "conversation": conversation}).encode()
            _add(archive, _CARD, len(card), io.BytesIO(card))
            with copy.open("rb") as database:
                _add(archive, DATABASE, copy.stat().st_size, database)
            for path in _outputs(data / _OUTPUTS):
                content = path.read_bytes()
                _add(archive, f"{_OUTPUTS}/{path.name}", len(content), io.BytesIO(content))
    except (OSError, sqlite3.Error) as error:
        raise RunnerFailure("memory_not_kept", f"The agent's memory cannot be read: {error}") from error
    finally:
        copy.unlink(missing_ok=True)


def _copy_database(source: Path, copy: Path) -> None:
    """By SQLite's own means: a transaction that is going on is in it as a whole or not at all."""
    copy.unlink(missing_ok=True)
    if not source.exists():
        raise FileNotFoundError(f"there is no {source.name}")
    with (
        contextlib.closing(sqlite3.connect(source, timeout=10)) as database,
        contextlib.closing(sqlite3.connect(copy)) as kept,
    ):
        database.backup(kept)
        kept.execute("PRAGMA journal_mode = DELETE")
        with contextlib.suppress(sqlite3.OperationalError):  # another version may have no such table
            kept.execute("DELETE FROM event")
        kept.commit()
        kept.execute("VACUUM")


def _outputs(folder: Path) -> list[Path]:
    """The newest of them that there is room for, by name."""
    if not folder.is_dir():
        return []
    kept, room = [], OUTPUTS_BYTES
    for path in sorted(folder.iterdir(), key=lambda path: path.lstat().st_mtime_ns, reverse=True):
        room -= path.lstat().st_size
        if room < 0:
            break
        if path.is_file() and not path.is_symlink():
            kept.append(path)
    return sorted(kept)


def _add(archive: tarfile.TarFile, name: str, size: int, content: io.BufferedIOBase) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    archive.addfile(entry, content)


def restore(archive: Path, data: Path) -> str:
    """Put a kept memory in the place of the one that is there; the conversation's id. OpenCode must not run.

    Raises: RunnerFailure ``memory_damaged``; nothing is left in place then.
    """
    fresh = data.with_name(f"{data.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700, parents=True)
    try:
        with tarfile.open(archive, "r:gz") as packed:
            for entry in packed:
                _unpack(packed, entry, fresh)
        card = json.loads((fresh / _CARD).read_text())
        if card["format"] != _FORMAT:
            raise ValueError(f"its format is {card['format']}")
        _check(fresh / DATABASE, card["conversation"])
        shutil.rmtree(data, ignore_errors=True)
        fresh.rename(data)
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        zlib.error,
        tarfile.TarError,
        sqlite3.Error,
    ) as error:
        raise RunnerFailure("memory_damaged", f"The agent's memory cannot be read: {error!r}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return str(card["conversation"])


def _unpack(packed: tarfile.TarFile, entry: tarfile.TarInfo, folder: Path) -> None:
    """One file, if it is one of ours: an archive comes out of a sandbox and may hold any name."""
    path = PurePosixPath(entry.name)
    ours = entry.name in {_CARD, DATABASE} or (
        len(path.parts) == 2 and path.parts[0] == _OUTPUTS and ".." not in path.parts
    )
    content = packed.extractfile(entry) if ours and entry.isreg() else None
    if content is None:
        return
    target = folder / path
    target.parent.mkdir(mode=0o700, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)


def _check(database: Path, conversation: str) -> None:
    """Raises: ValueError or sqlite3.Error when the database is damaged or does not know the conversation."""
    with contextlib.closing(sqlite3.connect(database)) as kept:
        (found,) = kept.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise ValueError(found)
        if not kept.execute("SELECT 1 FROM session WHERE id = ?", (conversation,)).fetchone():
            raise ValueError(f"it does not know {conversation}")
