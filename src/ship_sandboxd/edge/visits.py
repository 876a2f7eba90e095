"""Who may see the ports of a sandbox that are not for everybody: who shows its traffic token.

A program sends it as a header. A person opens a link that holds it once, `?e2b-traffic-access-token=…`, and gets a
cookie for it, which only the browser and this host ever see.
"""

from hmac import compare_digest

from ..envd.http1 import Headers, Request

TOKEN = "e2b-traffic-access-token"  # noqa: S105 - the name of a field, not a secret
_SLASHES = "/\\"


def may_visit(request: Request, token: str) -> bool:
    if _is(request.headers.get(TOKEN), token):
        return True
    has_cookie = any(_is(value, token) for name, value in _cookies(request.headers) if name == TOKEN)
    return has_cookie and _is_own(request)


def _is_own(request: Request) -> bool:
    """Whether a request that a browser has added our cookie to was made by a page of this very name, or is a person's who
    follows a link. Other sandboxes are of the same site, so SameSite does not hold off their pages."""
    headers = request.headers
    if site := headers.get("sec-fetch-site"):
        how = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest"))
        follows_link = request.method in ("GET", "HEAD") and how == ("navigate", "document")
        return site in ("same-origin", "none") or follows_link
    origin = headers.get("origin")  # browsers tell no more without https
    return not origin or origin.partition("://")[2].lower() == headers.get("host").lower()


def welcome(request: Request, token: str, *, secure: bool) -> list[tuple[str, str]]:
    """The fields that lead a browser with the token in its link to the same address without it; none, if it has not."""
    path, _, query = request.target.partition("?")
    pairs = query.split("&") if query else []
    shown = [pair.removeprefix(f"{TOKEN}=") for pair in pairs if pair.startswith(f"{TOKEN}=")]
    if request.method != "GET" or not shown or not _is(shown[-1], token):
        return []
    rest = "&".join(pair for pair in pairs if not pair.startswith(f"{TOKEN}="))
    # One slash: two would name another host.
    location = "/" + path.lstrip(_SLASHES) + (f"?{rest}" if rest else "")
    flags = "; Path=/; HttpOnly; SameSite=Lax" + ("; Secure" if secure else "")
    return [("Location", location), ("Set-Cookie", f"{TOKEN}={token}{flags}"), ("Cache-Control", "no-store")]


def without_token(fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Header fields without our cookie among their cookies."""
    kept = []
    for name, value in fields:
        if name.lower() == "cookie" and TOKEN in value:
            value = "; ".join(f"{key}={text}" for key, text in _pairs(value) if key != TOKEN)
            if not value:
                continue
        kept.append((name, value))
    return kept


def _is(given: str, token: str) -> bool:
    return compare_digest(given.encode(), token.encode())


def _cookies(headers: Headers) -> list[tuple[str, str]]:
    return [pair for value in headers.all("cookie") for pair in _pairs(value)]


def _pairs(cookies: str) -> list[tuple[str, str]]:
    found = (cookie.strip().partition("=") for cookie in cookies.split(";"))
    return [(name, value) for name, _, value in found]
