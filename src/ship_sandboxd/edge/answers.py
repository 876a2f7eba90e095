"""What of a sandbox's answer comes to who asked: the daemon of a sandbox may be the work of its tenant, and so may all that
it says."""

from ..envd.http1 import Fields

# What `/files` answers with, besides the length of its body.
_OF_FILES = frozenset(["accept-ranges", "content-range"])
_INERT = [
    ("Content-Type", "application/octet-stream"),
    ("Content-Disposition", "attachment"),
    ("Content-Security-Policy", "sandbox; default-src 'none'"),
    ("X-Content-Type-Options", "nosniff"),
]


def own_cookies(fields: Fields) -> Fields:
    """Header fields whose cookies are for the name that they come from, and not for all sandboxes' names."""
    return [
        (name, _without_domain(value) if name.lower() == "set-cookie" else value) for name, value in fields
    ]


def _without_domain(cookie: str) -> str:
    first, *attributes = cookie.split(";")
    kept = [each for each in attributes if each.partition("=")[0].strip().lower() != "domain"]
    return ";".join([first, *kept])


def as_file(fields: Fields) -> Fields:
    """The header fields of an answer from the API's own origin, where keys are typed: a file to be saved, and nothing that a
    browser runs, shows or remembers."""
    return [(name, value) for name, value in fields if name.lower() in _OF_FILES] + _INERT
