"""What the operator decides: one frozen value, made from the command line and passed in."""

from dataclasses import dataclass
from pathlib import Path

from .network.rules import Block, Upstream
from .quotas import MIN_FREE_MB

PARK_AFTER_S = 600.0
SPARES = 1


@dataclass(frozen=True)
class Tls:
    """The HTTPS listener. Without a certificate, a local authority of the data folder makes one; `key` is None when it
    is in the certificate's file."""

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True)
class Settings:
    """`api_key` is that of the tenant `default`, `keys` the file of all tenants' keys; one of them is given. `domain` is the
    suffix of `{port}-{sandbox id}.{domain}` host names, `api_key_variable` the environment's variable that `api_key` is from, if any.
    `warm` says how many sandboxes of a template are kept ready, `spares` how many processes for one of any template. `private` are the special addresses that sandboxes may
    reach. `blobs` is where layers and snapshots are kept. A paused sandbox keeps its memory for `park_after_s`
    seconds. `debian_root` is the file of a layer to take in place of
    a Debian that mmdebstrap makes. `quotas` is the file of what tenants may have; `min_free_mb` of the disk stay free."""

    listen_host: str
    listen_port: int
    data: Path
    api_key: str
    api_key_variable: str = ""
    keys: Path | None = None
    domain: str = ""
    tls: Tls | None = None
    metrics_key: str = ""
    metrics_public: bool = False
    backend: str = "bubblewrap"
    upstreams: tuple[Upstream, ...] = ()
    private: tuple[Block, ...] = ()
    blobs: str = ""
    park_after_s: float = PARK_AFTER_S
    warm: tuple[tuple[str, int], ...] = ()
    spares: int = SPARES
    debian_root: Path | None = None
    quotas: Path | None = None
    min_free_mb: int = MIN_FREE_MB
