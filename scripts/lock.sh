#!/usr/bin/env bash
# Pins every Python dependency, for every platform, with hashes: pyproject.toml → requirements.lock.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ ! -x .tools/uv/bin/uv ]]; then
    "$(scripts/find-python.sh)" -m venv .tools/uv
    .tools/uv/bin/pip install --quiet --disable-pip-version-check uv
fi
.tools/uv/bin/uv --quiet pip compile --universal --group dev pyproject.toml \
    --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --output-file requirements.lock "$@" >/dev/null
echo "requirements.lock pins $(grep -c '==' requirements.lock) packages"
