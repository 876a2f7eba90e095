#!/usr/bin/env bash
# Makes .venv and installs exactly what requirements.lock pins, each file checked against its hash.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ ! -x .venv/bin/python ]]; then
    if ! python=$(scripts/find-python.sh); then
        echo "No Python 3.11 or newer with venv was found. Name one: make setup PYTHON=/path/to/python3" >&2
        exit 3
    fi
    echo "Making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi
echo "Installing the Python packages of requirements.lock"
.venv/bin/python -m pip install --quiet --no-input --disable-pip-version-check --require-hashes -r requirements.lock
