"""The daemon runs on the sandbox's own Python: nothing but the standard library, and no newer than 3.10."""

import ast
import sys
from pathlib import Path

import pytest

from ship_sandboxd import envd

SOURCES = sorted(Path(envd.__file__).parent.glob("*.py"))
# Names that Python 3.11 brought to modules which the daemon uses.
NEWER = {
    ("datetime", "UTC"),
    ("asyncio", "timeout"),
    ("asyncio", "TaskGroup"),
    ("typing", "Self"),
    ("os", "login_tty"),
}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_the_daemon_needs_nothing_that_a_sandbox_may_lack(source: Path) -> None:
    tree = ast.parse(source.read_text(), feature_version=(3, 10))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {name.name.partition(".")[0] for name in node.names} <= sys.stdlib_module_names
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").partition(".")[0] in sys.stdlib_module_names
            assert not {(node.module, name.name) for name in node.names} & NEWER
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in NEWER
