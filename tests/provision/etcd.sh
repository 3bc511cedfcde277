#!/usr/bin/env bash
# Makes sure that etcd is there, for tests that start servers of their own. Idempotent.
set -euo pipefail
. "$(dirname "$0")/debian.bash"

command -v etcd >/dev/null || provide "etcd 3.4 or later" etcd-server
