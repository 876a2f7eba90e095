#!/usr/bin/env bash
# Installs the system packages that Ship needs and this machine lacks; silent when there is nothing to do.
#
#   scripts/system-packages.sh           what Ship needs to run
#   scripts/system-packages.sh --tests   also what its tests need
#
# Debian and Ubuntu: by apt, with sudo where not root. Elsewhere it lists what to install by hand, and
# fails only when Ship cannot run without it.
set -euo pipefail

missing=()    # apt package names
reasons=()    # what each is for
essential=0   # how many of them Ship cannot run without

need() { # need essential|optional PACKAGE WHY CHECK…
    local weight=$1 package=$2 why=$3
    shift 3
    "$@" >/dev/null 2>&1 && return
    missing+=("$package")
    reasons+=("$why")
    [[ $weight == essential ]] && essential=$((essential + 1))
    return 0
}

has_python() { "$(dirname "$0")/find-python.sh"; }
has_libseccomp() {
    compgen -G '/usr/lib*/libseccomp.so.2*' || compgen -G '/usr/lib/*/libseccomp.so.2*' || compgen -G '/lib/*/libseccomp.so.2*'
}
has_certificates() { [[ -s /etc/ssl/certs/ca-certificates.crt || -s /etc/pki/tls/certs/ca-bundle.crt ]]; }
has_chromium() { command -v chromium || command -v chromium-browser || command -v google-chrome; }

need essential python3-venv "Ship is written in Python and installs into an environment of its own (3.11 or newer)" has_python
need essential bubblewrap "isolates the sandboxes that agents work in" command -v bwrap
need essential libseccomp2 "filters the system calls of a sandbox" has_libseccomp
need essential util-linux "starts sandboxes as a user of their own (setpriv)" command -v setpriv
need essential git "clones repositories, makes and applies diffs" command -v git
need essential ca-certificates "checks who answers on HTTPS" has_certificates
need optional ripgrep "the agent's search tool" command -v rg
if [[ ${1:-} == --tests ]]; then
    need optional chromium "the browser tests drive it" has_chromium
fi

((${#missing[@]} == 0)) && exit 0

echo "This machine lacks:"
for i in "${!missing[@]}"; do
    printf '  %-16s %s\n' "${missing[$i]}" "${reasons[$i]}"
done

by_hand() {
    echo "Install the packages above by hand, then run this again ($1)."
    ((essential == 0)) && exit 0
    exit 3
}

command -v apt-get >/dev/null || by_hand "only apt is automated; names differ a little between systems"
if ((EUID == 0)); then
    as_root=()
elif command -v sudo >/dev/null; then
    as_root=(sudo)
else
    by_hand "it takes root, and there is no sudo"
fi

# Ubuntu's chromium package only points at a snap, which does not run everywhere.
if [[ " ${missing[*]} " == *" chromium "* ]] && grep -qi '^ID=ubuntu' /etc/os-release; then
    echo "On Ubuntu install Chromium yourself: snap install chromium"
    kept=()
    for package in "${missing[@]}"; do [[ $package == chromium ]] || kept+=("$package"); done
    missing=("${kept[@]}")
    ((${#missing[@]} == 0)) && exit 0
fi

echo "Installing ${missing[*]} by apt${as_root[*]:+ with sudo}"
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@"; }
install() { apt install --yes --no-install-recommends "${missing[@]}" >/dev/null; }
if ! install 2>/dev/null; then
    apt update
    install || by_hand "apt could not"
fi
