#!/usr/bin/env bash
# Makes sure that a systemd can be started in a root of its own, for tests of services. Idempotent.
set -euo pipefail
. "$(dirname "$0")/debian.bash"

command -v systemd-nspawn >/dev/null && command -v dbus-daemon >/dev/null || provide "systemd-nspawn" systemd systemd-container dbus
