"""Bounds on what one report may hold: the control plane ends a link that brings more than 1 MiB at once."""

from collections.abc import Iterator, Sequence
from typing import Any

from ship_runner.facts import Delta, Fact, wire

FACT_BYTES = 256 << 10
"""Of a fact's data, as JSON in UTF-8; a checkpoint's list of files has bounds of its own."""
FILES = 1000
FILES_BYTES = 512 << 10
DELTA_CHARACTERS = 64 << 10
MARK = "… [cut]"

_PATH_CHARACTERS = 1024
_ARGUMENTS_BYTES = FACT_BYTES // 2


def bounded(fact: Fact) -> Fact:
    """The fact itself when it is small enough; else the same one, its texts cut with a mark, its lists after some items."""
    if fact.type == "checkpoint.created":
        return Fact(fact.type, {**fact.data, "files": listed(fact.data["files"])})
    if _size(fact.data) <= FACT_BYTES:
        return fact
    data = dict(fact.data)
    if "input" in data:
        data["input"] = _arguments(data["input"])
    if "truncated" in data:
        data["truncated"] = True
    characters, items = FACT_BYTES - 4096, 1024
    while _size(data) > FACT_BYTES:
        data = _cut_all(data, characters, items)
        characters, items = max(characters // 2, 1), max(items // 2, 1)
    return Fact(fact.type, data)


def listed(files: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The files of a checkpoint; of very many the first 1,000 and one entry that sums up the rest."""
    kept: list[dict[str, Any]] = []
    room = FILES_BYTES
    for file in files[:FILES]:
        entry = {**file, "path": _cut(file["path"], _PATH_CHARACTERS)}
        room -= _size(entry) + 1
        if room < 0:
            break
        kept.append(entry)
    if rest := files[len(kept) :]:
        kept.append(
            {
                "path": f"… and {len(rest):,} more files",
                "status": "M",
                "additions": sum(file["additions"] for file in rest),
                "deletions": sum(file["deletions"] for file in rest),
            }
        )
    return kept


def pieces(delta: Delta) -> Iterator[Delta]:
    """The same growing text in as many deltas as it needs."""
    text = delta["text"]
    for start in range(0, len(text), DELTA_CHARACTERS):
        yield {
            **delta,
            "offset": delta["offset"] + start,
            "text": text[start : start + DELTA_CHARACTERS],
        }


def _arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """A tool's arguments with their texts cut; those that are large in another way become the head of their JSON."""
    for characters in (_ARGUMENTS_BYTES, 16 << 10, 4 << 10, 1 << 10):
        shorter: dict[str, Any] = _cut_all(arguments, characters, None)
        if _size(shorter) <= _ARGUMENTS_BYTES:
            return shorter
    return {"arguments": _cut(wire(arguments), 16 << 10)}


def _cut_all(value: Any, characters: int, items: int | None) -> Any:
    if isinstance(value, str):
        return _cut(value, characters)
    if isinstance(value, dict):
        return {name: _cut_all(inner, characters, items) for name, inner in value.items()}
    if isinstance(value, list):
        return [_cut_all(inner, characters, items) for inner in value[:items]]
    return value


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[:characters].removesuffix(MARK) + MARK


def _size(value: Any) -> int:
    return len(wire(value).encode())
