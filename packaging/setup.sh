#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Makes this checkout ready to run: the system packages that are missing, then .venv with every command in .venv/bin.
# Asks nothing.  Run it again at any time: with nothing to do it ends at once.  Called by every target of the Makefile.
#
# Exit status: 0 ready; 1 something failed or must be installed by an administrator (the last line says what).
set -eu

cd "$(dirname "$0")/.."
root=$(pwd)
venv=$root/.venv
stamp=$venv/ready

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# What `ready` must hold: any change of the lists, of the pins or of the place sets up again.
state() {
    { cat pyproject.toml packaging/constraints.txt packaging/packages/*.list packaging/setup.sh
      printf '%s\n' "$root"
      "$venv/bin/python" -V; } 2>&1 | sha256sum
}

is_ready() { [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(state)" ]; }

# --- system packages

# Names of packages in list file $1 that belong on this system; $2 is the tag of its version, as "el9".
packages_of() {
    sed -e 's/#.*//' -e 's/|.*//' -e 's/[[:space:]]//g' -e '/^$/d' "$1" | while read -r entry; do
        case $entry in
            "!$2:"*) ;;
            "$2:"*) printf '%s\n' "${entry#*:}" ;;
            "!"*:*) printf '%s\n' "${entry#*:}" ;;
            *:*) ;;
            *) printf '%s\n' "$entry" ;;
        esac
    done
}

missing_debian() {
    packages_of packaging/packages/debian.list debian | while read -r name; do
        case $(dpkg-query -W -f '${db:Status-Abbrev}' "$name" 2>/dev/null || true) in
            ii*) ;;
            *) printf '%s ' "$name" ;;
        esac
    done
}

missing_el() {
    packages_of packaging/packages/el.list "$1" | while read -r name; do
        rpm -q --quiet --whatprovides "$name" || printf '%s ' "$name"
    done
}

# Runs "$@" as root, or says what an administrator must install and ends.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        die "missing system packages, and neither root nor sudo without a password; have these installed: $missing"
    fi
}

# Debian starts a server when it installs one.  Ours are started by tests, each for itself: a policy keeps the
# installation from starting them (unless this machine has a policy of its own), and those new here are not enabled.
install_debian() {
    policy=/usr/sbin/policy-rc.d
    as_root true
    if [ ! -e $policy ]; then
        trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
        trap 'exit 1' HUP INT TERM
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
        as_root chmod 755 $policy
    fi
    as_root apt-get -qq update || say "some package sources did not answer; going on with what is known of them"
    # shellcheck disable=SC2086 # names, to be split
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $missing </dev/null
    for server in prosody nginx; do
        case " $missing " in *" $server "*)
            if command -v systemctl >/dev/null; then as_root systemctl --quiet disable $server 2>/dev/null || true; fi ;;
        esac
    done
}

install_el() {
    as_root true
    case $1 in
        el*)
            as_root dnf -y -q install dnf-plugins-core epel-release ||
                say "no epel-release here; going on with the repositories that this machine has"
            as_root dnf -q config-manager --set-enabled crb 2>/dev/null || say "no repository named crb here; going on" ;;
    esac
    # shellcheck disable=SC2086 # names, to be split
    as_root dnf -y -q install --setopt=install_weak_deps=False $missing </dev/null
}

install_system_packages() {
    if command -v apt-get >/dev/null; then
        missing=$(missing_debian)
        [ -z "$missing" ] && return
        say "installing with apt-get: $missing"
        install_debian
        missing=$(missing_debian)
    elif command -v dnf >/dev/null; then
        tag=$(. /etc/os-release; case " ${ID:-} ${ID_LIKE:-} " in
            *" fedora "*) [ "${ID:-}" = fedora ] && echo fedora || echo "el${VERSION_ID%%.*}" ;;
            *) echo "el${VERSION_ID%%.*}" ;;
        esac)
        missing=$(missing_el "$tag")
        [ -z "$missing" ] && return
        say "installing with dnf: $missing"
        install_el "$tag"
        missing=$(missing_el "$tag")
    else
        die "neither apt-get nor dnf here; install what packaging/packages/debian.list names, then make .venv by hand"
    fi
    [ -z "$missing" ] || die "still missing after the installation: $missing"
}

# --- Python

# The first Python of at least 3.11: the system's own, then others by name.
find_python() {
    for candidate in /usr/bin/python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python 3.11 or later with venv found, neither /usr/bin/python3 nor python3.11 to python3.14 on PATH"
}

# A .venv serves if its Python is new enough and it was made for this place (its commands name their interpreter).
venv_serves() {
    "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
        head -n 1 "$venv/bin/pip" 2>/dev/null | grep -q -F "$venv/"
}

make_venv() {
    if ! venv_serves; then
        python=$(find_python)
        say "making .venv with $python"
        rm -rf "$venv"
        "$python" -m venv "$venv"
    fi
    say "installing the project and its Python packages into .venv (a few minutes when it compiles)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint packaging/constraints.txt --editable '.[dev,demo]' </dev/null
}

if is_ready; then exit 0; fi
mkdir -p build
if command -v flock >/dev/null; then
    exec 9>build/setup.lock
    flock 9
    if is_ready; then exit 0; fi
fi
install_system_packages
make_venv
state >"$stamp"
say "ready: commands are in .venv/bin"
