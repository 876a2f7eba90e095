"""What a browser is shown in place of JSON: small pages that load nothing from elsewhere."""

from functools import cache
from html import escape
from pathlib import Path

from ..envd.http1 import Request

HTML = "text/html; charset=utf-8"
_CLOSED = ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors *")
ERROR_FIELDS = [_CLOSED, ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
_ERROR_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ margin: 0; min-height: 100vh; display: grid; place-content: center; gap: .5rem; padding: 2rem; box-sizing: border-box;
  font: 16px/1.5 system-ui, sans-serif; text-align: center; background: light-dark(#fafafa, #0e0e11); color: light-dark(#18181b, #ececf1) }}
h1 {{ font-size: 1.25rem; margin: 0; text-wrap: balance }}
p {{ margin: 0; max-width: 34rem; color: light-dark(#52525b, #a1a1aa) }}
code {{ font: .875em ui-monospace, monospace; overflow-wrap: anywhere }}
</style>
<h1>{title}</h1>
<p>{hint}</p>
<p><code>{detail}</code></p>
"""


_STATUS = Path(__file__).parent / "status"
_TYPES = {".html": HTML, ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
STATUS_FIELDS = [
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    ),
    ("Cache-Control", "no-cache"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
]


@cache
def status(name: str) -> tuple[bytes, str]:
    """A file of the status page, and its content type."""
    path = _STATUS / name
    return path.read_bytes(), _TYPES[path.suffix]


def wanted(request: Request) -> bool:
    """Whether a person looks at the answer: browsers ask for HTML by name, programs do not."""
    return request.method in ("GET", "HEAD") and "text/html" in request.headers.get("accept").lower()


def error(title: str, hint: str, detail: str) -> bytes:
    """A page for what went wrong, what to do about it, and what it concerns."""
    return _ERROR_PAGE.format(title=escape(title), hint=escape(hint), detail=escape(detail)).encode()
