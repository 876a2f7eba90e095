"""Commands that look after the store: ``migrate``, ``export``, ``import``."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ship import config
from ship.app import carrying
from ship.app.export import Progress
from ship.cli import terminal


def migrate(to: str | None, data: Path | None, file: Path | None, *, as_json: bool) -> None:
    """``ship migrate``"""
    settings = _settings(data, file)
    if to is None:
        carrying.bring_up_to_date(settings)
        terminal.messages().print("The tables are up to date.")
        return
    with _progress() as progress:
        counts = carrying.copy_to(settings, to, progress)
    _report("Copied", counts, as_json=as_json)


def export(target: Path, data: Path | None, file: Path | None, *, as_json: bool) -> None:
    """``ship export``"""
    with _progress() as progress:
        counts = carrying.export_to(_settings(data, file), target, progress)
    _report(f"Wrote {target}:", counts, as_json=as_json)


def import_(source: Path, data: Path | None, file: Path | None, *, as_json: bool) -> None:
    """``ship import``"""
    with _progress() as progress:
        counts = carrying.import_from(_settings(data, file), source, progress)
    _report("Took", counts, as_json=as_json)


def _settings(data: Path | None, file: Path | None) -> config.Settings:
    return config.load(file, os.environ, {"data": str(data) if data else None})


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """Shows what is being carried, where somebody watches."""
    with terminal.messages().status("…") as status:
        yield lambda name, count: status.update(f"{name}: {count:,}")


def _report(done: str, counts: dict[str, int], *, as_json: bool) -> None:
    if as_json:
        terminal.print_json(dict(counts))
        return
    listed = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    terminal.messages().print(f"{done} {listed or 'nothing: the store is empty'}.", soft_wrap=True)
