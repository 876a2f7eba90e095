"""Where a NATS broker is, and how one speaks to it: all of it in one URL."""

import ssl
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from ship.errors import ConfigurationError

PORT = 4222
_OPTIONS = frozenset({"ca", "cert", "key"})


class BrokerAddress(NamedTuple):
    """One broker, or several of one cluster. ``tls`` is None where the broker may speak in clear; credentials are empty where there
    are none."""

    hosts: tuple[tuple[str, int], ...]
    user: str
    password: str
    token: str
    tls: ssl.SSLContext | None

    def __repr__(self) -> str:
        """Without the credentials: it may stand in a log."""
        return ",".join(f"{host}:{port}" for host, port in self.hosts)


def parse_address(url: str) -> BrokerAddress:
    """``nats://USER:PASSWORD@HOST:PORT,HOST:PORT`` or ``tls://…?ca=FILE&cert=FILE&key=FILE``; a word before the ``@`` without a
    colon is a token. ``ca`` is who vouches for the broker, ``cert`` and ``key`` say who we are.

    Raises:
        ConfigurationError: ``bus_url_invalid``.
    """
    # By hand: `urlsplit` knows one host, and refuses several of which one is in brackets.
    scheme, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    authority, _, path = place.partition("/")
    options = dict(parse_qsl(query))
    credentials, _, hosts = authority.rpartition("@")
    user, colon, password = credentials.partition(":")
    if scheme not in ("nats", "tls") or path or set(options) - _OPTIONS:
        raise _invalid()
    try:
        return BrokerAddress(
            hosts=tuple(_host(host) for host in hosts.split(",")),
            user=unquote(user) if colon else "",
            password=unquote(password),
            token="" if colon else unquote(user),
            tls=_tls(options) if scheme == "tls" or options else None,
        )
    except ValueError as error:
        raise _invalid() from error
    except OSError as error:
        raise ConfigurationError(
            f"a certificate of the bus cannot be read: {error}", code="bus_url_invalid"
        ) from error


def _host(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("a host is missing")
    return parts.hostname, parts.port or PORT


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.get("ca"))
    if "cert" in options:
        context.load_cert_chain(options["cert"], options.get("key"))
    return context


def _invalid() -> ConfigurationError:
    return ConfigurationError(
        "the bus is named by a URL like nats://USER:PASSWORD@HOST:4222",
        code="bus_url_invalid",
        hint="docs/configuration.md has its parts.",
    )
