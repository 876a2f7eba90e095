"""Addresses that stand for names, for programs in a sandbox that connect by address: each name that is asked for gets one of
198.18.0.0/15, a range that no network uses (RFC 2544), and the gateway knows the name behind it again.

The table is bounded: the name that was used least lately goes first. It is kept in a file, so that what a program has
looked up holds when the host is restarted.
"""

import contextlib
import ipaddress
from collections import OrderedDict
from pathlib import Path

RANGE = ipaddress.IPv4Network("198.18.0.0/15")
SERVER = RANGE[1]
"""Where programs find the name server."""
MAX_NAMES = 4096
_FIRST = 256


class Names:
    """The names of one sandbox. `file` holds a line `address name` for each; later lines win."""

    def __init__(self, file: Path, capacity: int = MAX_NAMES) -> None:
        self._file = file
        self._capacity = capacity
        self._names: OrderedDict[ipaddress.IPv4Address, str] = OrderedDict()
        self._addresses: dict[str, ipaddress.IPv4Address] = {}
        self._next = _FIRST
        self._lines = 0
        self._load()

    def address_of(self, name: str) -> ipaddress.IPv4Address:
        """The address that stands for a name."""
        address = self._addresses.get(name)
        if address is not None:
            self._names.move_to_end(address)
            return address
        address = self._take()
        self._remember(address, name)
        self._write(address, name)
        return address

    def name_at(self, address: ipaddress.IPv4Address) -> str | None:
        """The name behind an address; None when there is none, or none any more."""
        name = self._names.get(address)
        if name is not None:
            self._names.move_to_end(address)
        return name

    def _take(self) -> ipaddress.IPv4Address:
        """Round and round, so that the address of a forgotten name is not soon another's."""
        while (address := RANGE[self._next]) in self._names:
            self._step()
        self._step()
        return address

    def _step(self) -> None:
        self._next += 1
        if self._next >= RANGE.num_addresses - 1:
            self._next = _FIRST

    def _remember(self, address: ipaddress.IPv4Address, name: str) -> None:
        self._names[address] = name
        self._addresses[name] = address
        if len(self._names) > self._capacity:
            _, forgotten = self._names.popitem(last=False)
            del self._addresses[forgotten]

    def _write(self, address: ipaddress.IPv4Address, name: str) -> None:
        self._lines += 1
        with contextlib.suppress(OSError):  # on a full disk the names hold for as long as this process runs
            if self._lines > 2 * self._capacity:
                scratch = self._file.with_suffix(".new")
                scratch.write_text("".join(f"{key} {value}\n" for key, value in self._names.items()))
                scratch.replace(self._file)
                self._lines = len(self._names)
                return
            with self._file.open("a") as file:
                file.write(f"{address} {name}\n")

    def _load(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            for line in self._file.read_text().splitlines():
                text, _, name = line.partition(" ")
                with contextlib.suppress(ValueError):  # a line that a crash has cut short
                    self._load_line(ipaddress.IPv4Address(text), name)

    def _load_line(self, address: ipaddress.IPv4Address, name: str) -> None:
        self._lines += 1
        if not name or address not in RANGE:
            return
        self._addresses.pop(self._names.pop(address, ""), None)
        self._names.pop(self._addresses.pop(name, RANGE[0]), None)
        self._remember(address, name)
        self._next = int(address) - int(RANGE[0])
        self._step()
