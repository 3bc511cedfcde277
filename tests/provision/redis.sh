#!/usr/bin/env bash
# Makes sure that redis-server and redis-sentinel are there, for tests that start servers of their own. Idempotent.
set -euo pipefail
. "$(dirname "$0")/debian.bash"

command -v redis-server >/dev/null && command -v redis-sentinel >/dev/null || provide "Redis 7.0 or later" redis-server redis-sentinel
