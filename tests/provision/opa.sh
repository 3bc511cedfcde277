#!/usr/bin/env bash
# Makes sure that Open Policy Agent is there, for tests that start servers of their own. Idempotent.
# It is built in some minutes, once for all clones, to $BROKERMESH_SDKS; without Go, or with one that is too old, it is left out.
set -euo pipefail

version=v1.4.2
target=${BROKERMESH_SDKS:-$HOME/.cache/brokermesh-tests/sdks}/opa-$version
if [ -x "$target/opa" ]; then
    exit 0
fi
if ! command -v go >/dev/null; then
    echo "left out: Open Policy Agent needs Go"
    exit 0
fi
GOBIN="$target" GOFLAGS=-buildvcs=false go install -ldflags "-s -w" "github.com/open-policy-agent/opa@$version" || {
    echo "left out: Open Policy Agent cannot be built"
    [ -z "${CI:-}" ]
}
