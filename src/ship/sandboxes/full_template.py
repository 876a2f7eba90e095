"""The sandbox template ``ship-full``: the one of every session, with an editor, a browser and compilers beside the agent.

It is built through the sandbox host's own template API, by the official SDK, on a Debian of its own. So a session may
change every file of its system and install packages, which the template ``ship`` on the machine's ``/usr`` does not allow.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from e2b import BuildInfo, LogEntry, Template
from e2b.exceptions import BuildException, FileUploadException
from e2b.template.main import TemplateBuilder

from ship.errors import ConfigurationError
from ship.sandboxes.template import TARGET, lay_out_tree, node_folder

NAME = "ship-full"
CODE_SERVER = "4.139.1"
PACKAGES = (
    "build-essential",
    "chromium",
    "fonts-liberation",
    "jq",
    "libkrb5-dev",
    "openssh-client",
    "pkg-config",
    "python3-dev",
    "ripgrep",
)
_PATH = f"{TARGET}/bin:/opt/code-server/bin:/usr/local/bin:/usr/bin:/bin"
_PROOFS = (
    "opencode --version",
    "code-server --version",
    "chromium --version",
    f"python3 -I -c 'import sys; sys.path.insert(0, \"{TARGET}/lib/python\"); import ship_runner.life'",
)
_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"


def recipe(context: Path) -> TemplateBuilder:
    """The steps, from what changes least to what changes most. ``context`` holds what is copied, see ``_context``."""
    return (
        Template(file_context_path=context)
        .from_debian_image("bookworm")
        .apt_install(list(PACKAGES), no_install_recommends=True)
        .set_envs(
            {
                "PATH": _PATH,
                "CHROME_PATH": "/usr/bin/chromium",
                "NODE_EXTRA_CA_CERTS": _AUTHORITIES,
                # Packages with native parts are compiled against the headers here, and not against a download.
                "npm_config_nodedir": TARGET,
            }
        )
        .copy("node", TARGET, gzip=False)
        .run_cmd(
            f"npm install --global --prefix /opt/code-server --no-audit --no-fund code-server@{CODE_SERVER}"
            " && rm -rf ~/.npm",
            user="root",
        )
        .copy("agent", TARGET, gzip=False)
        .copy("runner", TARGET, gzip=False)
        .run_cmd(f"export HOME=$(mktemp -d); {' && '.join(_PROOFS)}")
    )


@contextmanager
def _context(tree: Path, folder: Path) -> Iterator[Path]:
    """The folders ``node``, ``agent`` and ``runner``, of hard links where the file system allows them: each goes to
    ``/opt/ship`` in a step of its own, so that a new runner does not make a new editor."""
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=folder) as made:
        context = Path(made)
        for name, parts in (
            ("node", ("bin/node", "bin/npm", "bin/npx", "lib/node_modules")),
            ("agent", ("bin/opencode",)),
            ("runner", ("bin/ship-runner", "lib/python")),
        ):
            for part in parts:
                _link(tree / part, context / name / part)
        _link(node_folder() / "include" / "node", context / "node" / "include" / "node")
        yield context


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    else:
        _link_file(str(source), str(target))


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or too many links
        shutil.copy2(source, target)


def build(url: str, api_key: str, cache_dir: Path, *, report: Callable[[str], None]) -> BuildInfo:
    """Build the template on a sandbox host, and wait until it is ready. What was built before is not built again.

    ``cache_dir`` is that of ``build_ship_template``. ``report`` gets the build's log, line by line.

    Raises:
        ConfigurationError: ``template_failed`` with the step that failed and why.
    """
    tree = lay_out_tree(cache_dir, report=report)

    def heard(entry: LogEntry) -> None:
        report(entry.message)

    try:
        with _context(tree, cache_dir) as context:
            return Template.build(
                recipe(context),
                NAME,
                cpu_count=2,
                memory_mb=4096,
                on_build_logs=heard,
                api_key=api_key,
                api_url=url,
            )
    except (BuildException, FileUploadException) as error:
        raise ConfigurationError(
            f"The sandbox template {NAME} could not be built: {error}",
            code="template_failed",
            hint="The steps' output is above. Sandboxes must reach a Debian mirror and the npm registry: see "
            "--allow-private of the sandbox host for mirrors with private addresses.",
        ) from error
