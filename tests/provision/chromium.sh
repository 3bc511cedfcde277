#!/usr/bin/env bash
# Makes sure that Chromium is there, which the tests of the dashboard steer, with fonts for its pictures. Idempotent.
# Another one of its kind may be named: BROKERMESH_CHROMIUM=/path/to/it
set -euo pipefail
. "$(dirname "$0")/debian.bash"

command -v "${BROKERMESH_CHROMIUM:-chromium}" >/dev/null || {
    echo "installing Chromium; this loads some 100 MB and may take minutes …"
    provide "Chromium" chromium fonts-dejavu-core
    chromium --version
}
