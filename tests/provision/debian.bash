# Sourced by the scripts beside it.

# Installs Debian packages, whose services neither start now nor with the machine; says what is missing where it cannot.
#   provide WHAT PACKAGE...
provide() {
    local what=$1 package failed= policy=/usr/sbin/policy-rc.d
    shift
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "error: $what is missing; on Debian, as root: apt-get install $*" >&2
        exit 1
    fi
    # Package scripts ask this whether they may start a service. Somebody else may have forbidden it already.
    if [ -e "$policy" ]; then
        policy=
    else
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    _apt "$@" || { apt-get -o DPkg::Lock::Timeout=300 update -qq && _apt "$@"; } || failed=yes
    [ -z "$policy" ] || rm -f "$policy"
    [ -z "$failed" ] || exit 1
    for package in "$@"; do
        if [ -e "/etc/init.d/$package" ]; then
            update-rc.d "$package" disable >/dev/null 2>&1 || true
            ! command -v systemctl >/dev/null || systemctl disable --now "$package" >/dev/null 2>&1 || true
        fi
    done
}

# Bounded, so that a mirror that hangs does not hang a machine that nobody watches.
_apt() {
    DEBIAN_FRONTEND=noninteractive timeout 1500 apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "$@" >/dev/null
}
