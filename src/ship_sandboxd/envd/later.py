"""Modules that are loaded when something in them is first used, and not when they are imported.

A quarter of the time in which a daemon starts goes into parts of asyncio that it seldom or never uses: to draw tracebacks, to
speak TLS, to look into functions.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import ModuleType

TYPE_CHECKING = False  # that of `typing` would have to be loaded
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
else:
    Loader = object  # loading its module takes longer than all of this saves

LATER = (
    "asyncio.sslproto",
    "asyncio.staggered",
    "inspect",
    "ipaddress",
    "linecache",
    "locale",
    "shutil",
    "textwrap",
)
_loading = RLock()


def put_off() -> None:
    """Load these modules later, from now on; the rest of a program does not notice."""
    sys.meta_path.insert(0, _Finder())


class _Later(ModuleType):
    """Only what it lacks is asked of `__getattr__`: what the import machinery looks at is there, and loads nothing."""

    def __getattr__(self, name: str) -> object:
        with _loading:  # another thread may be in the middle of it
            loader = self.__dict__.pop("_loader", None)
            if loader is not None:
                loader.exec_module(self)
                self.__class__ = ModuleType  # type: ignore[assignment] # it is an ordinary module from here on
        return ModuleType.__getattribute__(self, name)


class _Loader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Later(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["_loader"] = self._loader


class _Finder:
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname in LATER else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec
