"""Examines this machine: what Ship needs, whether it works, and what to do where it does not."""

import asyncio
import ctypes
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
from rich.text import Text

from ship import config, errors
from ship.app import sandbox_host
from ship.cli import connection, server, terminal
from ship.cli.exits import Exit

OLDEST_GIT = (2, 30)
DISK_NEEDED_GB = 2
DISK_WANTED_GB = 10
COMMAND_TIMEOUT_S = 10
_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "missing": ("✗", "red")}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``missing`` means that Ship cannot run agents on this machine without it."""

    name: str
    state: Literal["ok", "warning", "missing"]
    found: str
    advice: str = ""


def run(url: str | None, token: str | None, data: Path | None, file: Path | None, *, as_json: bool) -> Exit:
    """``ship doctor``"""
    settings = server.settings(None, data, file)
    findings = [*_machine(), *_settings(settings), _sandbox_host(data), _server(url, token, data)]
    healthy = all(finding.state != "missing" for finding in findings)
    if as_json:
        terminal.print_json({"ok": healthy, "findings": findings})
    else:
        console = terminal.output()
        for finding in findings:
            mark, color = _MARKS[finding.state]
            console.print(
                Text.assemble((f"{mark} ", color), (f"{finding.name:<16}", "bold"), finding.found),
                soft_wrap=True,
            )
            if finding.advice:
                console.print(
                    Text(f"  {'':<16}{finding.advice}", "" if finding.state == "ok" else color),
                    soft_wrap=True,
                )
    return Exit.OK if healthy else Exit.MACHINE


def _machine() -> Iterator[Finding]:
    yield _linux()
    yield Finding("python", "ok", platform.python_version())
    yield _git()
    yield _bubblewrap()
    yield _user_namespaces()
    yield _library()
    yield _program("setpriv", "missing", "apt install util-linux", "--version")
    yield _program(
        "ripgrep", "warning", "apt install ripgrep; the agent searches with it", "--version", command="rg"
    )
    yield _program(
        "zstd", "warning", "apt install zstd; snapshots of sandboxes are packed by it", "--version"
    )
    yield _program(
        "fakeroot", "warning", "apt install fakeroot; sudo in a sandbox is played by it", "--version"
    )
    yield _program(
        "mmdebstrap",
        "warning",
        "apt install mmdebstrap; it makes the Debian that templates are built on",
        "--version",
    )
    yield _cgroups()


def _settings(settings: config.Settings) -> Iterator[Finding]:
    folder = settings.data_path
    yield _writable(folder)
    yield _disk(folder)
    yield _port(settings)
    yield _models(settings)
    yield _template(settings)


def _linux() -> Finding:
    if sys.platform != "linux":
        return Finding(
            "system",
            "missing",
            platform.platform(),
            "Sandboxes need Linux; run Ship in a Linux virtual machine.",
        )
    return Finding("system", "ok", f"Linux {platform.release()}, {os.cpu_count()} cores")


def _git() -> Finding:
    finding = _program("git", "missing", "apt install git", "--version")
    version = tuple(map(int, re.findall(r"\d+", finding.found)[:2]))
    if finding.state == "ok" and version < OLDEST_GIT:
        return Finding(
            "git", "missing", finding.found, f"Install git {'.'.join(map(str, OLDEST_GIT))} or newer."
        )
    return finding


def _program(
    name: str, without: Literal["warning", "missing"], advice: str, *arguments: str, command: str = ""
) -> Finding:
    command = command or name
    if shutil.which(command) is None:
        return Finding(name, without, f"{command} is not installed", advice)
    result = _output(command, *arguments)
    return Finding(name, "ok", terminal.one_line(result.stdout, 60))


def _bubblewrap() -> Finding:
    if shutil.which("bwrap") is None:
        return Finding(
            "bubblewrap",
            "missing",
            "bwrap is not installed",
            "apt install bubblewrap; it isolates the sandboxes",
        )
    links = [
        item
        for name in ("bin", "lib", "lib64", "sbin")
        if Path(f"/{name}").is_symlink()
        for item in ("--symlink", f"usr/{name}", f"/{name}")
    ]
    command = [
        "bwrap",
        "--unshare-all",
        "--ro-bind",
        "/usr",
        "/usr",
        *links,
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--cap-drop",
        "ALL",
        "true",
    ]
    if os.geteuid() == 0 and shutil.which("setpriv"):
        # As the server does: never root, a user of the sandbox's own.
        command = [
            "setpriv",
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "--no-new-privs",
            *command,
        ]
    result = _output(*command)
    if result.returncode:
        reason = terminal.one_line(result.stderr, 200)
        return Finding("bubblewrap", "missing", f"a sandbox does not start: {reason}", _namespace_advice())
    return Finding("bubblewrap", "ok", f"{_output('bwrap', '--version').stdout.strip()}, started a sandbox")


def _namespace_advice() -> str:
    if _sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return "AppArmor forbids it: sysctl kernel.apparmor_restrict_unprivileged_userns=0, or give bwrap a profile that allows userns"
    return "Allow user namespaces: sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=15000"


def _user_namespaces() -> Finding:
    if not Path("/proc/self/ns/user").exists():
        return Finding(
            "user namespaces", "missing", "this kernel has none", "Run a kernel with CONFIG_USER_NS."
        )
    limit = _sysctl("user/max_user_namespaces")
    if limit == "0" or _sysctl("kernel/unprivileged_userns_clone") == "0":
        return Finding("user namespaces", "missing", "switched off", _namespace_advice())
    return Finding("user namespaces", "ok", f"at most {limit}" if limit else "available")


def _sysctl(name: str) -> str:
    file = Path("/proc/sys") / name
    return file.read_text().strip() if file.is_file() else ""


def _library() -> Finding:
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return Finding(
            "libseccomp",
            "missing",
            "libseccomp.so.2 is not installed",
            "apt install libseccomp2; it filters system calls",
        )
    return Finding("libseccomp", "ok", "libseccomp.so.2")


def _cgroups() -> Finding:
    root = Path("/sys/fs/cgroup")
    version = 2 if (root / "cgroup.controllers").is_file() else 1 if (root / "memory").is_dir() else 0
    folder = root if version == 2 else root / "memory"
    if not version:
        return Finding(
            "cgroups",
            "warning",
            "none",
            "Sandboxes get limits per process only; mount cgroups for limits on the whole.",
        )
    if not os.access(folder, os.W_OK):
        return Finding(
            "cgroups",
            "warning",
            f"v{version}, not writable",
            "Run Ship as root, or delegate a cgroup to its user, for limits on memory and processes.",
        )
    return Finding("cgroups", "ok", f"v{version}, writable")


def _writable(folder: Path) -> Finding:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK) or not existing.is_dir():
        return Finding(
            "data folder",
            "missing",
            f"{existing} is not writable",
            "Choose another with --data, or change its owner.",
        )
    return Finding(
        "data folder", "ok", f"{folder}{'' if folder.exists() else ' (made by the first `ship up`)'}"
    )


def _disk(folder: Path) -> Finding:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    state: Literal["ok", "warning", "missing"] = (
        "missing" if free_gb < DISK_NEEDED_GB else "warning" if free_gb < DISK_WANTED_GB else "ok"
    )
    return Finding(
        "disk",
        state,
        f"{free_gb:.0f} GB free",
        "" if state == "ok" else f"Free some: {DISK_WANTED_GB} GB are comfortable.",
    )


def _port(settings: config.Settings) -> Finding:
    host, port = settings.address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            noted = connection.recall(settings.data_path)
            if noted and noted.url.endswith(f":{port}"):
                return Finding("port", "ok", f"{settings.listen}, taken by Ship itself")
            return Finding(
                "port",
                "warning",
                f"{settings.listen}: {error.strerror}",
                "Choose another: ship up --listen 127.0.0.1:8701",
            )
    return Finding("port", "ok", f"{settings.listen} is free")


def _models(settings: config.Settings) -> Finding:
    providers = [provider.name for provider in settings.models.providers if provider.api_key]
    keyless = [provider.name for provider in settings.models.providers if not provider.api_key]
    if providers or keyless:
        return Finding("models", "ok", ", ".join([*providers, *(f"{name} (no key)" for name in keyless)]))
    if settings.models.scripted:
        return Finding("models", "ok", "the scripted model only")
    return Finding(
        "models",
        "warning",
        "no key is set",
        "Set ANTHROPIC_API_KEY or OPENAI_API_KEY; without one only `ship demo` has a model.",
    )


def _template(settings: config.Settings) -> Finding:
    if settings.sandboxes.api_url:
        return Finding("sandboxes", "ok", f"made by {settings.sandboxes.api_url}")
    name = settings.sandboxes.template
    file = settings.data_path / "sandboxes" / "templates" / name / "template.json"
    if file.is_file():
        return Finding("template", "ok", f"{name} is built")
    return Finding(
        "template",
        "warning",
        f"{name} is not built yet",
        "The first `ship up` builds it; that takes a minute and downloads OpenCode.",
    )


def _sandbox_host(data: Path | None) -> Finding:
    """How the running host keeps sandboxes apart, by its own account."""
    running = sandbox_host.running_host(connection.data_folder(data))
    if running is None:
        return Finding(
            "sandbox host",
            "warning",
            "none runs on the data folder",
            "`ship up` starts it, `ship sandboxd` one alone.",
        )
    try:
        told = httpx.get(f"{running[0]}/health", timeout=COMMAND_TIMEOUT_S).json()
    except (httpx.HTTPError, ValueError) as error:
        return Finding(
            "sandbox host", "warning", f"{running[0]} does not answer: {error}", "Start Ship again."
        )
    limits = told.get("limits", {})
    lacking = [name for name, held in limits.items() if not held]
    found = f"{running[0]}: {told.get('backend', 'bubblewrap')}, {told.get('isolation', '')}"
    if lacking:
        return Finding(
            "sandbox host",
            "warning",
            f"{found}; no limit on {', '.join(lacking)}",
            "Run Ship as root, with cgroups and loop devices, for every limit.",
        )
    return Finding("sandbox host", "ok", f"{found}, limits on {', '.join(limits)}")


def _server(url: str | None, token: str | None, data: Path | None) -> Finding:
    async def ask(address: connection.Address) -> str:
        async with address.client() as client:
            return await client.me()

    try:
        address = connection.find(url, token, data)
        name = asyncio.run(ask(address))
    except errors.ShipError as error:
        return Finding("server", "warning", error.message, error.hint)
    return Finding("server", "ok", f"{address.url} answers; signed in as {name}")


def _output(*command: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 126, "", str(error))
