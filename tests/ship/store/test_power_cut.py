"""A power cut under SQLite: every write and every fsync of a real process is recorded, then only what was synced is kept."""

import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

WRITER = """
import asyncio, os, sys
from pathlib import Path
from ship.ports.store import Append, NewEvent
from ship.store.sqlite import SqliteStore

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
    r"^\d+ +(?P<name>\w+)\((?P<first>\d+)(?:<(?P<path>.*?)>)?(?:, (?P<rest>.*))?\) += (?P<result>-?\d+)"
)
UNLINK = re.compile(r"^\d+ +unlink\((?P<path>.*)\) += 0")
UNFINISHED = re.compile(r"^(?P<pid>\d+) +(?P<begin>.*) <unfinished \.\.\.>$")
RESUMED = re.compile(r"^(?P<pid>\d+) +<\.\.\. \w+ resumed>(?P<end>.*)$")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace records the system calls")
def test_what_was_acknowledged_survives_a_power_cut(tmp_path: Path) -> None:
    calls = list(recorded(tmp_path))
    disk = Disk(tmp_path)
    acknowledged: dict[str, int] = {}
    cuts = 0
    for name, path, rest, result in calls:
        if name == "write" and (kept := re.findall(r"kept (s\d) (\d+)", rest)):
            acknowledged |= {session: int(head) for session, head in kept}
            cuts += 1
            if cuts % 5 == 0:
                assert_all_there(disk.after_a_power_cut(tmp_path / f"cut-{cuts}"), acknowledged)
        else:
            disk.apply(name, path, rest, result)
    assert acknowledged == {f"s{number}": 25 for number in range(4)}
    assert cuts >= 25
    assert disk.syncs >= 20


def recorded(folder: Path) -> Iterator[tuple[str, str, str, int]]:
    """(call, path, the other arguments, result) in the order of their ends."""
    trace = folder / "trace"
    watched = "write,pwrite64,fsync,fdatasync,ftruncate,unlink"
    command = ["strace", "-f", "-qq", "-y", "-xx", "-s", "100000", "-e", f"trace={watched}", "-o", str(trace)]
    writer = [sys.executable, "-c", WRITER, str(folder / "ship.db")]
    subprocess.run([*command, *writer], check=True, stdout=subprocess.DEVNULL, timeout=100)
    begun: dict[str, str] = {}
    for line in trace.read_text().splitlines():
        if unfinished := UNFINISHED.match(line):
            begun[unfinished["pid"]] = line.removesuffix(" <unfinished ...>")
            continue
        if resumed := RESUMED.match(line):
            line = begun.pop(resumed["pid"]) + resumed["end"]
        if unlink := UNLINK.match(line):
            yield "unlink", text(unlink["path"]).decode(), "", 0
        if call := CALL.match(line):
            path = text(call["path"] or "").decode()
            rest = call["rest"] or ""
            yield (
                call["name"],
                path,
                text(rest).decode(errors="replace") if call["first"] == "1" else rest,
                int(call["result"]),
            )


class Disk:
    """The files as a disk has them that lost power: a write is there once its file was synced, and not before. A file is
    gone once it was unlinked and its folder synced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: dict[str, bytearray] = {}
        self._synced: dict[str, bytes] = {}
        self._unlinked: set[str] = set()
        self.syncs = 0

    def apply(self, name: str, path: str, rest: str, result: int) -> None:
        if path == str(self._folder):
            for gone in self._unlinked:
                self._written.pop(gone, None)
                self._synced.pop(gone, None)
            self._unlinked.clear()
        if not path.startswith(str(self._folder / "ship.db")) or path.endswith("-shm"):
            return
        if name == "unlink":
            self._unlinked.add(path)
            return
        content = self._written.setdefault(path, bytearray())
        if name == "pwrite64":
            data, _, numbers = rest.rpartition('", ')
            written = text(data)[:result]
            offset = int(numbers.split(", ")[1])
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + result] = written
        elif name == "ftruncate":
            size = int(rest)
            content.extend(bytes(max(0, size - len(content))))
            del content[size:]
        elif name in ("fsync", "fdatasync"):
            self._synced[path] = bytes(content)
            self.syncs += 1

    def after_a_power_cut(self, folder: Path) -> Path:
        folder.mkdir()
        for path, content in self._synced.items():
            (folder / Path(path).name).write_bytes(content)
        return folder / "ship.db"


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
