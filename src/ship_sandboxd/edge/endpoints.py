"""The sockets that the host serves on, and the domain that clients are told to find sandboxes at."""

import asyncio
import errno
import socket
from dataclasses import dataclass
from pathlib import Path

from ..errors import SetupError
from ..settings import Settings, Tls
from .tls import Certificate, LocalAuthority

# Every browser takes it for this machine, and a wildcard certificate needs two labels after the star.
LOCAL_DOMAIN = "sandboxes.localhost"
HTTPS_PORT = 443
"""The one that an address need not name."""
_RENEW_EVERY_S = 24 * 3600.0


@dataclass
class Https:
    """`authority` is there when a local one made the certificate."""

    socket: socket.socket
    certificate: Certificate
    authority: LocalAuthority | None

    def reload(self) -> None:
        """Renew or read again what clients are shown."""
        if self.authority is not None:
            self.authority.refresh()
        self.certificate.reload()


@dataclass
class Endpoints:
    """Raises SetupError `port_in_use`, `listen_failed`, `certificate_invalid` or `openssl_missing` when they are opened."""

    http: socket.socket
    https: Https | None
    domain: str

    @classmethod
    def open(cls, settings: Settings) -> "Endpoints":
        http = _listen(settings.listen_host, settings.listen_port)
        if settings.tls is None:
            return cls(http, None, settings.domain or f"localhost:{_port(http)}")
        sock = _listen(settings.tls.host, settings.tls.port)
        domain = settings.domain
        if settings.tls.certificate is None and ":" not in domain:
            domain = domain or LOCAL_DOMAIN
            if (port := _port(sock)) != HTTPS_PORT:
                domain = f"{domain}:{port}"
        return cls(http, _https(sock, settings.tls, domain, settings.data), domain)

    def told(self) -> dict[str, str]:
        """Where the host is reached: `url`, and with HTTPS `https_url` and `authority`, the file that clients trust."""
        told = {"url": f"http://{_shown(self.http)}"}
        if self.https is not None:
            told["https_url"] = f"https://{_shown(self.https.socket)}"
            if self.https.authority is not None:
                told["authority"] = str(self.https.authority.authority)
        return told

    def reload(self) -> None:
        if self.https is not None:
            self.https.reload()

    async def keep_valid(self) -> None:
        """Renew a certificate by the local authority in time, without end."""
        while self.https is not None and self.https.authority is not None:
            await asyncio.sleep(_RENEW_EVERY_S)
            await asyncio.to_thread(self.https.authority.refresh)
            self.https.certificate.reload()


def _https(sock: socket.socket, tls: Tls, domain: str, data: Path) -> Https:
    if tls.certificate is not None:
        return Https(sock, Certificate(tls.certificate, tls.key), None)
    authority = LocalAuthority(data / "tls", domain.partition(":")[0])
    return Https(sock, Certificate(authority.server, None), authority)


def _port(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def _shown(sock: socket.socket) -> str:
    host = sock.getsockname()[0]
    return f"[{host}]:{_port(sock)}" if ":" in host else f"{host}:{_port(sock)}"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        code = "port_in_use" if error.errno == errno.EADDRINUSE else "listen_failed"
        raise SetupError(f"cannot listen on {host}:{port}: {error.strerror or error}", code, 2) from error
