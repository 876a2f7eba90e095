#!/usr/bin/env bash
# Installs the system packages that Ship needs and this machine lacks; silent when there is nothing to do.
#
#   scripts/system-packages.sh             what Ship needs to run
#   scripts/system-packages.sh --tests     also what its tests need
#   scripts/system-packages.sh --machine   also what the tests in a virtual machine need
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
has_quick_python() { # the system's own, if it is new enough
    ! /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || /usr/bin/python3 -c 'import venv, ensurepip'
}
has_libseccomp() {
    compgen -G '/usr/lib*/libseccomp.so.2*' || compgen -G '/usr/lib/*/libseccomp.so.2*' || compgen -G '/lib/*/libseccomp.so.2*'
}
has_certificates() { [[ -s /etc/ssl/certs/ca-certificates.crt || -s /etc/pki/tls/certs/ca-bundle.crt ]]; }
on_sbin() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1"; }
has_postgresql() { compgen -G '/usr/lib/postgresql/*/bin/initdb' || command -v initdb; }
has_chromium() { command -v chromium || command -v chromium-browser || command -v google-chrome; }

need essential python3-venv "Ship is written in Python and installs into an environment of its own (3.11 or newer)" has_python
if has_python >/dev/null && ! has_quick_python 2>/dev/null; then
    own=$(/usr/bin/python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    need optional "$own-venv" "the system's own Python is built to be quicker than most others" has_quick_python
fi
need essential bubblewrap "isolates the sandboxes that agents work in" command -v bwrap
need essential libseccomp2 "filters the system calls of a sandbox" has_libseccomp
need essential util-linux "starts sandboxes as a user of their own (setpriv)" command -v setpriv
need essential git "clones repositories, makes and applies diffs" command -v git
need essential ca-certificates "checks who answers on HTTPS" has_certificates
need optional e2fsprogs "bounds the disk of each sandbox (mkfs.ext4)" on_sbin mkfs.ext4
need optional fakeroot "plays the user root in sandboxes" command -v fakeroot
need optional zstd "packs snapshots and templates" command -v zstd
need optional ripgrep "the agent's search tool" command -v rg
if [[ ${1:-} == --tests ]]; then
    need optional iproute2 "cuts the network between the parts in tests" on_sbin ip
    need optional chromium "the browser tests drive it" has_chromium
    need optional postgresql "the store that several nodes share" has_postgresql
    need optional strace "records what is written and synced, to cut the power in between" command -v strace
    need optional mmdebstrap "makes the Debian root that templates are built on" command -v mmdebstrap
    need optional nats-server "the broker between several nodes of Ship" on_sbin nats-server
    need optional runsc "the second way to isolate sandboxes, gVisor" command -v runsc
fi

if [[ ${1:-} == --machine ]]; then
    need optional mmdebstrap "makes the Debian of the virtual machine" command -v mmdebstrap
    need optional qemu-system-x86 "the virtual machine whose power is cut" command -v qemu-system-x86_64
fi

by_hand() { # by_hand WHY
    echo "Install the packages above by hand, then run this again ($1)."
    ((essential == 0)) && exit 0
    exit 3
}

as_root=()
may_install=yes
if ((EUID != 0)); then
    command -v sudo >/dev/null && as_root=(sudo) || may_install=no
fi

# Since 23.10 Ubuntu lets a program make user namespaces only where AppArmor knows it. bubblewrap isolates with them.
allow_user_namespaces() {
    local switch=/proc/sys/kernel/apparmor_restrict_unprivileged_userns profile=/etc/apparmor.d/bwrap
    [[ -r $switch && $(<"$switch") == 1 ]] || return 0
    local as_nobody=()
    ((EUID == 0)) && as_nobody=(setpriv --reuid 65534 --regid 65534 --clear-groups)
    "${as_nobody[@]}" bwrap --unshare-user --ro-bind / / true 2>/dev/null && return 0
    if [[ $may_install == no || -e $profile ]] || ! command -v apparmor_parser >/dev/null; then
        echo "AppArmor does not let bubblewrap make user namespaces. As root: sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        return 0
    fi
    echo "Writing $profile: AppArmor lets bubblewrap make the user namespaces that it isolates sandboxes with"
    "${as_root[@]}" tee "$profile" >/dev/null <<'PROFILE'
abi <abi/4.0>,
include <tunables/global>

profile bwrap /usr/bin/bwrap flags=(unconfined) {
  userns,
  include if exists <local/bwrap>
}
PROFILE
    "${as_root[@]}" apparmor_parser -r "$profile"
}

if ((${#missing[@]} == 0)); then
    allow_user_namespaces
    exit 0
fi

echo "This machine lacks:"
for i in "${!missing[@]}"; do
    printf '  %-16s %s\n' "${missing[$i]}" "${reasons[$i]}"
done

command -v apt-get >/dev/null || by_hand "only apt is automated; names differ a little between systems"
[[ $may_install == yes ]] || by_hand "it takes root, and there is no sudo"

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
# The tests start servers of their own: no cluster of the system's is made or started for them.
if [[ " ${missing[*]} " == *" postgresql "* && ! -e /etc/postgresql-common/createcluster.conf ]]; then
    "${as_root[@]}" mkdir -p /etc/postgresql-common
    echo "create_main_cluster = false" | "${as_root[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
fi
install() { apt install --yes --no-install-recommends "${missing[@]}" >/dev/null; }
if ! install 2>/dev/null; then
    apt update
    install || by_hand "apt could not"
fi
allow_user_namespaces
