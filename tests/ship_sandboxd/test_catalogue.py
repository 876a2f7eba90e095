"""Built templates by name, tag and tenant, on disk."""

import json
from pathlib import Path

import pytest

from ship_sandboxd.builds.catalogue import MAX_BUILDS, Catalogue, Entry, Size
from ship_sandboxd.builds.debian import DebianRoot
from ship_sandboxd.errors import BadRequest, NotFound
from ship_sandboxd.quotas import Quotas
from ship_sandboxd.storage.blobs import FolderBlobs
from ship_sandboxd.storage.layers import Layers
from ship_sandboxd.templates import Mount, Template

LAYERS = ("a" * 64, "b" * 64)


def catalogue(folder: Path) -> Catalogue:
    layers = Layers(folder / "layers", FolderBlobs(folder / "blobs"))
    return Catalogue(
        folder / "catalogue", folder / "templates", DebianRoot(folder / "builds", layers, 0), Quotas(folder)
    )


def built(made: Catalogue, name: str, tags: tuple[str, ...] = (), tenant: str = "default") -> Entry:
    entry, build = made.request(tenant, name, tags, Size())
    made.finish(
        entry,
        build,
        Template(entry.id, layers=LAYERS, env={"A": build.id}, mounts=(Mount("/a", "/b"),), alias=entry.name),
    )
    return entry


def test_a_template_is_found_by_name_id_and_tag_also_by_the_next_process(tmp_path: Path) -> None:
    entry = built(catalogue(tmp_path), "web:v1", ("stable",))
    again = catalogue(tmp_path)
    for reference in ("web:v1", "web:stable", f"{entry.id}:v1"):
        found = again.known(reference, "default")
        assert (found.name, found.alias, found.layers) == (entry.id, "web", LAYERS)
        assert found.mounts == (Mount("/a", "/b"),)
    with pytest.raises(NotFound, match="stable, v1"):
        again.known("web", "default")
    assert again.layers() == set(LAYERS)


def test_a_name_without_a_tag_is_the_default_one(tmp_path: Path) -> None:
    made = catalogue(tmp_path)
    first = built(made, "web")
    second = built(made, "web")
    assert first is second
    newest = max(first.builds.values(), key=lambda build: build.created_at)
    assert made.known("web", "default").env == {"A": newest.id}


@pytest.mark.parametrize("name", ["a" * 300, "../elsewhere", "laid/../../elsewhere", "\0", ""])
def test_a_name_of_no_template_tells_nothing_of_the_disk(tmp_path: Path, name: str) -> None:
    made = catalogue(tmp_path)
    for folder in (tmp_path / "elsewhere", tmp_path / "templates" / "laid"):
        folder.mkdir()
        (folder / "template.json").write_text("{}")
    assert made.is_operators("laid")
    assert not made.is_operators(name)


def test_a_tenant_never_sees_anothers(tmp_path: Path) -> None:
    made = catalogue(tmp_path)
    entry = built(made, "web", tenant="one")
    assert made.entries("two") == []
    for reference in ("web", entry.id, f"{entry.id}:default"):
        with pytest.raises(NotFound):
            made.known(reference, "two")
    with pytest.raises(NotFound):
        made.assign("web:default", ["mine"], "two")
    other = built(made, "web", tenant="two")
    assert other.id != entry.id


def test_tags_move_between_builds_and_can_be_taken_away(tmp_path: Path) -> None:
    made = catalogue(tmp_path)
    entry = built(made, "web:v1")
    built(made, "web:v2")
    build = made.assign("web:v1", ["production", "best"], "default")
    assert made.known("web:production", "default").env == {"A": build.id}
    made.assign("web:v2", ["production"], "default")
    assert made.known("web:production", "default").env != {"A": build.id}
    made.unassign("web", ["best"], "default")
    assert sorted(entry.tags) == ["production", "v1", "v2"]
    with pytest.raises(NotFound):
        made.unassign("web", ["best"], "default")


@pytest.mark.parametrize(
    "name", ["", "Web", "a/b", "../x", "base", "debian", "mine", "a" * 129, "a:", "a:b:c", ":v1"]
)
def test_a_name_that_nobody_may_take_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "templates" / "mine").mkdir(parents=True)
    (tmp_path / "templates" / "mine" / "template.json").write_text("{}")
    with pytest.raises(BadRequest):
        catalogue(tmp_path).request("default", name, (), Size())


@pytest.mark.parametrize("tag", ["", ":x", "a b", "../x", "a" * 129])
def test_a_malformed_tag_is_refused(tmp_path: Path, tag: str) -> None:
    made = catalogue(tmp_path)
    built(made, "web")
    with pytest.raises(BadRequest):
        made.assign("web:default", [tag], "default")


def test_the_operators_templates_are_everyones(tmp_path: Path) -> None:
    folder = tmp_path / "templates" / "tools"
    folder.mkdir(parents=True)
    (folder / "template.json").write_text(json.dumps({"memory_mb": 512}))
    made = catalogue(tmp_path)
    assert made.known("tools", "anyone").memory_mb == 512
    assert [template.name for template in made.operators()] == ["base", "tools", "debian"]


def test_old_builds_are_forgotten_but_for_those_with_a_tag(tmp_path: Path) -> None:
    made = catalogue(tmp_path)
    entry = built(made, "web:first")
    kept = entry.tags["first"].build_id
    for _ in range(MAX_BUILDS + 5):
        built(made, "web:last")
    assert len(entry.builds) <= MAX_BUILDS + 1
    assert kept in entry.builds
    assert made.known("web:first", "default").env == {"A": kept}


def test_a_file_that_nobody_can_read_is_left_alone(tmp_path: Path) -> None:
    built(catalogue(tmp_path), "web")
    broken = tmp_path / "catalogue" / "broken.json"
    broken.write_text('{"id": "x"')
    assert len(catalogue(tmp_path).entries("default")) == 1
    assert broken.exists()
