"""What a build is made of: how it is parsed, what each step leaves for the next, and when two steps are the same."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ship_sandboxd.builds import recipes
from ship_sandboxd.builds.recipes import Stage, Step
from ship_sandboxd.errors import BadRequest
from ship_sandboxd.templates import Template

BASE = Stage.of(Template("debian", layers=("a" * 64,), env={"PATH": "/usr/bin"}), "default")
HASH = "0" * 64


def body(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"fromImage": "e2bdev/base", "steps": list(steps), "force": False, **more}


def test_a_recipe_of_the_sdk_is_understood() -> None:
    recipe = recipes.parse(
        body(
            {"type": "RUN", "args": ["make", "root"], "force": False},
            {"type": "COPY", "args": ["src", "/app", "", "0755"], "force": True, "filesHash": HASH},
            {"type": "ENV", "args": ["A", "1", "B", "2"]},
            startCmd="serve",
            readyCmd="curl localhost",
        )
    )
    assert recipe.steps == (
        Step("RUN", ("make", "root")),
        Step("COPY", ("src", "/app", "", "0755"), HASH, force=True),
        Step("ENV", ("A", "1", "B", "2")),
    )
    assert (recipe.base, recipe.start_command, recipe.ready_command) == ("", "serve", "curl localhost")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"steps": []}, "fromImage"),
        ({"fromImage": "a", "fromTemplate": "b"}, "exactly one"),
        ({"fromImage": "ubuntu:22.04"}, "debian:bookworm"),
        ({"fromImage": "debian:trixie"}, "debian:bookworm"),
        ({"fromImage": "python:3.12"}, "python:3.11"),
        (body(fromImageRegistry={"type": "registry"}), "registry"),
        (body({"type": "ADD", "args": ["x"]}), "step 1"),
        (body({"type": "RUN", "args": []}), "step 1"),
        (body({"type": "RUN", "args": "ls"}), "list of strings"),
        (body({"type": "RUN", "args": ["a\0b"]}), "NUL"),
        (body({"type": "COPY", "args": ["a", "b"], "filesHash": "../x"}), "filesHash"),
        (body({"type": "ENV", "args": ["A"]}), "wrong number"),
        (body({"type": "ENV", "args": ["A B", "1"]}), "malformed"),
        (body("RUN ls"), "not an object"),  # type: ignore[arg-type]  # what a caller may send
        (body(startCmd=3), "startCmd"),
        (body(surprise=1), "surprise"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said(value: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        recipes.parse(value)


@pytest.mark.parametrize(
    "image",
    [
        "e2bdev/base",
        "e2bdev/base:latest",
        "debian:bookworm",
        "debian:bookworm-slim",
        "debian:12",
        "docker.io/library/debian:bookworm-20250520-slim",
        "python:3",
        "python:3.11-slim-bookworm",
    ],
)
def test_images_that_the_debian_root_is_are_taken(image: str) -> None:
    assert recipes.parse({"fromImage": image}).base == ""


def test_each_step_leaves_what_the_next_one_finds() -> None:
    stage = BASE.after(Step("ENV", ("PATH", "/opt/bin:$PATH", "HERE", "${PATH}\\$")))
    assert stage.env == {"PATH": "/opt/bin:/usr/bin", "HERE": "/usr/bin$"}
    stage = stage.after(Step("WORKDIR", ("app",)), "b" * 64).after(Step("USER", ("root",)))
    assert (stage.workdir, stage.user) == ("/home/user/app", "root")
    assert stage.layers == ("a" * 64, "b" * 64)
    assert stage.absolute("~/x") == "/root/x"
    assert stage.absolute("x/") == "/home/user/app/x/"


def test_a_layer_that_comes_again_lies_on_top_once() -> None:
    stage = BASE.after(Step("RUN", ("a",)), "b" * 64).after(Step("RUN", ("b",)), "c" * 64)
    assert stage.after(Step("RUN", ("c",)), "b" * 64).layers == ("a" * 64, "c" * 64, "b" * 64)


def test_the_key_of_a_stage_follows_from_all_that_went_before() -> None:
    run, copy = Step("RUN", ("ls",)), Step("COPY", ("a", "b"), HASH)
    assert BASE.after(run, "c" * 64).key == BASE.after(run, "d" * 64).key == BASE.key_after(run)
    keys = {
        BASE.after(run).after(copy).key,
        BASE.after(copy).after(run).key,
        BASE.after(run).after(Step("COPY", ("a", "b"), "1" * 64)).key,
        BASE.after(Step("RUN", ("ls", "root"))).after(copy).key,
        Stage.of(Template("debian", layers=("e" * 64,)), "default").after(run).after(copy).key,
    }
    assert len(keys) == 5


def test_what_one_tenant_has_built_is_not_taken_for_another() -> None:
    assert Stage.of(Template("debian"), "one").key != Stage.of(Template("debian"), "two").key


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
        max_leaves=10,
    )
)
def test_no_step_makes_the_parser_fail_in_another_way(step: Any) -> None:
    for value in ({"fromImage": "e2bdev/base", "steps": step}, {"fromImage": step, "steps": [step]}):
        try:
            recipes.parse(value)
        except BadRequest:
            continue
