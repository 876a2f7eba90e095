#!/usr/bin/env bash
# Prints the first Python of this machine that is 3.11 or newer and can make virtual environments; fails when there is none.
set -euo pipefail
for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 /usr/bin/python3; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        command -v "$candidate"
        exit 0
    fi
done
exit 1
