"""How the tests are shared out among processes, where `make test` runs several.

The tests of a file share what is costly to start, so they stay together; the files that take longest begin first, so that
none is left over for the end. Each process has ports, folders and hosts of its own. What is made once for the machine
(the agent's package, the Debian root) is kept behind a lock.
"""

import os
import sys
from pathlib import Path

import pytest
from httpx._config import DEFAULT_TIMEOUT_CONFIG

LONGEST = ("ship_sandboxd/test_leaks.py",)

# A request is waited for longer than by httpx's own five seconds: the machine may be busy with other tests.
DEFAULT_TIMEOUT_CONFIG.connect = DEFAULT_TIMEOUT_CONFIG.read = 60.0

# A variable that some environments set: each server that a test starts would compile all its modules anew.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(
        Path("~/.cache/ship-tests/bytecode").expanduser()
    )
    sys.dont_write_bytecode = False


@pytest.hookimpl(optionalhook=True)  # there are those who run the tests without it
def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`: as many as may run at once. With one more, agents and browsers starve each other."""
    return len(os.sched_getaffinity(0))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What emulates a machine takes minutes, and all of this one: it runs where it is named, as `make machine` does."""
    machine = Path(__file__).parent / "machine"
    named = (config.invocation_params.dir / argument.partition("::")[0] for argument in config.args)
    return (collection_path == machine and not any(path.is_relative_to(machine) for path in named)) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then what starts real processes; short tests fill up the end."""
    folder = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        file = item.path.relative_to(folder).as_posix()
        if file in LONGEST:
            return LONGEST.index(file)
        return len(LONGEST) + (item.get_closest_marker("system") is None)

    items.sort(key=place)
