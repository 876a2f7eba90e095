"""``ship sandbox shell``: this terminal becomes one of the sandbox's."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator

from ship.cli import terminal
from ship.cli.exits import Exit
from ship.cli.sandbox_host import sandbox_id
from ship.errors import InvalidInput, NotFound
from ship.sandboxes.e2b_console import E2BConsole, Terminal

LEAVE = 0x1D
"""Ctrl-]"""
LEAVE_PRESSES = 3
LEAVE_WITHIN_S = 1.0
MAX_WAITING_BYTES = 1 << 20
"""Keys that wait to be sent; a longer paste waits in the terminal."""
MAX_SENT_BYTES = 1 << 16
MAX_SCRIPT_BYTES = 100_000
"""The kernel bounds one argument of a command to 128 KiB."""
GRACE_S = 2.0


def run(console: E2BConsole, prefix: str) -> int:
    """The shell's own exit code, or 130 when it was left."""
    if sys.stdin.isatty():
        return asyncio.run(_shell(console, prefix))
    return asyncio.run(_script(console, prefix, sys.stdin.read(MAX_SCRIPT_BYTES + 1)))


async def _script(console: E2BConsole, prefix: str, script: str) -> int:
    if len(script.encode()) > MAX_SCRIPT_BYTES:
        raise InvalidInput(
            f"the script is longer than {MAX_SCRIPT_BYTES} bytes",
            code="script_too_long",
            hint="Write it to a file of the sandbox, and run that.",
        )

    def complain(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    name = await sandbox_id(console, prefix)
    return await console.run(name, script, lambda text: terminal.print_bytes(text.encode()), complain)


async def _shell(console: E2BConsole, prefix: str) -> int:
    name = await sandbox_id(console, prefix)
    env = {key: os.environ[key] for key in ("TERM", "COLORTERM") if os.environ.get(key)}
    # What is typed ahead must not be kept for whole lines: a terminal that keeps some when that ends may not tell of it.
    with _keys(tty.setcbreak):
        async with console.terminal(name, _window(), _show, env) as shell:
            with _keys(tty.setraw):
                code = await _attend(shell)
    if code is None:
        terminal.messages().print(f"left the shell in {name}")
        return Exit.DETACHED
    return code


async def _attend(shell: Terminal) -> int | None:
    """Carries keys and window sizes to the shell until it ends; None when the person left it."""
    loop = asyncio.get_running_loop()
    keyboard = Keyboard(sys.stdin.fileno())
    resized = asyncio.Event()
    loop.add_signal_handler(signal.SIGWINCH, resized.set)
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, keyboard.left.set)
    ended = asyncio.create_task(shell.exit_code())
    left = asyncio.create_task(keyboard.left.wait())
    carriers = [asyncio.create_task(_type(keyboard, shell)), asyncio.create_task(_resize(resized, shell))]
    try:
        await asyncio.wait([ended, left, *carriers], return_when=asyncio.FIRST_COMPLETED)
        if not left.done() and not ended.done():
            # A key that comes too late for a shell that has just ended is refused: its exit code is about to come.
            await asyncio.wait([ended], timeout=GRACE_S)
        if ended.done():
            return ended.result()
        for carrier in carriers:
            if carrier.done():
                carrier.result()
        return None
    finally:
        keyboard.close()
        loop.remove_signal_handler(signal.SIGWINCH)
        for task in (ended, left, *carriers):
            task.cancel()
        await asyncio.gather(ended, left, *carriers, return_exceptions=True)


async def _type(keyboard: "Keyboard", shell: Terminal) -> None:
    while True:
        await shell.type(await keyboard.read())


async def _resize(resized: asyncio.Event, shell: Terminal) -> None:
    while True:
        await resized.wait()
        resized.clear()
        with contextlib.suppress(NotFound):
            await shell.resize(*_window())


class Keyboard:
    """What is typed at a terminal in raw mode, until it is sent. ``left`` is set when the person wants out."""

    def __init__(self, descriptor: int) -> None:
        self.left = asyncio.Event()
        self._descriptor = descriptor
        self._waiting = bytearray()
        self._typed = asyncio.Event()
        self._presses: deque[float] = deque(maxlen=LEAVE_PRESSES)
        self._listen()

    async def read(self) -> bytes:
        """The next keys, as many as go at once."""
        await self._typed.wait()
        keys = bytes(self._waiting[:MAX_SENT_BYTES])
        del self._waiting[:MAX_SENT_BYTES]
        if not self._waiting:
            self._typed.clear()
            self._listen()
        return keys

    def close(self) -> None:
        """Listen no more."""
        asyncio.get_running_loop().remove_reader(self._descriptor)

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._descriptor, self._pressed)

    def _pressed(self) -> None:
        try:
            keys = os.read(self._descriptor, MAX_SENT_BYTES)
        except OSError:  # the terminal is gone
            keys = b""
        if not keys or self._wants_out(keys):
            self.close()
            self.left.set()
            return
        self._waiting += keys
        self._typed.set()
        if len(self._waiting) >= MAX_WAITING_BYTES:
            self.close()

    def _wants_out(self, keys: bytes) -> bool:
        now = time.monotonic()
        for key in keys:
            if key == LEAVE:
                self._presses.append(now)
            else:
                self._presses.clear()
        return len(self._presses) == LEAVE_PRESSES and now - self._presses[0] <= LEAVE_WITHIN_S


def _window() -> tuple[int, int]:
    """(columns, rows); the variables that the shell may have set for itself are not believed."""
    try:
        size = os.get_terminal_size(sys.stdin.fileno())
    except OSError:
        size = shutil.get_terminal_size()
    return size.columns or 80, size.lines or 24


def _show(output: bytes) -> None:
    while output:
        output = output[os.write(sys.stdout.fileno(), output) :]


@contextlib.contextmanager
def _keys(mode: Callable[[int, int], object]) -> Iterator[None]:
    """Keys come one by one and are not echoed: by ``setcbreak`` Ctrl-C still ends us, by ``setraw`` it goes through like all
    others. Afterwards the terminal is as it was."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    mode(descriptor, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
