#!/usr/bin/env bash
# Makes sure that MariaDB's server and client are there, for tests that start servers of their own. Idempotent.
set -euo pipefail
. "$(dirname "$0")/debian.bash"

command -v mariadbd >/dev/null && command -v mariadb >/dev/null || provide "MariaDB 10.5 or later" mariadb-server
