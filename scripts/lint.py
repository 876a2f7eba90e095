"""Small rules of this project that no off-the-shelf linter knows. Prints each offence; exit code 1 when there is one."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}
SILENCED = re.compile(
    r"#\s*(?:type:\s*ignore(?:\[[\w\-, ]*\])?|noqa(?::\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*)?)(?P<rest>.*)"
)
UNFINISHED = re.compile(r"(?:#|//|/\*)\s*(?:TODO|FIXME|XXX|HACK)\b")
LONGEST_TEST_SLEEP_S = 2.0
"""A part may be made to stay away for a while; nothing is waited for that long."""


def tracked(*patterns: str) -> list[Path]:
    """The files that git knows, below the project's root."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *patterns],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def silenced_without_reason() -> Iterator[str]:
    """A silenced checker needs a reason on the same line."""
    for path, number, line in lines("*.py"):
        found = SILENCED.search(line)
        if found and len(found["rest"].strip(" #-:,.")) < 8:
            yield f"{path}:{number}: say why the check is silenced, on the same line"


def unfinished() -> Iterator[str]:
    """Nothing is left for later."""
    for path, number, line in lines("*.py", "*.ts", "*.tsx", "*.sh", "Makefile"):
        if UNFINISHED.search(line):
            yield f"{path}:{number}: finish it, or write an issue"


def empty_names() -> Iterator[str]:
    """A module is named for what it holds."""
    for path in tracked("src/*.py"):
        if path.stem in EMPTY_NAMES or path.parent.name in EMPTY_NAMES:
            yield f"{path.relative_to(ROOT)}: a module's name says what is in it"


def sleeping_tests() -> Iterator[str]:
    """A test waits for a condition with a deadline, not for a length of time."""
    for path in tracked("tests/*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("time.sleep", "asyncio.sleep"):
                seconds = call.args[0]
                length_s = seconds.value if isinstance(seconds, ast.Constant) else 0
                if isinstance(length_s, int | float) and length_s > LONGEST_TEST_SLEEP_S:
                    yield f"{path.relative_to(ROOT)}:{call.lineno}: wait for a condition, not for {length_s} s"


def tests_named_twice() -> Iterator[str]:
    """Two test modules of one name cannot be collected in one run."""
    seen: dict[str, Path] = {}
    for path in tracked("tests/**/test_*.py"):
        first = seen.setdefault(path.name, path)
        if first != path:
            yield f"{path.relative_to(ROOT)}: has the name of {first.relative_to(ROOT)}"


def unlocked() -> Iterator[str]:
    """Every direct dependency is pinned."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    pinned = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    for requirement in wanted:
        name = re.split(r"[\[<>=!~ ]", requirement)[0].lower().replace("_", "-")
        if name not in pinned:
            yield f"requirements.lock: lacks {name}; run `make lock`"


def located_packages() -> Iterator[str]:
    """A lock file names packages and hashes, not the registry that one machine happened to use."""
    for path in tracked("*package-lock.json"):
        packages = json.loads(path.read_text()).get("packages", {})
        for name, package in packages.items():
            if "resolved" in package and not package.get("link"):
                yield f"{path.relative_to(ROOT)}: {name} has a download address; set omit-lockfile-registry-resolved"
                break


def broken_scripts() -> Iterator[str]:
    """Every shell script parses."""
    for path in [*tracked("*.sh"), ROOT / ".ci" / "run"]:
        result = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
        if result.returncode:
            yield result.stderr.strip()


def lines(*patterns: str) -> Iterator[tuple[Path, int, str]]:
    """(path below the root, line number, line) of the tracked files."""
    for path in tracked(*patterns):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            yield path.relative_to(ROOT), number, line


RULES = (
    silenced_without_reason,
    unfinished,
    empty_names,
    sleeping_tests,
    tests_named_twice,
    unlocked,
    located_packages,
    broken_scripts,
)


def main() -> int:
    """Runs every rule."""
    offences = [offence for rule in RULES for offence in rule()]
    sys.stdout.writelines(f"{offence}\n" for offence in offences)
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())
