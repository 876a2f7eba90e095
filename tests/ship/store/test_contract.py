"""Every store keeps what the port promises."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from importlib import import_module
from inspect import iscoroutinefunction
from pathlib import Path
from pkgutil import iter_modules

import pytest

from ship.ports.store import Store
from ship.store.postgres import PostgresStore
from ship.store.sqlite import SqliteStore
from ship.testing import store_contract
from ship.testing.postgres_server import fresh_database
from ship.testing.store_contract import STORE_CHECKS, Check, Stores, check_store


@pytest.fixture(params=["sqlite", "postgres"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    """Two nodes on one database, or the one that a SQLite file can have."""
    async with AsyncExitStack() as stack:

        async def opened(store: Store) -> Store:
            await store.open()
            stack.push_async_callback(store.close)
            return store

        if request.param == "sqlite":
            one: Store = await opened(SqliteStore(tmp_path / "ship.db"))
            yield Stores(one, one)
        else:
            url = await stack.enter_async_context(fresh_database(request.getfixturevalue("postgres_address")))
            yield Stores(await opened(PostgresStore(url)), await opened(PostgresStore(url)))


@pytest.mark.parametrize("check", STORE_CHECKS, ids=lambda check: check.__name__)
async def test_a_store_keeps_its_promises(check: Check, stores: Stores) -> None:
    await check(stores)


async def test_all_of_them_on_one_database(stores: Stores) -> None:
    await check_store(stores)


def test_every_check_is_listed() -> None:
    names = [module.name for module in iter_modules(store_contract.__path__, f"{store_contract.__name__}.")]
    written = {
        value
        for part in map(import_module, names)
        if hasattr(part, "CHECKS")
        for name, value in vars(part).items()
        if iscoroutinefunction(value) and value.__module__ == part.__name__ and name[0] != "_"
    }
    assert written == set(STORE_CHECKS)
