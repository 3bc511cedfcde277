#!/usr/bin/env bash
# Makes sure that the command line client of NATS is there, a program that is not ours. Idempotent.
# It is built in some minutes, once for all clones, to $BROKERMESH_SDKS; without Go, or with one that is too old, it is left out.
set -euo pipefail

version=v0.4.0
target=${BROKERMESH_SDKS:-$HOME/.cache/brokermesh-tests/sdks}/nats-cli-$version
if [ -x "$target/nats" ]; then
    exit 0
fi
if ! command -v go >/dev/null; then
    echo "left out: the client of NATS needs Go"
    exit 0
fi
GOBIN="$target" GOFLAGS=-buildvcs=false nice go install -ldflags "-s -w" "github.com/nats-io/natscli/nats@$version" || {
    echo "left out: the client of NATS cannot be built"
    [ -z "${CI:-}" ]
}
