"""``ship-runner``: keep a runner alive; ``diff``: print the diff of the workspace as it stands; ``mcp``: serve tools to the agent;
``stand-by``: start an agent that waits for a runner; ``wait``: be the runner that is started next."""

import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ship_runner import waiting
from ship_runner.keeper import keep
from ship_runner.lock import AlreadyRunning, hold_state
from ship_runner.settings import SettingMissing, Settings, state_folder

PATIENCE_S = 2.0
"""How long another runner may be there before it is believed to stay."""
USAGE = "usage: ship-runner [diff | mcp | stand-by | wait]"


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 when refused by the control plane or already running, 2 for wrong use."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    match list(arguments):
        case []:
            return _keep()
        case ["diff"]:
            return _diff()
        case ["mcp"]:
            return _serve_tools()
        case ["stand-by"]:
            return _stand_by()
        case ["wait"]:
            return _wait()
    print(USAGE, file=sys.stderr)  # noqa: T201 (a command line's answer)
    return 2


def _keep() -> int:
    try:
        settings = Settings.load(os.environ)
    except SettingMissing as error:
        print(f"ship-runner: {error}", file=sys.stderr)  # noqa: T201 (a command line's answer)
        return 2
    return keep(lambda: _live(settings))


def _live(settings: Settings) -> int:
    """Work, or have one work that waits. One whose end is near may hold the state for a moment."""
    patient_until = time.monotonic() + PATIENCE_S
    while True:
        try:
            with hold_state(settings.state):
                _work(settings)
            return 0
        except AlreadyRunning as error:
            if link := waiting.find(settings.state):
                status = waiting.hand_over(link)
                if status is not None:
                    return status
            elif time.monotonic() > patient_until:
                print(f"ship-runner: {error}", file=sys.stderr)  # noqa: T201 (a command line's answer)
                return 0
        time.sleep(0.02)


def _work(settings: Settings) -> None:
    # Imported here: the keeper stays small, and each new child starts from a clean slate.
    import asyncio

    from ship_runner.life import Life

    asyncio.run(Life(settings).live())


def _wait() -> int:
    def load() -> None:
        import asyncio

        from ship_runner.life import rehearse

        asyncio.run(rehearse())

    def work() -> int:
        _work(Settings.load(os.environ))
        return 0

    return waiting.wait(state_folder(os.environ), load, work)


def _diff() -> int:
    import asyncio
    import tempfile

    from ship_runner.workspace import Workspace

    state = state_folder(os.environ)
    workspace = Workspace(Path(os.environ.get("SHIP_WORKSPACE", "/workspace/repo")), state)
    if not workspace.base_commit:
        print("ship-runner: the repository is not cloned yet", file=sys.stderr)  # noqa: T201 (a command line's answer)
        return 1
    with tempfile.TemporaryDirectory(dir=state) as scratch:
        path = Path(scratch) / "diff"
        asyncio.run(workspace.live_diff(path, 20 << 20))
        sys.stdout.buffer.write(path.read_bytes())
    return 0


def _serve_tools() -> int:
    import asyncio

    from ship_runner.children import tools
    from ship_runner.mcp import serve

    try:
        settings = Settings.load(os.environ)
    except SettingMissing as error:
        print(f"ship-runner: {error}", file=sys.stderr)  # noqa: T201 (a command line's answer)
        return 2
    asyncio.run(serve(tools(settings.url, settings.token)))
    return 0


def _stand_by() -> int:
    import asyncio

    from ship_runner.failures import RunnerFailure
    from ship_runner.opencode.configuration import environment
    from ship_runner.opencode.process import AgentProcess

    state = state_folder(os.environ)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    agent = AgentProcess(
        os.environ.get("SHIP_OPENCODE", "opencode"), state, Path(os.environ.get("HOME", "/home/user"))
    )
    try:
        asyncio.run(agent.stand_by(environment(os.environ)))
    except RunnerFailure as error:
        print(f"ship-runner: {error.reason}", file=sys.stderr)  # noqa: T201 (a command line's answer)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
