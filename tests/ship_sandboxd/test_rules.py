"""Which destinations a sandbox may reach, decided without looking anything up."""

import ipaddress
from collections.abc import Iterable
from typing import Any

import pytest

from ship_sandboxd.errors import BadRequest, Unsupported
from ship_sandboxd.network import policy
from ship_sandboxd.network.addresses import address_of
from ship_sandboxd.network.rules import Block, Pattern, Refused, Rules, canonical, parse_entry, parse_private

ALL = "0.0.0.0/0"


def rules(allow: Iterable[str] = (), deny: Iterable[str] = (), private: Iterable[str] = ()) -> Rules:
    kept = {"allowOut": list(allow), "denyOut": list(deny)}
    return policy.rules(kept, True, private=tuple(parse_private(text) for text in private))


def reaches(made: Rules, host: str, port: int = 443, found: str = "1.1.1.1") -> bool:
    """Whether a host is reached, by its address or by a name that has the address `found`."""
    try:
        made.check("", address_of(host), port)
    except ValueError:
        try:
            made.check(canonical(host), address_of(found), port)
        except Refused:
            return False
    except Refused:
        return False
    return True


def test_without_rules_the_internet_is_open() -> None:
    assert reaches(rules(), "1.1.1.1")
    assert reaches(rules(), "example.com")
    assert reaches(rules(), "2606:4700::1111")


def test_what_is_allowed_beats_what_is_denied() -> None:
    made = rules(["1.1.1.1", "8.8.8.0/24"], [ALL])
    assert reaches(made, "1.1.1.1")
    assert reaches(made, "8.8.8.8")
    assert not reaches(made, "1.0.0.1")
    assert not reaches(made, "2606:4700::1111")
    assert not reaches(made, "example.com", found="1.0.0.1")


def test_a_denied_address_is_denied_in_every_form() -> None:
    made = rules(deny=["8.8.8.8"])
    for form in ("8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::"):
        assert not reaches(made, form), form
    assert not reaches(made, "dns.example", found="8.8.8.8")
    assert reaches(made, "8.8.4.4")


@pytest.mark.parametrize(
    ("entry", "host", "is_reached"),
    [
        ("example.com", "example.com", True),
        ("example.com", "EXAMPLE.com.", True),
        ("Example.Com.", "example.com", True),
        ("example.com", "www.example.com", False),
        ("example.com", "example.com.evil.org", False),
        ("example.com", "notexample.com", False),
        ("*.example.com", "www.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "notexample.com", False),
        ("bücher.example", "xn--bcher-kva.example", True),
        ("xn--bcher-kva.example", "BÜCHER.example", True),
        ("*", "anything.example", True),
        ("example.com:443", "example.com", True),
        ("example.com:80", "example.com", False),
        ("*.example.com:443", "www.example.com", True),
        ("1.1.1.1:443", "1.1.1.1", True),
        ("1.1.1.1:80", "1.1.1.1", False),
        ("1.1.1.0/24:443", "1.1.1.77", True),
        ("[2606:4700::]:443", "2606:4700::", True),
        ("[2606:4700::/32]:443", "2606:4700::1111", True),
        ("2606:4700::/32", "2606:4700::1111", True),
    ],
)
def test_an_entry_covers(entry: str, host: str, is_reached: bool) -> None:
    assert reaches(rules([entry], [ALL]), host, found="9.9.9.9") is is_reached


@pytest.mark.parametrize(
    "entry",
    ["", ":", "a b", "example.com:0", "example.com:65536", "example.com:x", "http://example.com", "*.*.com", "a*.com", ".example.com",
     "1.2.3", "1.2.3.4.5", "1.2.3.4/33", "-a.com", "a..b", "x" * 64 + ".com", "a." * 130 + "com", "[::1", "user@host", "a/b"],
)  # fmt: skip
def test_an_entry_that_makes_no_sense_is_told(entry: str) -> None:
    with pytest.raises(ValueError, match=r"neither|port"):
        parse_entry(entry)
    with pytest.raises(BadRequest, match="allowOut"):
        policy.at_creation({"allowOut": [entry], "denyOut": [ALL]})


def test_names_that_are_not_allowed_are_not_even_looked_up() -> None:
    made = rules(["api.example.com:443", "1.1.1.1"], [ALL])
    made.check_name("api.example.com", None)
    for name, port in (("secret.evil.example", None), ("api.example.com", 80)):
        with pytest.raises(Refused, match="not among"):
            made.check_name(name, port)


@pytest.mark.parametrize("address", ["10.1.2.3", "192.168.0.1", "169.254.169.254", "127.0.0.1", "fd00::1"])
def test_special_addresses_are_for_the_operator_to_allow(address: str) -> None:
    network_of = ipaddress.ip_network(address)
    assert not reaches(rules(), address)
    assert not reaches(rules([ALL, address]), address)
    allowed = str(network_of) if network_of.version == 4 else f"[{network_of}]"
    assert reaches(rules(private=[f"{allowed}:443"]), address)
    assert not reaches(rules(private=[f"{allowed}:443"]), address, port=80)
    assert not reaches(rules(deny=[address], private=[str(network_of)]), address)
    assert not reaches(rules(deny=[ALL], private=[str(network_of)]), address)
    assert reaches(rules([address], [ALL], [str(network_of)]), address)


def test_a_block_does_not_open_the_machines_own_addresses() -> None:
    assert not reaches(rules(private=["127.0.0.0/8"]), "127.0.0.1")
    assert reaches(rules(private=["10.0.0.0/8"]), "mirror.example", found="10.1.2.3")


@pytest.mark.parametrize("text", ["0.0.0.0/0", "8.8.8.8", "10.0.0.0/1", "mirror.internal", "::/0", "x"])
def test_the_operator_allows_private_networks_only(text: str) -> None:
    with pytest.raises(ValueError, match=r"public|CIDR|neither"):
        parse_private(text)


def test_what_is_kept_is_what_was_said() -> None:
    said = {"allowOut": ["example.com", "1.1.1.1"], "denyOut": [ALL], "maskRequestHost": "x.example:${PORT}"}
    assert policy.at_creation({**said, "rules": {}, "egressProxy": None}) == said
    assert policy.at_creation(None) == {}
    assert policy.update(said, {"denyOut": ["8.8.8.8"]}) == (
        {"denyOut": ["8.8.8.8"], "maskRequestHost": "x.example:${PORT}"},
        True,
    )
    assert policy.update(said, {"allow_internet_access": False, "allowOut": ["example.com"]}) == (
        {"allowOut": ["example.com"], "maskRequestHost": "x.example:${PORT}"},
        False,
    )


@pytest.mark.parametrize(
    "said",
    [
        [], "x", {"unknown": 1}, {"allowOut": "example.com"}, {"allowOut": [1]}, {"denyOut": ["example.com"]},
        {"allowOut": ["example.com"]}, {"allowOut": ["1.1.1.1"] * 1001}, {"maskRequestHost": 1},
        {"maskRequestHost": "a\r\nb"}, {"allowPublicTraffic": "no"}, {"rules": []}, {"rules": {"example.com": {}}},
        {"rules": {"example.com": [1]}}, {"rules": {"1.1.1.1": []}},
    ],
)  # fmt: skip
def test_a_network_that_makes_no_sense_is_refused(said: Any) -> None:
    with pytest.raises(BadRequest) as raised:
        policy.at_creation(said)
    assert raised.value.code == "network_invalid"


def test_what_is_not_offered_is_told() -> None:
    changed = {"example.com": [{"transform": {"headers": {"X-A": "b"}}}]}
    for said in ({"rules": changed}, {"egressProxy": {"address": "proxy.example:1080"}}):
        with pytest.raises(Unsupported):
            policy.at_creation(said)
        with pytest.raises(Unsupported):
            policy.update({}, said)


def test_entries_that_are_alike_compare_alike() -> None:
    assert parse_entry("*.A.example.:80") == Pattern("*.a.example", 80)
    assert parse_entry("8.8.8.77/24") == Block(ipaddress.ip_network("8.8.8.0/24"))
