#!/usr/bin/env bash
# Makes sure that `redis-server` is on PATH, for tests that start servers of their own. Idempotent.
set -euo pipefail

if command -v redis-server >/dev/null; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "redis-server (7.0 or later) is not on PATH; on Debian, as root: apt-get install redis-server" >&2
    exit 1
fi

# The package would start a server of its own on port 6379: tell its scripts not to.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server >/dev/null
}
install || { apt-get update -qq && install; }

# Nor shall it start with the machine.
if command -v systemctl >/dev/null; then
    systemctl disable --now redis-server >/dev/null 2>&1 || true
fi
if command -v update-rc.d >/dev/null; then
    update-rc.d redis-server disable >/dev/null 2>&1 || true
fi
redis-server --version
