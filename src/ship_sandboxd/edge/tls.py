"""HTTPS for the host's port: a certificate that the operator gives, or one of a local authority that is made once.

The local authority may vouch for its own domain only (name constraints), so trusting it lets nobody pose as another site.
"""

import contextlib
import ipaddress
import logging
import os
import shutil
import ssl
import subprocess
import tempfile
from pathlib import Path

from .. import durable
from ..errors import SetupError

HANDSHAKE_TIMEOUT_S = 10.0
_AUTHORITY_DAYS, _SERVER_DAYS, _RENEW_DAYS = 3650, 397, 30
_ADDRESSES = (ipaddress.ip_interface("127.0.0.1/32"), ipaddress.ip_interface("::1/128"))
_log = logging.getLogger("ship_sandboxd.edge.tls")


class Certificate:
    """What the HTTPS listener shows; `context` stays the same when the files are read again. Raises SetupError
    `certificate_invalid`."""

    def __init__(self, certificate: Path, key: Path | None) -> None:
        self._certificate, self._key = certificate, key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        try:
            self._load()
        except (OSError, ValueError) as error:
            raise SetupError(f"the certificate {certificate}: {error}", "certificate_invalid", 2) from error

    def reload(self) -> None:
        """Read the files again, for connections to come; one that is broken changes nothing, and is logged."""
        try:
            self._load()
        except (OSError, ValueError) as error:
            _log.error("the certificate cannot be used: the old one stays", extra={"reason": str(error)})

    def _load(self) -> None:
        # First into a context of its own: a pair that does not fit must not spoil the one in use.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key, _no_password)
        self.context.load_cert_chain(self._certificate, self._key, _no_password)


def _no_password() -> str:
    raise ValueError("its key is locked by a password: give one that is not")


class LocalAuthority:
    """An authority of this host's own for one domain, in `folder`/DOMAIN, and a certificate that it signed.

    `authority` is the file that clients have to trust. It is made at the first start; the certificate is renewed when
    it has less than 30 days to go.
    """

    def __init__(self, folder: Path, domain: str) -> None:
        self._program = shutil.which("openssl") or ""
        if not self._program:
            raise SetupError("openssl is missing: install it, or give --tls-cert", "openssl_missing")
        self._folder = folder / domain
        self._domain = domain
        self.authority = self._folder / "authority.pem"
        self.server = self._folder / "server.pem"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            if not self.authority.exists():
                self._make_authority()
            self.renew()
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip()
            raise SetupError(f"openssl made no certificate: {said}", "certificate_invalid") from error

    def refresh(self) -> None:
        """The same as `renew` while the host runs: a failure is logged."""
        try:
            self.renew()
        except (OSError, subprocess.CalledProcessError) as error:
            _log.error("the certificate cannot be renewed", extra={"reason": str(error)})

    def renew(self) -> None:
        """Make the certificate if there is none, or if it soon ends."""
        soon = str(_RENEW_DAYS * 24 * 3600)
        if self.server.exists():
            with contextlib.suppress(subprocess.CalledProcessError):
                self._run("x509", "-in", str(self.server), "-noout", "-checkend", soon)
                return
        with tempfile.TemporaryDirectory(prefix=durable.HALF_MADE, dir=self._folder) as scratch:
            self._make_server(Path(scratch))

    def _make_authority(self) -> None:
        allowed = [f"permitted;DNS:{name}" for name in (self._domain, "localhost")]
        allowed += [f"permitted;IP:{address.ip}/{address.netmask}" for address in _ADDRESSES]
        with durable.made(self._folder) as made:
            self._run(
                *("req", "-x509", *_NEW_KEY, "-keyout", str(made / "authority.key")),
                *("-out", str(made / "authority.pem"), "-days", str(_AUTHORITY_DAYS)),
                *("-subj", f"/CN=Sandbox host {self._domain}"[:68]),
                *("-addext", "basicConstraints=critical,CA:TRUE,pathlen:0"),
                *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
                *("-addext", f"nameConstraints=critical,{','.join(allowed)}"),
            )

    def _make_server(self, scratch: Path) -> None:
        names = [f"DNS:{name}" for name in (self._domain, f"*.{self._domain}", "localhost")]
        names += [f"IP:{address.ip}" for address in _ADDRESSES]
        extensions = scratch / "extensions"
        extensions.write_text(
            "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
            "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
            f"extendedKeyUsage=serverAuth\nsubjectAltName={','.join(names)}\n"
        )
        key, request, certificate = (str(scratch / name) for name in ("key", "request", "certificate"))
        self._run("req", "-new", *_NEW_KEY, "-keyout", key, "-out", request, "-subj", "/CN=Sandbox host")
        self._run(
            *("x509", "-req", "-in", request, "-out", certificate, "-days", str(_SERVER_DAYS)),
            *("-CA", str(self.authority), "-CAkey", str(self._folder / "authority.key")),
            *("-set_serial", f"0x{os.urandom(16).hex()}", "-sha256", "-extfile", str(extensions)),
        )
        # Key and certificate in one file change in one step.
        made = scratch / "server.pem"
        made.touch(mode=0o600)
        made.write_text(Path(key).read_text() + Path(certificate).read_text())
        made.replace(self.server)

    def _run(self, *arguments: str) -> None:
        subprocess.run([self._program, *arguments], check=True, capture_output=True)


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256")
