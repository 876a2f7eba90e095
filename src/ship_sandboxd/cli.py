"""The command line of the sandbox host: `python -m ship_sandboxd --listen 127.0.0.1:PORT --data DIR`."""

import argparse
import asyncio
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from . import logs, server
from .errors import SetupError, disk_full
from .network.rules import Block, Upstream, parse_private
from .quotas import MIN_FREE_MB
from .settings import PARK_AFTER_S, SPARES, Settings, Tls
from .templates import MAX_WARM

API_KEY_VARIABLE = "SHIP_SANDBOXD_API_KEY"
METRICS_KEY_VARIABLE = "SHIP_SANDBOXD_METRICS_KEY"
_DOMAIN = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(:\d{1,5})?")
_UPSTREAM = re.compile(r"(?P<name>[a-z0-9][a-z0-9.-]*):(?P<port>\d{1,5})=(?P<nodes>[^=\s]+)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the host. Answers the exit status: 0, 2 for wrong options, 3 when the machine lacks something."""
    logs.configure()
    arguments = _parser().parse_args(argv)
    logs.configure(arguments.log_level)
    try:
        _run(arguments)
    except SetupError as error:
        return _refuse(error)
    except OSError as error:
        if full := disk_full(error):
            return _refuse(SetupError(str(full), full.code))
        raise
    return 0


def _run(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments)
    lock = server.claim(settings.data)
    try:
        machine = server.Machine(settings.data, settings.backend)
        if arguments.stop_all:
            count = asyncio.run(server.stop_all(settings, machine))
            sys.stdout.write(json.dumps({"stopped": count}) + "\n")
        else:
            asyncio.run(server.serve(settings, machine))
    finally:
        os.close(lock)


def _refuse(error: SetupError) -> int:
    sys.stderr.write(json.dumps({"level": "error", "code": error.code, "event": str(error)}) + "\n")
    return error.exit_status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ship_sandboxd",
        description="A self-hosted host for sandboxes that speaks E2B's protocol.",
        epilog=f"The API key is read from {API_KEY_VARIABLE}, where other users cannot see it.",
    )
    parser.add_argument(
        "--listen", default="127.0.0.1:49980", metavar="HOST:PORT", help="port 0 takes a free one"
    )
    parser.add_argument(
        "--data", required=True, type=Path, metavar="DIR", help="state and files of the sandboxes"
    )
    parser.add_argument(
        "--domain",
        default="",
        metavar="DOMAIN[:PORT]",
        help="suffix of {port}-{sandbox id}.DOMAIN host names, with the port at which clients reach it",
    )
    parser.add_argument("--tls-listen", default="", metavar="HOST:PORT", help="HTTPS on this address as well")
    parser.add_argument(
        "--tls-cert", type=Path, metavar="FILE", help="certificate for DOMAIN and *.DOMAIN, with its chain"
    )
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its key, where that is another file")
    parser.add_argument(
        "--tls-local", action="store_true", help="a certificate by a local authority, made once in DIR/tls"
    )
    parser.add_argument(
        "--api-key", default="", help="shows in the list of processes: better use the variable"
    )
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="FILE",
        help='the keys of tenants, {"tenant": ["sha256:…"]}; read again when it changes',
    )
    parser.add_argument(
        "--quotas",
        type=Path,
        metavar="FILE",
        help='how much each tenant may have, {"tenant": {"sandboxes": 20}, "*": {}}; read again when it changes',
    )
    parser.add_argument(
        "--min-free",
        type=int,
        default=MIN_FREE_MB,
        metavar="MB",
        help="nothing new is made while less than this is free on the data folder's disk",
    )
    parser.add_argument(
        "--upstream",
        action="append",
        default=[],
        metavar="NAME:PORT=HOST:PORT[,HOST:PORT…]",
        help="a reserved name that every sandbox reaches through its proxy, at the first address that answers",
    )
    parser.add_argument(
        "--allow-private",
        action="append",
        default=[],
        metavar="CIDR[:PORT]",
        help="a private network that sandboxes may reach, if their rules do not deny it",
    )
    parser.add_argument(
        "--metrics-public",
        action="store_true",
        help=f"GET /metrics without a key; else by the one in {METRICS_KEY_VARIABLE}, or the API key",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="debug logs each request",
    )
    parser.add_argument(
        "--blobs",
        default="",
        metavar="DIR|S3",
        help="where layers and snapshots are kept: a folder or s3://BUCKET/PREFIX?endpoint=URL; several hosts may share it. "
        "Default: DATA/blobs",
    )
    parser.add_argument(
        "--debian-root",
        type=Path,
        metavar="FILE",
        help="the Debian that templates are built on, a layer of another host; by default mmdebstrap makes it",
    )
    parser.add_argument(
        "--park-after",
        type=float,
        default=PARK_AFTER_S,
        metavar="SECONDS",
        help="how long a paused sandbox keeps its memory (default %(default)g)",
    )
    parser.add_argument(
        "--backend",
        choices=("bubblewrap", "gvisor"),
        default="bubblewrap",
        help="what isolates sandboxes whose template does not say",
    )
    parser.add_argument(
        "--warm",
        action="append",
        default=[],
        metavar="TEMPLATE=N",
        help="keep so many sandboxes of a template ready to be handed out; repeatable",
    )
    parser.add_argument(
        "--spares",
        type=int,
        default=SPARES,
        metavar="N",
        help="keep so many processes waiting to become a sandbox of any template (default %(default)d)",
    )
    parser.add_argument(
        "--stop-all", action="store_true", help="end every sandbox of the data folder, and exit"
    )
    return parser


def _settings(arguments: argparse.Namespace) -> Settings:
    host, port = _address("--listen", arguments.listen)
    domain = arguments.domain.lower().strip(".")
    if domain and not _DOMAIN.fullmatch(domain):
        raise SetupError(f"--domain {arguments.domain} is not DOMAIN or DOMAIN:PORT", "option_invalid", 2)
    api_key = arguments.api_key or os.environ.get(API_KEY_VARIABLE, "")
    if not (api_key or arguments.keys or arguments.stop_all):
        raise SetupError(
            f"no API key: set {API_KEY_VARIABLE} to a long random text, or give --keys", "api_key_missing", 2
        )
    return Settings(
        listen_host=host,
        listen_port=port,
        data=arguments.data.resolve(),
        api_key=api_key,
        metrics_key=os.environ.get(METRICS_KEY_VARIABLE, ""),
        metrics_public=arguments.metrics_public,
        api_key_variable="" if arguments.api_key else API_KEY_VARIABLE,
        keys=arguments.keys.resolve() if arguments.keys else None,
        domain=domain,
        tls=_tls(arguments, domain),
        backend=arguments.backend,
        upstreams=tuple(_upstream(text) for text in arguments.upstream),
        private=tuple(_private(text) for text in arguments.allow_private),
        blobs=_blobs(arguments),
        debian_root=_existing("--debian-root", arguments.debian_root),
        park_after_s=max(0.0, arguments.park_after),
        warm=tuple(_warm(text) for text in arguments.warm),
        spares=min(max(0, arguments.spares), MAX_WARM),
        quotas=arguments.quotas.resolve() if arguments.quotas else None,
        min_free_mb=max(0, arguments.min_free),
    )


def _address(option: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise SetupError(f"{option} {text} is not HOST:PORT", "option_invalid", 2)
    return host.strip("[]"), int(port)


def _existing(option: str, path: Path | None) -> Path | None:
    if path is not None and not path.is_file():
        raise SetupError(f"{option}: there is no file {path}", "option_invalid", 2)
    return path.resolve() if path is not None else None


def _tls(arguments: argparse.Namespace, domain: str) -> Tls | None:
    certificate, key = arguments.tls_cert, arguments.tls_key
    if not arguments.tls_listen:
        if certificate or key or arguments.tls_local:
            raise SetupError("--tls-cert, --tls-key and --tls-local need --tls-listen", "option_invalid", 2)
        return None
    if bool(certificate) == arguments.tls_local or (key and not certificate):
        raise SetupError("--tls-listen needs either --tls-cert or --tls-local", "option_invalid", 2)
    if certificate and not domain:
        raise SetupError("--tls-cert needs --domain, the name that it is for", "option_invalid", 2)
    host, port = _address("--tls-listen", arguments.tls_listen)
    return Tls(host, port, certificate, key)


def _warm(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if not name or not count.isdecimal() or int(count) > MAX_WARM:
        raise SetupError(f"--warm {text} is not TEMPLATE=N with N up to {MAX_WARM}", "option_invalid", 2)
    return name, int(count)


def _blobs(arguments: argparse.Namespace) -> str:
    if arguments.blobs.startswith("s3://"):
        return str(arguments.blobs)
    return str(Path(arguments.blobs or arguments.data / "blobs").resolve())


def _upstream(text: str) -> Upstream:
    match = _UPSTREAM.fullmatch(text.lower())
    if match is None:
        raise SetupError(f"--upstream {text} is not NAME:PORT=HOST:PORT[,HOST:PORT…]", "option_invalid", 2)
    nodes = tuple(_address("--upstream", node) for node in match["nodes"].split(","))
    return Upstream(match["name"], int(match["port"]), nodes)


def _private(text: str) -> Block:
    try:
        return parse_private(text)
    except ValueError as error:
        raise SetupError(f"--allow-private {error}", "option_invalid", 2) from error
