"""A PostgreSQL server of its own in a temporary folder, for tests and measurements: durable as in earnest, gone afterwards."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg

START_S = 30.0
USER = "ship"


class PostgresServer:
    """A server on a Unix socket in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """The Unix socket that it listens on."""
        return self.folder / ".s.PGSQL.5432"

    def url(self, database: str) -> str:
        """Where that database is, for the setting ``database``."""
        return f"postgresql://{USER}@/{database}?host={self.folder}"

    def create(self) -> None:
        """Make an empty cluster."""
        command = [
            *(*_as_user(), binary("initdb"), "--pgdata", str(self._data), "--username", USER),
            *("--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder)

    def start(self) -> None:
        """Start it. It ends with the thread that calls this, whatever happens to us."""
        command = [
            *(*_as_user(), binary("postgres"), "-D", str(self._data), "-k", str(self.folder)),
            *("-c", "listen_addresses=", "-c", "max_connections=200", "-c", "log_min_messages=fatal"),
        ]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)

    def wait(self) -> None:
        """Wait until it answers."""
        assert self._process is not None
        deadline = time.monotonic() + START_S
        asked = [binary("pg_isready"), "--quiet", "--host", str(self.folder)]
        while subprocess.run(asked, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start: {(self.folder / 'log').read_text()}")
            time.sleep(0.02)

    def stop(self, *, immediately: bool = False) -> None:
        """End it well, or ``immediately``: as a crash does, with nothing flushed that was not flushed before."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if immediately else signal.SIGINT)
            self._process.wait(START_S)
            self._process = None


def binary(name: str) -> str:
    """The path of one of PostgreSQL's programs: from PATH, or the newest of Debian's folders, which are not on it.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
    """
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    found = shutil.which(
        name, path=os.pathsep.join([*map(str, reversed(folders)), os.environ.get("PATH", "")])
    )
    if found is None:
        raise FileNotFoundError(
            f"no {name}: `make setup` and scripts/system-packages.sh --tests install PostgreSQL"
        )
    return found


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A running server for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="ship-postgres-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if os.geteuid() == 0:
            shutil.chown(folder, *_unprivileged())
        server = PostgresServer(folder)
        server.create()
        server.start()
        try:
            server.wait()
            yield server
        finally:
            server.stop()


@contextlib.asynccontextmanager
async def fresh_database(url: str) -> AsyncIterator[str]:
    """The URL of an empty place in the database of ``url``: a schema of its own, which is made in milliseconds, dropped afterwards."""
    name = f"ship_{secrets.token_hex(8)}"
    await _execute(url, f"CREATE SCHEMA {name}")
    try:
        yield f"{url}{'&' if '?' in url else '?'}search_path={name}"
    finally:
        await _execute(url, f"DROP SCHEMA IF EXISTS {name} CASCADE")


async def _execute(url: str, statement: str) -> None:
    """On a connection of its own: the server may be stopped and started in between."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _as_user() -> list[str]:
    """PostgreSQL refuses to run as root."""
    command = ["setpriv", "--pdeathsig", "INT"]
    if os.geteuid() == 0:
        user, group = _unprivileged()
        command += ["--reuid", str(user), "--regid", str(group), "--clear-groups"]
    return command


def _unprivileged() -> tuple[int, int]:
    try:
        found = pwd.getpwnam("postgres")
    except KeyError:
        found = pwd.getpwnam("nobody")
    return found.pw_uid, found.pw_gid
