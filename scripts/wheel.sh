#!/usr/bin/env bash
# Builds the wheel with the web app inside, then proves it: installed alone in an empty environment, `ship` runs.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf dist
.venv/bin/python -m hatchling build -t wheel >/dev/null
wheel=$(ls dist/*.whl)

.venv/bin/python - "$wheel" <<'PYTHON'
import sys, zipfile
names = zipfile.ZipFile(sys.argv[1]).namelist()
for wanted in ("ship/web_dist/index.html", "ship_runner/__init__.py", "ship_sandboxd/__init__.py"):
    if wanted not in names:
        sys.exit(f"{sys.argv[1]} lacks {wanted}")
PYTHON

proof=$(mktemp -d)
trap 'rm -rf "$proof"' EXIT
"$(scripts/find-python.sh)" -m venv "$proof/venv"
# The lock's versions without its hashes: a hash would be asked of the wheel itself, too.
sed -n 's/^\([a-z0-9][^ ]*==[^\\]*\).*/\1/p' requirements.lock >"$proof/versions.txt"
"$proof/venv/bin/pip" install --quiet --disable-pip-version-check --constraint "$proof/versions.txt" "$wheel"
"$proof/venv/bin/pip" check --disable-pip-version-check
(cd "$proof" && env -u PYTHONPATH "$proof/venv/bin/ship" --version)
echo "$wheel ($(du -h "$wheel" | cut -f1))"
