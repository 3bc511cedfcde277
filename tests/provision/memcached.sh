#!/usr/bin/env bash
# Makes sure that memcached is there, for tests that start servers of their own. Idempotent.
set -euo pipefail
. "$(dirname "$0")/debian.bash"

command -v memcached >/dev/null || provide "memcached 1.6 or later" memcached
