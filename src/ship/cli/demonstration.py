"""``ship demo``: from nothing to a fixed bug on this machine, each phase with the time it took."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ship import config, errors
from ship.app import tokens
from ship.app.down import down
from ship.cli import checkout, connection, terminal
from ship.cli.exits import Exit
from ship.cli.following import follow
from ship.cli.working import Order, start
from ship.client import Client
from ship.testing import sample_repository

START_TIMEOUT_S = 600.0
"""The first start downloads the agent and builds the sandbox template."""
STOP_TIMEOUT_S = 20.0
POLL_S = 0.05
SCRIPTED_MODEL = "scripted/demo"
_SHARED = ("SHIP_DATABASE", "SHIP_BUS", "SHIP_BLOBS")
_NOT_PROGRESS = re.compile(r"\d{4}-|\{|Ship is up|https?://|ship: |      ")
"""Lines of the server's log that are not about its start: records, the sign-in link, errors (told by themselves)."""


@dataclass
class Phases:
    """What was done, in order, with the milliseconds that each took."""

    took_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Measures the block."""
        began = time.monotonic()
        yield
        self.took_ms[name] = (time.monotonic() - began) * 1000


def run(data: Path | None, *, keep: bool, scripted: bool, as_json: bool) -> Exit:
    """``ship demo``; the exit code is 0 only when the agent made the failing test pass."""
    with tempfile.TemporaryDirectory(prefix="ship-demo-") as name:
        folder = Path(name)
        demo = _Demonstration(folder, data or folder / "data", scripted=scripted, as_json=as_json)
        try:
            return asyncio.run(demo.run(keep=keep))
        finally:
            demo.stop()


class _Demonstration:
    def __init__(self, folder: Path, data: Path, *, scripted: bool, as_json: bool) -> None:
        self._repository = folder / "timesheet"
        self._data = data.absolute()
        self._log = folder / "server.log"
        self._as_json = as_json
        self._console = terminal.messages() if as_json else terminal.output()
        self._environment, self._model = choose_model(os.environ, scripted=scripted)
        self._server: subprocess.Popen[bytes] | None = None
        # A folder that another server holds is left alone.
        self._started = False
        self._phases = Phases()

    async def run(self, *, keep: bool) -> Exit:
        phases = self._phases
        with phases.measure("sample repository"):
            sample_repository.create(self._repository)
        self._step(f"A sample repository with a failing test: {self._repository}")
        before = await asyncio.to_thread(self._test)
        self._verdict("Its tests before", before)
        self._step(f"The model: {self._model or self._default_model()}")
        with phases.measure("server start"):
            address = await self._serve()
        link = await asyncio.to_thread(tokens.login_link, self._data)
        self._console.print(
            Text.assemble("Ship is up. Watch in the browser: ", (link, "bold underline")), soft_wrap=True
        )
        async with address.client() as client:
            session_id, ended = await self._work(client)
            if ended is Exit.DETACHED:
                return ended
            change = await client.diff(session_id) if ended is Exit.OK else b""
        after = await asyncio.to_thread(self._take, change) if change else before
        green = before.returncode != 0 and after.returncode == 0
        self._sum_up(session_id, green)
        if keep:
            await self._keep(link)
        return Exit.OK if green else Exit.FAILED

    async def _work(self, client: Client) -> tuple[str, Exit]:
        """Lets the agent work on the sample repository; answers the session's id and how its task ended."""
        self._step(f'ship run . "{sample_repository.PROMPT}"')
        order = Order(
            str(self._repository), sample_repository.PROMPT, model=self._model, title="Fix the failing test"
        )
        with self._phases.measure("session created"):
            session = await start(client, order, order.prompt, quiet=True)
        with self._phases.measure("agent"):
            ended = await follow(client, session.id, task_id=session.tasks[0].id, as_json=self._as_json)
        return session.id, ended

    def _take(self, change: bytes) -> "subprocess.CompletedProcess[str]":
        """Shows the change, applies it and runs the tests again."""
        self._step("ship diff")
        self._console.print(Text(terminal.clean(change.decode(errors="replace")), "dim"))
        self._step("ship apply")
        with self._phases.measure("diff applied"):
            checkout.Checkout.at(self._repository).apply(change)
        after = self._test()
        self._verdict("Its tests after", after)
        return after

    async def _serve(self) -> connection.Address:
        """Starts ``ship up`` on a free port and waits until it takes sessions."""
        self._server = self._launch()
        deadline = time.monotonic() + START_TIMEOUT_S
        began = time.time()
        shown = 0
        while time.monotonic() < deadline:
            shown = self._show_log(shown)
            if self._server.poll() is not None:
                raise self._not_started(f"it ended with exit code {self._server.returncode}")
            file = self._data / "cli.json"
            if file.is_file() and file.stat().st_mtime >= began - 1:
                address = connection.recall(self._data)
                if address and await _answers(address):
                    self._started = True
                    return address
            await asyncio.sleep(POLL_S)
        raise self._not_started(f"it was not ready after {START_TIMEOUT_S:.0f} s")

    def _launch(self) -> "subprocess.Popen[bytes]":
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "ship.cli",
                    "up",
                    "--listen",
                    "127.0.0.1:0",
                    "--data",
                    str(self._data),
                ],
                # A demonstration is no node of somebody's cluster.
                env={k: v for k, v in os.environ.items() if k not in _SHARED} | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _show_log(self, shown: int) -> int:
        """What the server says while it starts: the template's progress takes a minute the first time."""
        lines = self._log.read_text(errors="replace").splitlines()
        for line in lines[shown:]:
            if not _NOT_PROGRESS.match(line):
                self._console.print(Text(f"  {terminal.one_line(line, 140)}", "dim"))
        return len(lines)

    def _not_started(self, reason: str) -> errors.ConfigurationError:
        """What the server said when it gave up, in its own words."""
        lines = [terminal.clean(line) for line in self._log.read_text(errors="replace").splitlines()]
        said = next((number for number, line in enumerate(lines) if line.startswith("ship: ")), None)
        if said is None:
            last = " ".join(lines[-3:])[:500]
            message, hint = f"the server did not start, {reason}: {last}", ""
        else:
            message, hint = (
                lines[said].removeprefix("ship: "),
                " ".join(line.strip() for line in lines[said + 1 :]),
            )
        return errors.ConfigurationError(
            message, code="server_failed", hint=hint or "`ship doctor` checks this machine."
        )

    def _default_model(self) -> str:
        settings = config.load(None, os.environ)
        return settings.models.default or f"the first of {settings.models.providers[0].name}"

    def _test(self) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            sample_repository.TEST_COMMAND,
            cwd=self._repository,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def _step(self, text: str) -> None:
        self._console.print(Text(f"\n▸ {text}", "bold"), soft_wrap=True)

    def _verdict(self, when: str, result: "subprocess.CompletedProcess[str]") -> None:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        color = "green" if result.returncode == 0 else "red"
        self._console.print(
            Text.assemble(f"{when}: ", (lines[-1] if lines else f"exit code {result.returncode}", color))
        )

    def _sum_up(self, session: str, green: bool) -> None:
        if self._as_json:
            terminal.print_json({"ok": green, "session_id": session, "took_ms": self._phases.took_ms})
            return
        table = Table.grid(padding=(0, 2))
        for name, took_ms in self._phases.took_ms.items():
            table.add_row(Text(f"  {name}", "dim"), terminal.duration(took_ms))
        self._console.print()
        self._console.print(table)
        verdict = (
            ("The agent fixed the bug: red before, green after.", "bold green")
            if green
            else ("The bug is still there.", "bold red")
        )
        self._console.print(Text(*verdict))

    async def _keep(self, link: str) -> None:
        self._console.print(
            Text(
                f"\nThe server stays up until Ctrl-C: {link}\nTry it: cd {self._repository} && ship ls --data {self._data}"
            ),
            soft_wrap=True,
        )
        stop = asyncio.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        await stop.wait()

    def stop(self) -> None:
        """Ends what this demonstration started: the server, its sandbox host and the sandboxes."""
        if self._server is None:
            return
        if self._started:
            down(self._data)
        elif self._server.poll() is None:
            self._server.terminate()
        self._server.wait(STOP_TIMEOUT_S)


def choose_model(environment: Mapping[str, str], *, scripted: bool) -> tuple[dict[str, str], str]:
    """The variables to add for the server, and the model to ask for; an empty model is the server's default.

    A real key wins over the scripted model unless ``scripted`` says otherwise.
    """
    real = any(environment.get(name) for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"))
    if real and not scripted:
        return {}, environment.get("SHIP_MODEL", "")
    return {"SHIP_SCRIPTED_MODEL": "true"}, SCRIPTED_MODEL


async def _answers(address: connection.Address) -> bool:
    async with address.client() as client:
        with contextlib.suppress(errors.Unavailable):
            return await client.ready()
    return False
