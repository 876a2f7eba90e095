"""The daemon runs on the sandbox's own Python: nothing but the standard library, and no newer than 3.10."""

import ast
import subprocess
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


def test_what_is_loaded_later_is_not_loaded_at_the_start_and_works_when_it_is_used() -> None:
    """In the order of a daemon's start; many threads at once may be the first to use a module."""
    code = f"""
import sys
sys.modules['ssl'] = None
sys.path.insert(0, {str(Path(envd.__file__).parent.parent)!r})
from envd import later
later.put_off()
from envd.daemon import main
put_off = {{name for name in later.LATER if type(sys.modules.get(name)) is later._Later}}
missing = {{name for name in later.LATER if name not in sys.modules}}
assert put_off | missing >= {{'inspect', 'linecache', 'shutil', 'asyncio.sslproto', 'locale'}}, put_off
assert not {{'ast', 'dis', 'tokenize', 'bz2', 'lzma', 'datetime'}} & set(sys.modules)
import inspect, shutil
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(16) as pool:
    assert all(pool.map(lambda n: callable(shutil.rmtree) and inspect.isfunction(main), range(200)))
assert type(shutil) is type(sys) and not hasattr(inspect, 'no_such_thing')
"""
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "-B", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
