"""What callers say about a sandbox's network, as E2B's API has it: checked, and kept in the record as it was said.

allowOut, denyOut      destinations; allowed ones beat denied ones
maskRequestHost        the Host field of requests that come in
rules                  host names; changes of their requests are not offered
"""

from typing import Any

from ..errors import BadRequest, Unsupported
from .rules import EVERYTHING, Block, Pattern, Rules, Upstream, parse_entry

MAX_ENTRIES = 1000
_CODE = "network_invalid"
_MAX_MASK_LENGTH = 255
_AT_CREATION = frozenset(
    ["allowPublicTraffic", "allowOut", "denyOut", "egressProxy", "maskRequestHost", "rules"]
)
_IN_UPDATE = frozenset(["allowOut", "denyOut", "egressProxy", "rules", "allow_internet_access"])


def at_creation(value: Any, allow_internet: bool = True) -> dict[str, Any]:
    """The `network` of a new sandbox, without what is empty. Raises BadRequest and Unsupported."""
    given = _object(value, _AT_CREATION)
    kept = _ways_out(given, allow_internet)
    mask = given.get("maskRequestHost")
    if mask is not None:
        if (
            not isinstance(mask, str)
            or not (mask.isascii() and mask.isprintable())
            or len(mask) > _MAX_MASK_LENGTH
        ):
            raise BadRequest("network.maskRequestHost must be a host name", _CODE)
        kept["maskRequestHost"] = mask
    allow_public = given.get("allowPublicTraffic")
    if not isinstance(allow_public, bool | None):
        raise BadRequest("network.allowPublicTraffic must be true or false", _CODE)
    return kept if allow_public is None else {**kept, "allowPublicTraffic": allow_public}


def update(old: dict[str, Any], value: Any) -> tuple[dict[str, Any], bool]:
    """The network of a running sandbox after `PUT /sandboxes/{id}/network`, which replaces every way out and leaves the
    ways in; and whether the internet is allowed. Raises BadRequest and Unsupported."""
    given = _object(value, _IN_UPDATE)
    allow_internet = given.get("allow_internet_access")
    if not isinstance(allow_internet, bool | None):
        raise BadRequest("allow_internet_access must be true or false", _CODE)
    ways_in: dict[str, Any] = {
        key: old[key] for key in ("maskRequestHost", "allowPublicTraffic") if key in old
    }
    return {**ways_in, **_ways_out(given, allow_internet is not False)}, allow_internet is not False


def rules(
    kept: dict[str, Any],
    allow_internet: bool,
    upstreams: tuple[Upstream, ...] = (),
    private: tuple[Block, ...] = (),
) -> Rules:
    """The rules of a network that was checked before. `private` is what the operator allows."""
    allow = tuple(parse_entry(text) for text in kept.get("allowOut", ()))
    deny = [parse_entry(text) for text in kept.get("denyOut", ())]
    if not allow_internet:
        deny.append(parse_entry(EVERYTHING))
    return Rules(upstreams, private, allow, tuple(entry for entry in deny if isinstance(entry, Block)))


def _ways_out(given: dict[str, Any], allow_internet: bool) -> dict[str, Any]:
    if given.get("egressProxy") is not None:
        raise Unsupported("an egress proxy (network.egressProxy) is not offered by this sandbox host")
    allow, deny = _entries(given, "allowOut"), _entries(given, "denyOut")
    for entry in deny.values():
        if isinstance(entry, Pattern):
            raise BadRequest(
                f"network.denyOut: {entry.name!r} is a name; only addresses and blocks of addresses can be denied",
                _CODE,
            )
    kept: dict[str, Any] = {
        key: list(value) for key, value in (("allowOut", allow), ("denyOut", deny)) if value
    }
    closed = rules(kept, allow_internet).is_closed
    if not closed and any(isinstance(entry, Pattern) for entry in allow.values()):
        raise BadRequest(
            f"network.allowOut names host names: network.denyOut must hold {EVERYTHING!r} (all traffic), "
            "as all else is allowed otherwise",
            _CODE,
        )
    _check_transforms(given.get("rules"))
    if given.get("rules"):
        kept["rules"] = given["rules"]
    return kept


def _entries(given: dict[str, Any], key: str) -> dict[str, Block | Pattern]:
    texts = given.get(key)
    if texts is None:
        return {}
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRequest(f"network.{key} must be a list of strings", _CODE)
    if len(texts) > MAX_ENTRIES:
        raise BadRequest(f"network.{key} has more than {MAX_ENTRIES} entries", _CODE)
    try:
        return {text: parse_entry(text) for text in texts}
    except ValueError as error:
        raise BadRequest(f"network.{key}: {error}", _CODE) from error


def _check_transforms(value: Any) -> None:
    """Rules that change nothing are kept; those that change headers would need to read what TLS hides."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise BadRequest("network.rules must be an object of lists by host name", _CODE)
    for name, changes in value.items():
        try:
            entry = parse_entry(name)
        except ValueError as error:
            raise BadRequest(f"network.rules: {error}", _CODE) from error
        if not isinstance(entry, Pattern) or not isinstance(changes, list):
            raise BadRequest(f"network.rules: {name[:80]!r} must be a host name with a list of rules", _CODE)
        for change in changes:
            if not isinstance(change, dict) or set(change) - {"transform"}:
                raise BadRequest(
                    f"network.rules: a rule of {name[:80]!r} is not an object with 'transform'", _CODE
                )
            if (change.get("transform") or {}).get("headers"):
                raise Unsupported(
                    "changing the headers of outgoing requests (network.rules) is not offered by this sandbox host: "
                    "for https it would have to break the encryption open"
                )


def _object(value: Any, known: frozenset[str]) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest("network must be an object", _CODE)
    unknown = set(value) - known
    if unknown:
        raise BadRequest(f"network has unknown fields: {', '.join(sorted(map(str, unknown)))[:200]}", _CODE)
    return value
