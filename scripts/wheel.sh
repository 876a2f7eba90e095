#!/usr/bin/env bash
# Builds the wheel with the web app inside, then proves it: installed alone in an empty environment, it runs the whole demonstration.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf dist
.venv/bin/python -m hatchling build -t wheel >/dev/null 2>&1 || .venv/bin/python -m hatchling build -t wheel
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
"$proof/venv/bin/pip" check --disable-pip-version-check >/dev/null
cd "$proof"
unset PYTHONPATH
venv/bin/ship --version
if ! venv/bin/ship demo --scripted >demo.log 2>&1; then
    cat demo.log >&2
    exit 1
fi
tail -n 1 demo.log
cd "$OLDPWD"
echo "$wheel ($(du -h "$wheel" | cut -f1))"
