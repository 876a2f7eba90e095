"""The virtual machine that these tests share."""

from collections.abc import Iterator

import pytest
from tests.machine import virtual_machine
from tests.machine.virtual_machine import VirtualMachine


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualMachine]:
    """It is up; a test that takes it down brings it up again."""
    if missing := virtual_machine.missing():
        pytest.skip(f"a virtual machine needs {missing}")
    made = VirtualMachine(tmp_path_factory.mktemp("machine"))
    try:
        made.boot()
        yield made
    finally:
        made.cut_power()
