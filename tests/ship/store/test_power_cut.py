"""A power cut under SQLite: every write and every fsync of a real process is recorded, then what was synced is kept, and of the
rest, by chance, this and that."""

import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

WRITER = """
import asyncio, os, sys
from pathlib import Path
from ship.ports.store import Append, NewEvent
from ship.store.sqlite import SqliteStore, database

database.CHECKPOINT_COMMITS, database.CHECKPOINT_FRAMES = 5, 1

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.open()
    async def one(session):
        for head in range(25):
            await store.append(Append(session, head, 1, [NewEvent("a", os.urandom(2_000))]))
            os.write(1, f"kept {session} {head + 1}\\n".encode())
    await asyncio.gather(*(one(f"s{n}") for n in range(4)))
    os._exit(0)

asyncio.run(main())
"""
CALL = re.compile(
    r"^(?P<pid>\d+) +(?P<name>\w+)\((?P<first>\d+)(?:<(?P<path>.*?)>)?(?:, (?P<rest>.*))?\) += (?P<result>-?\d+)"
)
UNLINK = re.compile(r"^\d+ +unlink\((?P<path>.*)\) += 0")
UNFINISHED = re.compile(r"^(?P<pid>\d+) +(?P<begin>.*) <unfinished \.\.\.>$")
RESUMED = re.compile(r"^(?P<pid>\d+) +<\.\.\. \w+ resumed>(?P<end>.*)$")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace records the system calls")
def test_what_was_acknowledged_survives_a_power_cut(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    acknowledged: dict[str, int] = {}
    answers = cuts = 0
    for call in recorded(tmp_path):
        kept = re.findall(r"kept (s\d) (\d+)", call.rest) if call.name == "write" else []
        acknowledged |= {session: int(head) for session, head in kept}
        answers += len(kept)
        disk.apply(call)
        # In the middle of bringing the log home and of beginning it anew, and now and then in between.
        if acknowledged and (disk.is_bringing_home(call) or (kept and answers % 5 == 0)):
            cuts += 1
            for chance in (None, random.Random(cuts)):
                assert_all_there(disk.after_a_power_cut(tmp_path / f"cut-{cuts}", chance), acknowledged)
    assert acknowledged == {f"s{number}": 25 for number in range(4)}
    assert cuts >= 100
    assert disk.begun_anew >= 2


Change = tuple[int, bytes | None]
"""Bytes that were written at an offset, or None: the file ends there now."""


class Call(NamedTuple):
    """A system call that ended, or an fsync that ``begins``."""

    name: str
    pid: str
    path: str
    rest: str
    result: int
    begins: bool = False


def recorded(folder: Path) -> Iterator[Call]:
    """What a writer did, in the order of their ends."""
    trace = folder / "trace"
    watched = "write,pwrite64,fsync,fdatasync,ftruncate,unlink"
    command = ["strace", "-f", "-qq", "-y", "-xx", "-s", "100000", "-e", f"trace={watched}", "-o", str(trace)]
    writer = [sys.executable, "-c", WRITER, str(folder / "ship.db")]
    subprocess.run([*command, *writer], check=True, stdout=subprocess.DEVNULL, timeout=100)
    begun: dict[str, str] = {}
    for line in trace.read_text().splitlines():
        if unfinished := UNFINISHED.match(line):
            begun[unfinished["pid"]] = line.removesuffix(" <unfinished ...>")
            if sync := CALL.match(f"{begun[unfinished['pid']]}) = 0"):
                yield _call(sync)._replace(begins=True)
            continue
        if resumed := RESUMED.match(line):
            line = begun.pop(resumed["pid"]) + resumed["end"]
        if unlink := UNLINK.match(line):
            yield Call("unlink", "", text(unlink["path"]).decode(), "", 0)
        if call := CALL.match(line):
            yield _call(call)


def _call(found: re.Match[str]) -> Call:
    rest = found["rest"] or ""
    return Call(
        found["name"],
        found["pid"],
        text(found["path"] or "").decode(),
        text(rest).decode(errors="replace") if found["first"] == "1" else rest,
        int(found["result"]),
    )


class Disk:
    """The files as a disk has them that lost power: a write is there for sure once an fsync that began after it has ended. A file is
    gone once it was unlinked and its folder synced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._database = str(folder / "ship.db")
        self._changes: dict[str, list[Change]] = {}
        self._syncing: dict[str, int] = {}
        """How many changes of its file each process's sync found."""
        self._synced: dict[str, bytearray] = {}
        self._done: dict[str, int] = {}
        """How many changes are in what was synced. Two syncs of a file may overlap: the one that began first may end last."""
        self._unlinked: set[str] = set()
        self._fresh = 0
        self.begun_anew = 0
        """How often the log was written again from its start."""

    def apply(self, call: Call) -> None:
        path = call.path
        if path == str(self._folder):
            for gone in self._unlinked:
                for known in (self._changes, self._synced, self._done):
                    known.pop(gone, None)
            self._unlinked.clear()
        if not path.startswith(self._database) or path.endswith("-shm"):
            return
        if call.name == "unlink":
            self._unlinked.add(path)
            return
        changes = self._changes.setdefault(path, [])
        if call.name == "pwrite64":
            data, _, numbers = call.rest.rpartition('", ')
            changes.append((int(numbers.split(", ")[1]), text(data)[: call.result]))
        elif call.name == "ftruncate":
            changes.append((int(call.rest), None))
        elif call.begins:
            self._syncing[call.pid] = len(changes)
        elif call.name in ("fsync", "fdatasync"):
            found, done = self._syncing.pop(call.pid, len(changes)), self._done.get(path, 0)
            content = self._synced.setdefault(path, bytearray())
            for change in changes[done:found]:
                _apply(content, change)
            self._done[path] = max(done, found)

    def is_bringing_home(self, call: Call) -> bool:
        """Whether this was a step of a checkpoint, or of the log's first commits after one."""
        if call.path == self._database:
            return True
        if call.path == f"{self._database}-wal" and call.name == "pwrite64":
            if call.rest.endswith(", 0"):
                self.begun_anew += 1
                self._fresh = 8
            self._fresh -= 1
            return self._fresh > 0
        return False

    def after_a_power_cut(self, folder: Path, chance: random.Random | None) -> Path:
        """The database as it is found; with ``chance``, with some of the writes that nothing has promised."""
        folder.mkdir()
        for path, synced in self._synced.items():
            content = bytearray(synced)
            for change in self._changes[path][self._done[path] :]:
                if chance and chance.randrange(2):
                    _apply(content, change)
            (folder / Path(path).name).write_bytes(content)
        return folder / "ship.db"


def _apply(content: bytearray, change: Change) -> None:
    place, piece = change
    content.extend(bytes(max(0, place - len(content))))
    if piece is None:
        del content[place:]
    else:
        content[place : place + len(piece)] = piece


def text(dumped: str) -> bytes:
    """What strace has shown as hexadecimal."""
    return bytes.fromhex("".join(re.findall(r"\\x([0-9a-f]{2})", dumped)))


def assert_all_there(database: Path, acknowledged: dict[str, int]) -> None:
    connection = sqlite3.connect(database)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    rows = dict(connection.execute("SELECT session_id, max(seq) FROM events GROUP BY session_id"))
    gapless = dict(connection.execute("SELECT session_id, count(*) FROM events GROUP BY session_id"))
    connection.close()
    assert rows == gapless
    missing = {session: head for session, head in acknowledged.items() if rows.get(session, 0) < head}
    assert not missing
    shutil.rmtree(database.parent)
