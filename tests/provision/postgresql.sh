#!/usr/bin/env bash
# Makes sure that PostgreSQL's server and client are there, for tests that start servers of their own. Idempotent.
set -euo pipefail
. "$(dirname "$0")/debian.bash"

command -v psql >/dev/null && ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || provide "PostgreSQL 13 or later" postgresql
