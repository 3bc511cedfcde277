#!/usr/bin/env bash
# Makes sure that Prometheus and promtool are there, for tests that start servers of their own. Idempotent.
set -euo pipefail
. "$(dirname "$0")/debian.bash"

command -v prometheus >/dev/null && command -v promtool >/dev/null || provide "Prometheus 2.42 or later" prometheus
