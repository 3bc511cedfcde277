#!/usr/bin/env bash
# Makes sure that Mosquitto and its clients are there, for tests that start servers of their own. Idempotent.
set -euo pipefail
. "$(dirname "$0")/debian.bash"

command -v mosquitto >/dev/null && command -v mosquitto_pub >/dev/null || provide "Mosquitto 2.0 or later" mosquitto mosquitto-clients
