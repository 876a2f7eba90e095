"""`docs/sandbox-host.md` names every option, error, route and key of a template, and what it shows works."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.ship_sandboxd.conftest import API_KEY, Host

from ship_sandboxd import cli, templates

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "ship_sandboxd"
PAGE = (ROOT / "docs" / "sandbox-host.md").read_text()
CODE = re.compile(r"[a-z]+(?:_[a-z0-9]+)*")


def syntax_trees() -> Iterator[ast.Module]:
    """Of the host's own modules; what runs in a sandbox answers with the protocol's codes."""
    for path in SOURCES.rglob("*.py"):
        if "envd" not in path.relative_to(SOURCES).parts:
            yield ast.parse(path.read_text())


def error_classes() -> dict[str, ast.ClassDef]:
    """Name → class of everything below HostError."""
    classes = {
        node.name: node
        for tree in syntax_trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }

    def is_error(node: ast.ClassDef) -> bool:
        parents = [base.id for base in node.bases if isinstance(base, ast.Name)]
        return node.name == "HostError" or any(is_error(classes[name]) for name in parents if name in classes)

    return {name: node for name, node in classes.items() if is_error(node)}


def error_codes() -> set[str]:
    """Those that classes carry, and those that are given where an error is raised."""
    classes = error_classes()
    texts = [
        statement.value
        for node in classes.values()
        for statement in node.body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "code"
    ]
    for tree in syntax_trees():
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] in classes:
                texts += [*call.args[1:2], *(one.value for one in call.keywords if one.arg == "code")]
        texts += [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "code"
        ]
    values = [part.value for text in texts for part in ast.walk(text) if isinstance(part, ast.Constant)]
    return {value for value in values if isinstance(value, str) and CODE.fullmatch(value)}


def routes() -> set[tuple[str, str]]:
    """(method, path) of everything that the host answers with something else than 501."""
    paths = json.loads((SOURCES / "openapi.json").read_text())["paths"]
    return {
        (method.upper(), path)
        for path, operations in paths.items()
        for method, operation in operations.items()
        if set(operation["responses"]) - {"501", "400", "401", "404", "default"}
    }


def test_the_search_finds_what_is_known_to_be_there() -> None:
    assert {"port_in_use", "bubblewrap_missing", "unauthorized", "template_not_found"} <= error_codes()
    assert ("POST", "/v2/sandboxes") in routes()


def test_every_option_is_documented_and_no_other() -> None:
    parser = cli._parser()
    options = {option for action in parser._actions for option in action.option_strings if len(option) > 2}
    cells = re.findall(r"^\| (`--[^|]*) \|", PAGE, re.MULTILINE)
    described = {option for cell in cells for option in re.findall(r"`(--[a-z-]+)", cell)}
    assert described == options - {"--help"}


def test_every_error_code_is_documented() -> None:
    missing = {code for code in error_codes() if f"`{code}`" not in PAGE}
    assert not missing


def test_every_key_of_a_template_is_documented() -> None:
    described = PAGE.split("\n## Templates\n")[1].split("\n## ")[0]
    missing = {key for key in templates.KEYS if f"`{key}`" not in described and f'"{key}"' not in described}
    assert not missing


def test_every_route_is_documented() -> None:
    page = PAGE.replace("/sandboxes/ID", "/sandboxes/{sandboxID}")
    described = set(re.findall(r"`(GET|POST|PUT|PATCH|DELETE) (/[^` ?]*)", page))
    assert not routes() - described
    assert not {path for _, path in described} - {path for _, path in routes()}


@pytest.mark.parametrize("page", ["README.md", "docs/sandbox-host.md"])
def test_the_first_example_works(
    page: str, host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = re.search(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert example
    for name in ("E2B_API_URL", "E2B_SANDBOX_URL"):
        monkeypatch.setenv(name, host.url)
    for name in ("E2B_API_KEY", "SHIP_SANDBOXD_API_KEY"):
        monkeypatch.setenv(name, API_KEY)
    exec(example[1].replace("http://127.0.0.1:49980", host.url), {})
    assert "42" in capsys.readouterr().out
