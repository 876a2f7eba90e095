"""``ship demo``: from nothing to a fixed bug on this machine, each phase with the time it took."""

import asyncio
import contextlib
import os
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
from ship.cli.transcript import files_changed
from ship.cli.working import Order, start
from ship.testing import sample_repository

START_TIMEOUT_S = 600.0
"""The first start downloads the agent and builds the sandbox template."""
STOP_TIMEOUT_S = 20.0
POLL_S = 0.05
SCRIPTED_MODEL = "scripted/demo"


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
        self._step(f'ship run . "{sample_repository.PROMPT}"')
        async with address.client() as client:
            order = Order(
                str(self._repository),
                sample_repository.PROMPT,
                model=self._model,
                title="Fix the failing test",
            )
            with phases.measure("session created"):
                session = await start(client, order, order.prompt, quiet=True)
            with phases.measure("agent"):
                ended = await follow(client, session.id, task_id=session.tasks[0].id, as_json=self._as_json)
            if ended is Exit.DETACHED:
                return ended
            change = await client.diff(session.id)
            files = (await client.session(session.id)).checkpoint
        self._step("ship diff")
        self._console.print(Text(terminal.clean(change.decode(errors="replace")), "dim"))
        if files:
            self._console.print(files_changed(files.files))
        self._step("ship apply")
        with phases.measure("diff applied"):
            checkout.Checkout.at(self._repository).apply(change)
        after = await asyncio.to_thread(self._test)
        self._verdict("Its tests after", after)
        green = before.returncode != 0 and after.returncode == 0 and ended is Exit.OK
        self._sum_up(session.id, green)
        if keep:
            await self._keep(link)
        return Exit.OK if green else Exit.FAILED

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
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _show_log(self, shown: int) -> int:
        """What the server says while it starts: the template's progress takes a minute the first time."""
        lines = self._log.read_text(errors="replace").splitlines()
        for line in lines[shown:]:
            if not line.startswith(("{", "Ship is up", "http")):
                self._console.print(Text(f"  {terminal.one_line(line, 140)}", "dim"))
        return len(lines)

    def _not_started(self, reason: str) -> errors.ConfigurationError:
        lines = self._log.read_text(errors="replace").splitlines()
        last = " ".join(line.strip() for line in lines[-3:])
        return errors.ConfigurationError(
            f"the server did not start, {reason}: {terminal.clean(last)[:500]}",
            code="server_failed",
            hint="`ship doctor` checks this machine.",
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
