"""The addresses that stand for names, and the messages of the name server."""

import ipaddress
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ship_sandboxd.network import dns
from ship_sandboxd.network.names import RANGE, SERVER, Names


def test_a_name_keeps_its_address(tmp_path: Path) -> None:
    names = Names(tmp_path / "names")
    first, second = names.address_of("a.example"), names.address_of("b.example")
    assert first != second
    assert {first, second} <= set(RANGE) - {SERVER}
    assert names.address_of("a.example") == first
    assert (names.name_at(first), names.name_at(second)) == ("a.example", "b.example")
    assert names.name_at(RANGE[9999]) is None


def test_names_are_known_again_after_a_restart(tmp_path: Path) -> None:
    address = Names(tmp_path / "names").address_of("a.example")
    with (tmp_path / "names").open("a") as file:
        file.write("198.18.1.9 \n10.0.0.1 evil.example\n198.1")
    again = Names(tmp_path / "names")
    assert again.name_at(address) == "a.example"
    assert again.name_at(ipaddress.IPv4Address("10.0.0.1")) is None
    assert again.address_of("b.example") != address


def test_the_name_that_was_used_least_lately_is_forgotten(tmp_path: Path) -> None:
    names = Names(tmp_path / "names", capacity=3)
    addresses = [names.address_of(f"{letter}.example") for letter in "abc"]
    names.name_at(addresses[0])
    names.address_of("d.example")
    assert [names.name_at(address) for address in addresses] == ["a.example", None, "c.example"]


def test_the_table_and_its_file_are_bounded(tmp_path: Path) -> None:
    names = Names(tmp_path / "names", capacity=10)
    for number in range(500):
        names.address_of(f"n{number}.example")
    assert len((tmp_path / "names").read_text().splitlines()) <= 20
    again = Names(tmp_path / "names", capacity=10)
    assert again.name_at(names.address_of("n499.example")) == "n499.example"
    assert again.name_at(names.address_of("n490.example")) == "n490.example"


def test_addresses_go_round(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("198.18.1.0 kept.example\n198.19.255.250 last.example\n")
    names = Names(tmp_path / "names", capacity=2)
    given_out = []
    for number in range(8):
        assert names.name_at(RANGE[256]) == "kept.example"
        given_out.append(int(names.address_of(f"n{number}.example")) - int(RANGE[0]))
    assert given_out == [131067, 131068, 131069, 131070, 257, 258, 259, 260]


def query(name: bytes, kind: int = dns.A, flags: int = 0x0100, questions: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label for label in name.split(b".") if label)
    return struct.pack("!6H", 77, flags, questions, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def test_a_question_and_its_answer() -> None:
    asked = dns.parse(query(b"www.Example.com"))
    assert (asked.name, asked.kind) == ("www.Example.com", dns.A)
    answer = asked.answer(dns.NO_ERROR, ipaddress.IPv4Address("198.18.1.2"))
    assert answer[:12] == struct.pack("!6H", 77, 0x8180, 1, 1, 0, 0)
    assert answer[12:].startswith(query(b"www.Example.com")[12:])
    assert answer.endswith(bytes([198, 18, 1, 2]))
    assert asked.answer(dns.REFUSED)[2:4] == b"\x81\x85"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (query(b"a.b", flags=0x8100), None),
        (b"short", None),
        (query(b"a.b", flags=0x2900), dns.NOT_IMPLEMENTED),
        (query(b"a.b", questions=2), dns.FORMAT_ERROR),
        (query(b"a.b")[:-1], dns.FORMAT_ERROR),
        (query(b"a.b")[:15], dns.FORMAT_ERROR),
        (query(b"a.b")[:12] + b"\xc0\x0c" + b"\0\1\0\1", dns.FORMAT_ERROR),
        (query(b".".join([b"x" * 60] * 5)), dns.FORMAT_ERROR),
    ],
)
def test_a_query_that_is_malformed_gets_an_error(data: bytes, code: int | None) -> None:
    with pytest.raises(dns.Malformed) as raised:
        dns.parse(data)
    answer = raised.value.answer
    assert not answer if code is None else answer[3] & 0xF == code


def test_a_dot_within_a_label_does_not_make_two() -> None:
    data = query(b"x")[:12] + b"\x0bexample.com\0" + b"\0\1\0\1"
    assert dns.parse(data).name == "?"


@given(st.binary(max_size=600))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    try:
        answer = dns.parse(data).answer(dns.REFUSED)
    except dns.Malformed as malformed:
        answer = malformed.answer
    assert len(answer) <= max(len(data), 12)
